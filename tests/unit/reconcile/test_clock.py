"""A clock that is set back by a day: nobody waits until it is as late again, and nobody is busy meanwhile."""

from __future__ import annotations

from builders import NOW
from stage import NAME, Stage, settled, story
from trialkeeper.contract import Message
from trialkeeper_operator.reconcile import trial as reconciler
from trialkeeper_operator.reconcile.world import remaining

DAY = 86_400.0


def test_a_wait_that_has_not_begun_is_over() -> None:
    assert remaining(NOW, 30.0, NOW) == 30.0
    assert remaining(NOW, 30.0, NOW + 40) == 0.0
    assert remaining(NOW, 30.0, NOW - DAY) == 0.0


def test_status_counts_and_snapshot_are_written_after_it() -> None:
    async def tell(stage: Stage) -> None:
        await stage.began()
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        stage.time -= DAY
        await stage.says(0, "Succeeded")
        await stage.show(world)
        await settled(world)
        assert (await stage.snapshot())[1] == ["Succeeded", "Running"]
        found = await stage.memory.get("Experiment", *NAME)
        assert found is not None
        assert found["status"]["counts"] == {"Running": 1, "Succeeded": 1}

    story(tell)


def test_an_ending_is_recorded_after_it() -> None:
    async def tell(stage: Stage) -> None:
        await stage.began(1)
        world, name = stage.operator(), ("default", "exp-0")
        await stage.show(world)
        for _ in range(3):
            await reconciler.reconcile(world, name)
            await stage.show(world)
        report = Message(attempt=1, iteration=3, firstReport=stage.time, time=stage.time)
        world.reports[name] = (report, stage.time)
        await reconciler.reconcile(world, name)
        stage.time -= DAY
        found = await stage.memory.get("Pod", "default", "exp-0-a1")
        assert found is not None
        ended = [{"name": "trainer", "state": {"terminated": {"exitCode": 3}}}]
        await stage.memory.put_status({**found, "status": {"phase": "Failed", "containerStatuses": ended}})
        await stage.show(world)
        await reconciler.reconcile(world, name)
        trial = await stage.memory.get("Trial", *name)
        assert trial is not None
        assert (trial["status"]["closed"], trial["status"]["failures"]) == (1, 1)

    story(tell)
