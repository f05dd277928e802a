"""Keeping the snapshot: two operators in any order, deletions, and another experiment's of the same name."""

from __future__ import annotations

import pytest

from faults import Fault
from stage import NAME, Stage, harmless, settled, story
from trialkeeper_operator.state.snapshot import UID_ANNOTATION


@pytest.mark.parametrize("verdict_is_known", [False, True])
def test_an_operator_that_missed_the_end_leaves_the_final_snapshot_and_the_verdict(verdict_is_known: bool) -> None:
    """Story 7658."""

    async def tell(stage: Stage) -> None:
        await stage.began()
        stale, other = stage.operator(), stage.operator()
        await stage.show(stale)
        await settled(stale)
        await stage.says(0, "Succeeded")
        await stage.says(1, "Succeeded")
        await stage.show(other)
        await settled(other)
        assert await stage.snapshot() == ("Succeeded", ["Succeeded", "Succeeded"])
        if verdict_is_known:
            found = await stage.memory.get("Experiment", *NAME)
            assert found is not None
            stale.seen("Experiment", found)
        stage.time += 100
        await settled(stale)
        assert await stage.snapshot() == ("Succeeded", ["Succeeded", "Succeeded"])
        assert await stage.phase() == "Succeeded"

    story(tell)


def test_a_write_that_was_overtaken_is_made_anew_from_what_is_live() -> None:
    async def tell(stage: Stage) -> None:
        await stage.began()
        one, two = stage.operator(), stage.operator()
        await stage.show(one)
        await settled(one)
        await stage.show(two)
        await settled(two)
        stage.time += 100
        await stage.says(0, "Succeeded")
        await stage.show(one)
        await settled(one)
        assert await stage.snapshot() == ("Running", ["Succeeded", "Running"])
        await stage.says(1, "Stopped")
        found = await stage.memory.get("Trial", "default", "exp-1")
        assert found is not None
        two.seen("Trial", found)  # and of exp-0 it still believes that it runs
        await settled(two)
        assert (await stage.snapshot())[1] == ["Succeeded", "Stopped"]

    story(tell)


def test_who_could_not_look_does_not_write() -> None:
    """The stored version is remembered only after everything has been looked at."""

    async def tell(stage: Stage) -> None:
        await stage.began()
        broken = True
        two = stage.operator(lambda call: Fault.UNAVAILABLE if broken and call.verb == "list" else None)
        one = stage.operator()
        await stage.show(two)
        await stage.show(one)
        await stage.says(0, "Succeeded")
        await stage.show(one)
        await settled(one)
        for _ in range(3):
            with pytest.raises(Exception, match="drawn"):
                await settled(two)
        assert (await stage.snapshot())[1] == ["Succeeded", "Running"]
        broken = False
        await settled(two)
        assert (await stage.snapshot())[1] == ["Succeeded", "Running"]

    story(tell)


def test_in_peace_a_snapshot_costs_one_write_and_no_read() -> None:
    async def tell(stage: Stage) -> None:
        await stage.began()
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        before = len(stage.calls.calls)
        stage.time += 100
        await stage.says(0, "Succeeded")
        await stage.show(world)
        await settled(world)
        assert [(c.verb, c.kind) for c in stage.calls.calls[before:]] == [
            ("put", "ConfigMap"),
            ("put_status", "Experiment"),
        ]

    story(tell)


def test_an_operator_that_comes_up_after_the_end_reads_once_and_writes_nothing() -> None:
    async def tell(stage: Stage) -> None:
        await stage.began()
        await stage.says(0, "Succeeded")
        await stage.says(1, "Succeeded")
        first = stage.operator()
        await stage.show(first)
        await settled(first)
        second = stage.operator()
        await stage.show(second)
        await settled(second)
        assert [(c.verb, c.kind) for c in stage.calls.calls] == [("get", "ConfigMap")]

    story(tell)


def test_rows_do_not_go_with_the_trials_of_a_deleted_experiment() -> None:
    """Each kind has a watch of its own: the trials' deletion may be heard before the experiment's."""

    async def tell(stage: Stage) -> None:
        await stage.began()
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        before = await stage.snapshot()
        trials = [obj for obj in stage.memory.objects() if obj["kind"] == "Trial"]
        await stage.memory.delete("Experiment", *NAME)
        for obj in trials:
            world.vanished("Trial", obj)
        stage.time += 100
        await settled(world)
        assert await stage.snapshot() == before

    story(tell)


