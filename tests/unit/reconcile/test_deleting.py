"""Deleting a pod: a refusal says nothing of its absence."""

from __future__ import annotations

from faults import Call, Fault
from stage import Stage, story
from trialkeeper_operator.reconcile import trial as reconciler


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
        name = ("default", "exp-0")
        await reconciler.reconcile(world, name)
        found = await stage.memory.get("Trial", *name)
        assert found is not None
        await stage.memory.put({**found, "spec": {**found["spec"], "desired": "Stop"}})
        await stage.show(world)
        for _ in range(4):
            await reconciler.reconcile(world, name)
            await stage.show(world)
        assert [obj["metadata"]["name"] async for obj in stage.memory.list("Pod")] == []
        assert refused >= 2

    story(tell)
