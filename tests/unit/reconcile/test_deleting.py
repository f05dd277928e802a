"""Deleting a pod: a refusal says nothing of its absence, and what has ended by itself is not ours to end."""

from __future__ import annotations

from typing import Any

import pytest

from faults import Call, Fault
from stage import Stage, story
from trialkeeper.contract import Message, MetricSummary
from trialkeeper_operator.reconcile import trial as reconciler
from trialkeeper_operator.reconcile.world import World

TRIAL = ("default", "exp-0")
LAST_WORDS = Message(end="complete", attempt=1, iteration=4, metrics={"loss": MetricSummary(0.1, 0.1, 0.5)})


def test_a_pod_whose_deletion_was_refused_is_not_taken_for_gone() -> None:
    async def tell(stage: Stage) -> None:
        await stage.began(1)
        refused = 0

        def once(call: Call) -> Fault | None:
            nonlocal refused
            refused += call.verb == "delete"
            return Fault.CONFLICT if call.verb == "delete" and refused == 1 else None

        world = stage.operator(once)
        await stage.show(world)
        await reconciler.reconcile(world, TRIAL)
        found = await stage.memory.get("Trial", *TRIAL)
        assert found is not None
        await stage.memory.put({**found, "spec": {**found["spec"], "desired": "Stop"}})
        await stage.show(world)
        for _ in range(4):
            await reconciler.reconcile(world, TRIAL)
            await stage.show(world)
        assert [obj["metadata"]["name"] async for obj in stage.memory.list("Pod")] == []
        assert refused >= 2

    story(tell)


async def _runs(stage: Stage, world: World) -> None:
    """Trial 0 has a pod that runs, on a node, and the operator knows it."""
    await stage.began(1)
    await stage.show(world)
    await reconciler.reconcile(world, TRIAL)
    bound = await stage.memory.bind("default", "exp-0-a1", "node")
    running = {"phase": "Running", "containerStatuses": [{"name": "trainer", "state": {"running": {}}}]}
    await stage.memory.put_status({**bound, "status": running})
    await stage.show(world)
    await reconciler.reconcile(world, TRIAL)


async def _ends(stage: Stage) -> None:
    pod = await stage.memory.get("Pod", "default", "exp-0-a1")
    assert pod is not None
    ended = {"exitCode": 0, "reason": "Completed", "message": LAST_WORDS.encode()}
    containers = [{"name": "trainer", "state": {"terminated": ended}}]
    await stage.memory.put_status({**pod, "status": {"phase": "Succeeded", "containerStatuses": containers}})


async def _is_stopped(stage: Stage, world: World) -> None:
    found = await stage.memory.get("Trial", *TRIAL)
    assert found is not None
    world.seen("Trial", await stage.memory.put({**found, "spec": {**found["spec"], "desired": "Stop"}}))


async def _verdict(stage: Stage, world: World) -> tuple[str, str]:
    """Phase of the trial and class of its attempt, after an operator's restart: nobody remembers what was seen."""
    await stage.show(world)
    for _ in range(3):
        await reconciler.reconcile(world, TRIAL)
        await stage.show(world)
    found = await stage.memory.get("Trial", *TRIAL)
    assert found is not None
    return found["status"]["phase"], found["status"]["history"][-1]["class"]


def test_a_pod_that_has_ended_unseen_is_judged_and_not_ended_by_us() -> None:
    async def tell(stage: Stage) -> None:
        world = stage.operator()
        await _runs(stage, world)
        await _ends(stage)
        await _is_stopped(stage, world)
        await reconciler.reconcile(world, TRIAL)
        assert await _verdict(stage, stage.operator()) == ("Succeeded", "Succeeded")

    story(tell)


def test_a_pod_that_ends_between_our_look_and_our_deletion_is_judged() -> None:
    async def tell(stage: Stage) -> None:
        world = stage.operator()
        await _runs(stage, world)
        await _is_stopped(stage, world)
        deleting = stage.calls.delete

        async def late(*where: str, **how: Any) -> None:
            await _ends(stage)
            await deleting(*where, **how)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage.calls, "delete", late)
            await reconciler.reconcile(world, TRIAL)
        assert await _verdict(stage, stage.operator()) == ("Succeeded", "Succeeded")

    story(tell)