def test_a_trial_that_a_person_deleted_leaves_the_snapshot() -> None:
    async def tell(stage: Stage) -> None:
        await stage.began()
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        found = await stage.memory.get("Trial", "default", "exp-0")
        assert found is not None
        await stage.memory.delete("Trial", "default", "exp-0")
        world.vanished("Trial", found)
        stage.time += 100
        await settled(world)
        assert (await stage.snapshot())[1] == ["Running"]

    story(tell)


async def deleted_and_made_again(stage: Stage) -> str:
    """The short uid of an experiment that is gone, while another of its name has begun."""
    old = await stage.began()
    first = stage.operator()
    await stage.show(first)
    await settled(first)
    await stage.memory.delete("Experiment", *NAME)
    await stage.began(1)
    return str(old["metadata"]["uid"])[:8]


def test_another_experiments_snapshot_is_set_aside_first() -> None:
    async def tell(stage: Stage) -> None:
        short = await deleted_and_made_again(stage)
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        assert (await stage.snapshot(f"exp-snapshot-{short}"))[1] == ["Running", "Running"]
        assert (await stage.snapshot())[1] == ["Running"]

    story(tell)


@pytest.mark.parametrize("at", range(12))
@pytest.mark.parametrize("how", [Fault.UNAVAILABLE, Fault.APPLIED_UNAVAILABLE, Fault.CONFLICT])
def test_setting_aside_survives_a_fault_at_any_call(at: int, how: Fault) -> None:
    async def tell(stage: Stage) -> None:
        short = await deleted_and_made_again(stage)
        for attempt in range(2):  # the second operator comes after the first one's death
            world = stage.operator((lambda call: how if call.number == at else None) if attempt == 0 else harmless)
            await stage.show(world)
            try:
                await settled(world)
            except Exception as error:
                assert "drawn" in str(error)
                if at % 2:
                    await settled(world)
        assert (await stage.snapshot(f"exp-snapshot-{short}"))[1] == ["Running", "Running"]
        assert (await stage.snapshot())[1] == ["Running"]

    story(tell)


def test_the_newest_of_another_experiments_snapshots_is_what_stays_aside() -> None:
    """An operator that has not heard of the deletion writes once more between two that set aside."""

    async def tell(stage: Stage) -> None:
        short = await deleted_and_made_again(stage)
        stored = await stage.memory.get("ConfigMap", "default", "exp-snapshot")
        assert stored is not None
        from trialkeeper_operator.reconcile.snapshot import set_aside

        world = stage.operator()
        newer = await stage.memory.put({**stored, "data": {"newer": "yes"}})
        await set_aside(world, newer)
        await set_aside(world, stored)  # who had read it before
        found = await stage.memory.get("ConfigMap", "default", f"exp-snapshot-{short}")
        assert found is not None
        assert found["data"] == {"newer": "yes"}
        newest = await stage.memory.put({**newer, "data": {"newer": "still"}})
        await set_aside(world, newest)
        found = await stage.memory.get("ConfigMap", "default", f"exp-snapshot-{short}")
        assert found is not None
        assert found["data"] == {"newer": "still"}

    story(tell)


@pytest.mark.parametrize("owner", ["Ä/../x", "-", "0" * 500])
def test_whatever_a_config_map_says_of_its_owner_it_can_be_set_aside(owner: str) -> None:
    async def tell(stage: Stage) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"}}
        meta = {"name": "exp-snapshot", "namespace": "default", "annotations": {UID_ANNOTATION: owner}}
        await stage.memory.create({**body, "metadata": meta})
        await stage.began(1)
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        aside = [o for o in stage.memory.objects() if o["kind"] == "ConfigMap" and o.get("data") == {"a": "b"}]
        assert len(aside) == 1
        assert (await stage.snapshot())[1] == ["Running"]

    story(tell)


def test_a_config_map_that_is_no_snapshot_is_left_alone() -> None:
    async def tell(stage: Stage) -> None:
        meta = {"name": "exp-snapshot", "namespace": "default"}
        theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a": "b"}}
        created = await stage.memory.create(theirs)
        await stage.began(1)
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        assert await stage.memory.get("ConfigMap", "default", "exp-snapshot") == created
        found = await stage.memory.get("Experiment", "default", "exp")
        assert found is not None
        said = [(c["status"], c["reason"]) for c in found["status"]["conditions"] if c["type"] == "SnapshotKept"]
        assert said == [("False", "NameTaken")]

    story(tell)
