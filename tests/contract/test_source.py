"""The Source contract: first what there is, then every change, in order per object."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from contract.bench import Bench, Recorder, Tell
from trialkeeper_operator.reconcile.ports import ClusterError


@asynccontextmanager
async def recording(bench: Bench, *first: str) -> AsyncIterator[Recorder]:
    """A recorder that has been told of these objects already."""
    recorder = Recorder(bench)
    try:
        for name in first:
            await recorder.until("ADDED", name)
        yield recorder
    finally:
        await recorder.stop()


def test_what_exists_is_told_first_in_its_newest_state(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        exp = await bench.cluster.create(bench.experiment())
        exp = await bench.cluster.put_status({**exp, "status": {"phase": "Running"}})
        made = [
            exp,
            await bench.cluster.create(bench.trial(exp)),
            await bench.cluster.create(bench.pod()),
        ]
        await bench.cluster.create(bench.experiment("gone"))
        await bench.delete("Experiment", "gone")
        async with recording(bench, *(o["metadata"]["name"] for o in made)) as recorder:
            told = {e.kind: e for e in recorder.events}
            assert len(recorder.events) == 3
            assert {kind: e.type for kind, e in told.items()} == dict.fromkeys(told, "ADDED")
            versions = {o["kind"]: o["metadata"]["resourceVersion"] for o in made}
            assert {k: e.object["metadata"]["resourceVersion"] for k, e in told.items()} == versions
            assert {e.object["kind"] for e in recorder.events} == set(versions)

    tell(story)


def test_every_change_is_told_once_and_in_order(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment("one"))
        async with recording(bench, "one") as recorder:
            two = await bench.cluster.put_status({**one, "status": {"phase": "Running"}})
            three = await bench.cluster.put({**two, "spec": {**two["spec"], "parallelism": 3}})
            await bench.cluster.create(bench.experiment("two"))
            await bench.delete("Experiment", "one")
            await recorder.until("DELETED", "one")
            assert recorder.told() == [
                ("ADDED", "one"),
                ("MODIFIED", "one"),
                ("MODIFIED", "one"),
                ("ADDED", "two"),
                ("DELETED", "one"),
            ]
            assert recorder.objects("one")[:3] == [one, two, three]

    tell(story)


def test_a_deletion_tells_the_last_state_under_a_version_of_its_own(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment())
        async with recording(bench, "exp") as recorder:
            last = await bench.cluster.put_status({**one, "status": {"phase": "Running"}})
            await bench.delete("Experiment", "exp")
            await recorder.until("DELETED", "exp")
            told = recorder.objects("exp")[-1]
            assert (told["spec"], told["status"]) == (last["spec"], last["status"])
            assert told["metadata"]["uid"] == last["metadata"]["uid"]
            assert told["metadata"]["resourceVersion"] != last["metadata"]["resourceVersion"]
            assert "deletionTimestamp" not in told["metadata"]

    tell(story)


def test_a_pod_is_seen_without_grace_before_it_is_gone(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        await bench.running_pod()
        async with recording(bench, "p") as recorder:
            await bench.delete("Pod", "p")
            await bench.delete("Pod", "p", grace_seconds=0)
            await recorder.until("DELETED", "p")
            assert [type_ for type_, _ in recorder.told("p")] == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]
            metas = [o["metadata"] for o in recorder.objects("p")]
            assert [m.get("deletionGracePeriodSeconds") for m in metas] == [None, 30, 0, 0]
            assert [m["generation"] for m in metas] == [1, 2, 2, 2]
            assert len({m["resourceVersion"] for m in metas}) == 4
            assert all("deletionTimestamp" in m for m in metas[1:])

    tell(story)


def test_what_changes_nothing_and_what_fails_is_not_told(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment("map"))
        exp = await bench.cluster.create(bench.experiment())
        await bench.running_pod()
        await bench.delete("Pod", "p")
        async with recording(bench, "map", "exp", "p") as recorder:
            await bench.cluster.put(one)
            await bench.cluster.put_status({**exp, "status": {}})
            await bench.cluster.put_status({**await bench.get("Experiment", "exp"), "status": {}})
            await bench.delete("Pod", "p")
            for write in (
                bench.cluster.create(bench.experiment("map")),
                bench.cluster.put({**one, "metadata": {**one["metadata"], "uid": "another"}}),
                bench.cluster.create(bench.experiment(maxTrials=0)),
                bench.delete("Experiment", "map", uid="another"),
            ):
                with pytest.raises(ClusterError):
                    await write
            for body in (bench.experiment("end"), bench.pod("end")):
                await bench.cluster.create(body)
            await bench.cluster.create(bench.experiment("last"))
            for name in ("end", "last"):
                await recorder.until("ADDED", name)
            assert recorder.told("map") == [("ADDED", "map")]
            assert recorder.told("exp") == [("ADDED", "exp"), ("MODIFIED", "exp")]
            assert recorder.told("p") == [("ADDED", "p")]

    tell(story)


def test_each_subscriber_is_told_all_of_it(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        await bench.cluster.create(bench.experiment("first"))
        async with recording(bench, "first") as early, recording(bench, "first") as leaver:
            await bench.cluster.create(bench.experiment("second"))
            await leaver.until("ADDED", "second")
            await leaver.stop()
            async with recording(bench, "first", "second") as late:
                await bench.delete("Experiment", "first")
                for recorder in (early, late):
                    await recorder.until("DELETED", "first")
                    assert recorder.told("first") == [("ADDED", "first"), ("DELETED", "first")]
                    assert recorder.told("second") == [("ADDED", "second")]

    tell(story)


def test_a_slow_subscriber_misses_nothing(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment())
        events = bench.source.events()
        async for first in events:
            if first.object["metadata"]["uid"] == one["metadata"]["uid"]:
                break
        for n in range(11, 61):
            one = await bench.cluster.put({**one, "spec": {**one["spec"], "parallelism": n}})
        seen = []
        async for event in events:
            if event.object["metadata"]["uid"] == one["metadata"]["uid"]:
                seen.append(event.object["spec"]["parallelism"])
            if seen[-1:] == [60]:
                break
        assert seen == list(range(11, 61))

    tell(story)


def test_namesakes_are_told_apart_by_uid(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment("name"))
        async with recording(bench, "name") as recorder:
            await bench.delete("Experiment", "name")
            two = await bench.cluster.create(bench.experiment("name"))
            await bench.cluster.create(bench.experiment("end"))
            await recorder.until("ADDED", "end")
            assert [type_ for type_, _ in recorder.told("name")] == ["ADDED", "DELETED", "ADDED"]
            uids = [o["metadata"]["uid"] for o in recorder.objects("name")]
            assert uids == [one["metadata"]["uid"]] * 2 + [two["metadata"]["uid"]]

    tell(story)


def test_what_was_told_stays_as_it_was(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment("one", parallelism=1))
        async with recording(bench, "one") as recorder:
            await bench.cluster.put({**one, "spec": {**one["spec"], "parallelism": 2}})
            await recorder.until("MODIFIED", "one")
            assert [o["spec"]["parallelism"] for o in recorder.objects("one")] == [1, 2]

    tell(story)
