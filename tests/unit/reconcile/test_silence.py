"""A trainer that has not been heard of: whether it hangs, or its node does not answer."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, experiment
from stage import Stage, bare, story
from trialkeeper.contract import Message, Resumed
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.reconcile import experiment as experiments
from trialkeeper_operator.reconcile import trial as trials
from trialkeeper_operator.reconcile.ports import Object


@pytest.mark.parametrize(
    ("node", "closed"),
    [("True", 1), ("Unknown", 0), ("gone", 0)],
    ids=["its node answers", "its node does not answer", "its node is gone"],
)
def test_a_trainer_is_blamed_for_its_silence_only_if_its_node_answers(
    node: str, closed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tell(stage: Stage) -> None:
        world = stage.operator()
        world.site = Site(store="s3://bucket")
        read = stage.memory.get

        async def get(kind: str, namespace: str, name: str) -> Object | None:
            if kind != "Node":
                return await read(kind, namespace, name)
            return None if node == "gone" else {"status": {"conditions": [{"type": "Ready", "status": node}]}}

        monkeypatch.setattr(stage.memory, "get", get)

        async def passes() -> dict[str, Any]:
            for _ in range(4):
                await stage.show(world)
                await trials.reconcile(world, ("default", "exp-0"))
            found = await read("Trial", "default", "exp-0")
            assert found is not None
            return dict(found["status"])

        limits: dict[str, Any] = {"timeouts": {"progressSeconds": 60}, "failurePolicy": {"maxFailures": 0}}
        await stage.memory.create(bare(experiment(maxTrials=1, **limits)))
        await stage.show(world)
        await experiments.reconcile(world, ("default", "exp"))
        await passes()
        pod = await stage.memory.bind("default", "exp-0-a1", "node-1")
        runs = {"name": "trainer", "state": {"running": {"startedAt": stamp(NOW)}}}
        await stage.memory.put_status({**pod, "status": {"phase": "Running", "containerStatuses": [runs]}})
        said = Message(attempt=1, podUid=pod["metadata"]["uid"], firstReport=NOW + 5, resumed=Resumed(0, 0, NOW, 0))
        world.reports["default", "exp-0"] = (said, NOW + 30)
        await passes()
        stage.time = NOW + 95
        status = await passes()
        asked = bool(status.get("intent")) or status.get("closed") == 1
        assert asked == bool(closed), status

    story(tell)
