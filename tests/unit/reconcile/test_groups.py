"""Passes over a trial of several pods: its Service, a quota without room, and Kueue as a test client plays it.

Kueue holds pods back by a gate, keeps them by a finalizer, and takes its place back by a condition and a deletion.
"""

from __future__ import annotations

from typing import Any

import pytest

from builders import experiment
from faults import Call, Fault
from stage import Stage, bare, story
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.reconcile import experiment as experiments
from trialkeeper_operator.reconcile import service
from trialkeeper_operator.reconcile import trial as trials
from trialkeeper_operator.reconcile.ports import QuotaExceeded, Unavailable
from trialkeeper_operator.reconcile.world import World

Object = dict[str, Any]
GATE = "kueue.x-k8s.io/admission"


async def passes(stage: Stage, world: World, count: int = 6) -> None:
    """So many looks at everything; the operator sees what there is, and what is gone, before each."""
    for _ in range(count):
        await _show(stage, world)
        await experiments.reconcile(world, ("default", "exp"))
        await _show(stage, world)
        if await stage.memory.get("Trial", "default", "exp-0"):
            await trials.reconcile(world, ("default", "exp-0"))


async def _show(stage: Stage, world: World) -> None:
    await stage.show(world)
    there = {pod["metadata"]["name"] for pod in await pods(stage)}
    for name in world.cache.names("Pod"):
        known = world.cache.raw("Pod", name)
        if known is not None and name[1] not in there:
            world.vanished("Pod", dict(known))


async def begun(stage: Stage, world: World, **meta: Any) -> None:
    await stage.memory.create(bare(experiment(maxTrials=1, nodes=3), **meta))
    await passes(stage, world)


async def status(stage: Stage) -> Object:
    found = await stage.memory.get("Trial", "default", "exp-0")
    assert found is not None
    return dict(found["status"])


async def pods(stage: Stage) -> list[Object]:
    return [p async for p in stage.memory.list("Pod")]


async def says(stage: Stage, pod: Object, **said: Any) -> None:
    stored = await stage.memory.get("Pod", "default", pod["metadata"]["name"])
    assert stored is not None
    await stage.memory.put_status({**stored, "status": {**stored["status"], **said}})


def test_a_service_comes_with_the_pods_and_goes_when_the_trial_is_over() -> None:
    async def tell(stage: Stage) -> None:
        world = stage.operator()
        await begun(stage, world)
        (service,) = [s async for s in stage.memory.list(names.SERVICE)]
        assert service["metadata"]["name"] == "exp-0"
        assert len(await pods(stage)) == 3
        found = await stage.memory.get("Trial", "default", "exp-0")
        assert found is not None
        await stage.memory.put({**found, "spec": {**found["spec"], "desired": "Stop"}})
        await passes(stage, world, 4)
        assert (await status(stage))["phase"] == "Stopped"
        assert [s async for s in stage.memory.list(names.SERVICE)] == []

    story(tell)


def test_a_service_that_cannot_be_deleted_yet_is_deleted_later() -> None:
    async def tell(stage: Stage) -> None:
        refused: list[str] = []

        def first(call: Call) -> Fault | None:
            if call.verb != "delete" or call.kind != names.SERVICE:
                return None
            refused.append(call.name)
            return Fault.CONFLICT if len(refused) == 1 else None

        world = stage.operator(first)
        await begun(stage, world)
        found = await stage.memory.get("Trial", "default", "exp-0")
        assert found is not None
        await stage.memory.put({**found, "spec": {**found["spec"], "desired": "Stop"}})
        with pytest.raises(Unavailable, match="the Service exp-0 cannot be deleted yet"):
            await passes(stage, world, 4)
        await passes(stage, world, 1)
        assert refused == ["exp-0", "exp-0"]
        assert [s async for s in stage.memory.list(names.SERVICE)] == []

    story(tell)


def test_a_service_is_known_before_its_trial_is() -> None:
    """An operator that has just come up lists Services once, when its watch may not have told of every trial yet."""

    async def tell(stage: Stage) -> None:
        await begun(stage, stage.operator())
        late = stage.operator()
        found = await stage.memory.get("Experiment", "default", "exp")
        stored = await stage.memory.get("Trial", "default", "exp-0")
        assert found is not None
        assert stored is not None
        other = {**stored, "metadata": {**stored["metadata"], "name": "exp-1", "uid": "another"}}
        await service.remove(late, Experiment.from_object(found), Trial.from_object(other))
        assert len([s async for s in stage.memory.list(names.SERVICE)]) == 1
        await service.remove(late, Experiment.from_object(found), Trial.from_object(stored))
        assert [s async for s in stage.memory.list(names.SERVICE)] == []

    story(tell)


def test_a_pod_that_was_deleted_before_it_was_noted_is_why_the_others_end() -> None:
    """Its events and the other pod's end come at once, to an operator that has made them and heard nothing since."""

    async def tell(stage: Stage) -> None:
        world = stage.operator()
        await stage.memory.create(bare(experiment(maxTrials=1, nodes=2)))
        while len(await pods(stage)) < 2:
            await passes(stage, world, 1)
        assert "pod" not in await status(stage)
        await stage.memory.bind("default", "exp-0-a1-r1", "node-1")
        await stage.memory.delete("Pod", "default", "exp-0-a1-r1")
        ended = {"name": "trainer", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}
        (other,) = [p for p in await pods(stage) if p["metadata"]["name"] == "exp-0-a1-r0"]
        await says(stage, other, phase="Failed", containerStatuses=[ended])
        left = await stage.memory.get("Pod", "default", "exp-0-a1-r1")
        assert left is not None
        world.seen("Pod", left)
        await stage.memory.delete("Pod", "default", "exp-0-a1-r1", grace_seconds=0)
        await passes(stage, world, 2)
        said = await status(stage)
        assert (said["closed"], said.get("disruptions", 0), said.get("failures", 0)) == (1, 1, 0)
        assert said["history"][-1]["reason"] == "Deleted"

    story(tell)


