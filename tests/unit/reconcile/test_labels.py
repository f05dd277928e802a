"""A pod from which somebody takes the label by which pods are watched: it is gone for the watch, and runs on."""

from __future__ import annotations

from stage import Stage, story
from trialkeeper_operator.api import names
from trialkeeper_operator.reconcile import trial as reconciler

TRIAL = ("default", "exp-0")
POD = ("default", "exp-0-a1")


def test_it_is_judged_all_the_same() -> None:
    async def tell(stage: Stage) -> None:
        await stage.began(1)
        world = stage.operator()
        await stage.show(world)
        await reconciler.reconcile(world, TRIAL)
        await stage.show(world)
        await reconciler.reconcile(world, TRIAL)
        found = await stage.memory.get("Pod", *POD)
        assert found is not None
        stripped = await stage.memory.put({**found, "metadata": {**found["metadata"], "labels": {}}})
        world.vanished("Pod", stripped)
        for _ in range(3):
            await reconciler.reconcile(world, TRIAL)
        assert world.cache.raw(names.POD, POD) == stripped
        before = len(stage.calls.calls)
        await reconciler.reconcile(world, TRIAL)
        assert len(stage.calls.calls) == before  # and nobody asks for it again and again
        ended = [{"name": "trainer", "state": {"terminated": {"exitCode": 3}}}]
        await stage.memory.put_status({**stripped, "status": {"phase": "Failed", "containerStatuses": ended}})
        world.vanished("Pod", stripped)  # a sweep lists what has the label
        for _ in range(3):
            await reconciler.reconcile(world, TRIAL)
        trial = await stage.memory.get("Trial", *TRIAL)
        assert trial is not None
        assert (trial["status"]["closed"], trial["status"]["failures"]) == (1, 1)

    story(tell)