def test_somebody_elses_service_of_that_name_is_waited_for_and_let_alone() -> None:
    async def tell(stage: Stage) -> None:
        theirs = {"kind": "Service", "metadata": {"name": "exp-0", "namespace": "default"}, "spec": {}}
        await stage.memory.create(theirs)
        await begun(stage, stage.operator())
        said = await status(stage)
        assert (said["phase"], said["reason"], said["attempt"]) == ("Waiting", "NameTaken", 1)
        assert await pods(stage) == []
        await stage.memory.delete("Service", "default", "exp-0")
        await passes(stage, stage.operator())
        assert (await status(stage))["phase"] == "Running"

    story(tell)


def test_a_quota_with_room_for_two_of_three_is_waited_for_and_costs_nothing() -> None:
    async def tell(stage: Stage) -> None:
        room = [2]

        class Full(type(stage.operator().cluster)):  # type: ignore[misc]
            async def create(self, obj: Object, *, dry_run: bool = False) -> Object:
                if obj["kind"] == "Pod" and not dry_run and len(await pods(stage)) >= room[0]:
                    raise QuotaExceeded("exceeded quota: pods=2")
                made: Object = await super().create(obj, dry_run=dry_run)
                return made

        world = stage.operator()
        world.cluster = Full(stage.memory, lambda call: None)
        await begun(stage, world)
        said = await status(stage)
        assert (said["phase"], said["reason"], said["closed"]) == ("Waiting", "QuotaExceeded", 0)
        assert [bool(uid) for uid in (said["pod"]["uid"], *said["pod"]["others"])] == [True, True, False]
        room[0] = 3
        await passes(stage, world)
        said = await status(stage)
        assert (said["phase"], said["attempt"], said.get("disruptions", 0)) == ("Running", 1, 0)

    story(tell)


def test_a_crash_between_two_pods_is_met_by_the_next_operator() -> None:
    async def tell(stage: Stage) -> None:
        made: list[str] = []

        def second(call: Call) -> Fault | None:
            if call.verb == "create" and call.kind == "Pod":
                made.append(call.name)
            return Fault.UNAVAILABLE if len(made) == 2 else None

        world = stage.operator(second)
        await stage.memory.create(bare(experiment(maxTrials=1, nodes=3)))
        try:
            await passes(stage, world)
        except Exception as gone:
            assert "drawn" in str(gone) or type(gone).__name__ == "Unavailable"
        assert len(await pods(stage)) == 1
        await passes(stage, stage.operator())
        said = await status(stage)
        assert (said["phase"], said["attempt"], said["closed"]) == ("Running", 1, 0)
        assert len(await pods(stage)) == 3

    story(tell)


def test_a_group_waits_in_kueues_queue_and_its_eviction_is_a_disruption() -> None:
    async def tell(stage: Stage) -> None:
        world = stage.operator()
        await begun(stage, world, labels={"kueue.x-k8s.io/queue-name": "team-a"})
        # Kueue's webhook would have put gates there at once; what it says of them is the API server's.
        for pod in await pods(stage):
            assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
            assert pod["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "3"
            await stage.memory.put({**pod, "spec": {**pod["spec"], "schedulingGates": [{"name": GATE}]}})
            held = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
            await says(stage, pod, phase="Pending", conditions=[held])
        stage.time += 86_400
        await passes(stage, world, 2)
        said = await status(stage)
        assert (said["phase"], said["reason"], said["attempt"]) == ("Waiting", "Queued", 1)
        assert GATE in said["message"]
        # Admitted: the gates go, the pods run.
        for number, pod in enumerate(await pods(stage)):
            await stage.memory.put({**pod, "spec": {k: v for k, v in pod["spec"].items() if k != "schedulingGates"}})
            await stage.memory.bind("default", pod["metadata"]["name"], f"node-{number}")
            await says(stage, pod, phase="Running", conditions=[])
        await passes(stage, world, 2)
        assert (await status(stage))["phase"] == "Running"
        # Evicted: a condition, then the deletion of each; its finalizer keeps the pods once they have ended.
        for pod in await pods(stage):
            taken = {"type": "TerminationTarget", "status": "True", "reason": "WorkloadEvicted", "message": "Preempted"}
            await says(stage, pod, conditions=[taken])
            await stage.memory.delete("Pod", "default", pod["metadata"]["name"])
            ended = {"name": "trainer", "state": {"terminated": {"exitCode": 143, "reason": "Error"}}}
            await says(stage, pod, phase="Failed", containerStatuses=[ended])
        await passes(stage, world, 1)
        said = await status(stage)
        assert (said["closed"], said["disruptions"], said.get("failures", 0)) == (1, 1, 0)
        assert said["history"][-1]["reason"] == "WorkloadEvicted"
        # What has ended is not waited for, although the finalizer keeps it: the next attempt joins the queue at once.
        stage.time += 10
        await passes(stage, world, 3)
        assert (await status(stage))["attempt"] == 2
        assert {p["metadata"]["name"] for p in await pods(stage)} >= {f"exp-0-a2-r{rank}" for rank in range(3)}

    story(tell)
