"""The Cluster and Source contract: what a real API server answers, asked of every cluster there is.

A resourceVersion is opaque here, and a uid any text: the suite is to run against a real one as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from builders import experiment
from trialkeeper_operator.cluster.admission import admission
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import (
    AlreadyExists,
    Cluster,
    Conflict,
    Event,
    Invalid,
    NotFound,
    Object,
    Source,
)

Story = Callable[[Memory], Awaitable[None]]


@pytest.fixture(params=["memory"])
def tell() -> Callable[[Story], None]:
    """Runs a story on a fresh cluster."""

    def run(story: Story) -> None:
        async def main() -> None:
            async with asyncio.timeout(20):
                await story(Memory(now=time.time, admit=admission()))

        asyncio.run(main())

    return run


def made(name: str = "exp", **spec: Any) -> Object:
    return {**experiment(**spec), "metadata": {"name": name, "namespace": "default"}}


def a_trial(owner: Object, index: int = 0) -> Object:
    meta = owner["metadata"]
    return {
        "apiVersion": "trialkeeper.dev/v1alpha1",
        "kind": "Trial",
        "metadata": {
            "name": f"{meta['name']}-{index}",
            "namespace": "default",
            "labels": {"trialkeeper.dev/experiment": meta["name"]},
            "ownerReferences": [_reference(owner)],
        },
        "spec": {"experiment": meta["name"], "experimentUid": meta["uid"], "index": index, "parameters": {"lr": 0.1}},
    }


def _reference(owner: Object) -> dict[str, Any]:
    meta = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
    }


def a_pod(name: str = "p", owner: Object | None = None, grace: int = 30) -> Object:
    meta: dict[str, Any] = {"name": name, "namespace": "default", "labels": {"a": "b"}}
    if owner is not None:
        meta["ownerReferences"] = [_reference(owner)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {
            "terminationGracePeriodSeconds": grace,
            "restartPolicy": "Never",
            "containers": [{"name": "c", "image": "i"}],
        },
    }


async def listed(cluster: Cluster, kind: str, **where: Any) -> list[str]:
    return sorted([o["metadata"]["name"] async for o in cluster.list(kind, **where)])


def test_a_new_object_gets_what_the_server_gives(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        one = await cluster.create({**made(), "status": {"phase": "Faked"}})
        meta = one["metadata"]
        assert meta["uid"]
        assert meta["resourceVersion"]
        assert meta["creationTimestamp"]
        assert meta["generation"] == 1
        assert "phase" not in one.get("status", {})
        assert one["spec"]["objectives"][0]["direction"] == "Minimize"
        assert await cluster.get("Experiment", "default", "exp") == one
        assert await cluster.get("Experiment", "default", "other") is None

    tell(story)


def test_a_name_is_taken_once_per_kind_and_namespace(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        await cluster.create(made())
        with pytest.raises(AlreadyExists):
            await cluster.create(made())

    tell(story)


def test_generation_follows_spec_and_not_status(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        one = await cluster.create(made())
        two = await cluster.put({**one, "spec": {**one["spec"], "parallelism": 3}})
        three = await cluster.put_status({**two, "status": {"phase": "Running"}})
        assert [o["metadata"]["generation"] for o in (one, two, three)] == [1, 2, 2]
        assert three["metadata"]["resourceVersion"] != two["metadata"]["resourceVersion"]

    tell(story)


def test_status_and_the_rest_are_written_apart(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        one = await cluster.create(made())
        two = await cluster.put_status(
            {**one, "status": {"phase": "Running"}, "spec": {**one["spec"], "parallelism": 9}}
        )
        assert two["spec"] == one["spec"]
        three = await cluster.put({**two, "status": {"phase": "Other"}})
        assert three["status"]["phase"] == "Running"

    tell(story)


def test_a_stale_write_is_a_conflict(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        one = await cluster.create(made())
        await cluster.put_status({**one, "status": {"phase": "Running"}})
        for write in (cluster.put, cluster.put_status):
            with pytest.raises(Conflict):
                await write({**one, "status": {"phase": "Late"}, "spec": {**one["spec"], "parallelism": 5}})
        found = await cluster.get("Experiment", "default", "exp")
        assert found is not None
        assert found["status"]["phase"] == "Running"

    tell(story)


def test_a_write_that_changes_nothing_makes_no_version(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        one = await cluster.create(made())
        two = await cluster.put_status({**one, "status": {"phase": "Running"}})
        three = await cluster.put_status({**two, "status": {"phase": "Running"}})
        assert three["metadata"]["resourceVersion"] == two["metadata"]["resourceVersion"]

    tell(story)


def test_what_does_not_exist_cannot_be_written_or_deleted(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        one = await cluster.create(made())
        await cluster.delete("Experiment", "default", "exp")
        for write in (cluster.put, cluster.put_status):
            with pytest.raises(NotFound):
                await write(one)
        with pytest.raises(NotFound):
            await cluster.delete("Experiment", "default", "exp")

    tell(story)


def test_a_uid_precondition_protects_a_namesake(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        one = await cluster.create(a_pod())
        await cluster.delete("Pod", "default", "p", uid=one["metadata"]["uid"])
        await cluster.create(a_pod())
        with pytest.raises(Conflict):
            await cluster.delete("Pod", "default", "p", uid=one["metadata"]["uid"])
        assert await listed(cluster, "Pod") == ["p"]

    tell(story)


def test_admission_refuses_with_a_sentence(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        with pytest.raises(Invalid, match=r"maxTrials"):
            await cluster.create(made(maxTrials=0))
        one = await cluster.create(made())
        with pytest.raises(Invalid, match=r"cannot change"):
            await cluster.put({**one, "spec": {**one["spec"], "onNonFinite": "Continue"}})
        trial = await cluster.create(a_trial(one))
        with pytest.raises(Invalid, match=r"spec\.desired"):
            await cluster.put({**trial, "spec": {**trial["spec"], "seed": 9}})
        stopped = await cluster.put({**trial, "spec": {**trial["spec"], "desired": "Stop"}})
        assert stopped["metadata"]["generation"] == 2

    tell(story)


def test_lists_select_by_labels(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        one, two = await cluster.create(made("one")), await cluster.create(made("two"))
        for index in range(3):
            await cluster.create(a_trial(one, index))
        await cluster.create(a_trial(two))
        assert await listed(cluster, "Trial") == ["one-0", "one-1", "one-2", "two-0"]
        labels = {"trialkeeper.dev/experiment": "one"}
        assert await listed(cluster, "Trial", labels=labels) == ["one-0", "one-1", "one-2"]
        assert await listed(cluster, "Trial", namespace="elsewhere") == []

    tell(story)


def test_children_go_with_their_owner(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        owner = await cluster.create(made())
        trial = await cluster.create(a_trial(owner))
        await cluster.create(a_pod("bound", trial))
        await cluster.create(a_pod("waiting", trial))
        await cluster.bind("default", "bound", "node")
        await cluster.delete("Experiment", "default", "exp")
        assert await listed(cluster, "Trial") == []
        assert await listed(cluster, "Pod") == ["bound"]
        bound = await cluster.get("Pod", "default", "bound")
        assert bound is not None
        assert bound["metadata"]["deletionTimestamp"]
        late = a_pod("late", trial)
        await cluster.create(late)
        assert "late" not in await listed(cluster, "Pod")

    tell(story)


def test_a_running_pod_gets_its_grace_and_the_shorter_one_counts(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        await cluster.create(a_pod())
        await cluster.bind("default", "p", "node")
        graces = []
        for asked in (None, 60, 5):
            await cluster.delete("Pod", "default", "p", grace_seconds=asked)
            found = await cluster.get("Pod", "default", "p")
            assert found is not None
            graces.append(found["metadata"]["deletionGracePeriodSeconds"])
        assert graces == [30, 30, 5]
        await cluster.delete("Pod", "default", "p", grace_seconds=0)
        assert await cluster.get("Pod", "default", "p") is None

    tell(story)


def test_a_source_tells_what_is_there_and_then_every_change_in_order(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        source: Source = cluster
        one = await cluster.create(made("one"))
        seen: list[Event] = []
        enough = asyncio.Event()

        async def watch() -> None:
            async for event in source.events():
                seen.append(event)
                if len(seen) == 4:
                    enough.set()

        watching = asyncio.ensure_future(watch())
        await asyncio.sleep(0)
        two = await cluster.put_status({**one, "status": {"phase": "Running"}})
        await cluster.create(made("two"))
        await cluster.delete("Experiment", "default", "one")
        await enough.wait()
        watching.cancel()
        assert [(e.type, e.object["metadata"]["name"]) for e in seen] == [
            ("ADDED", "one"),
            ("MODIFIED", "one"),
            ("ADDED", "two"),
            ("DELETED", "one"),
        ]
        assert seen[3].object["status"] == two["status"]

    tell(story)


def test_a_callers_object_is_its_own(tell: Callable[[Story], None]) -> None:
    async def story(cluster: Memory) -> None:
        body = made()
        await cluster.create(body)
        body["spec"]["objectives"][0]["metric"] = "changed afterwards"
        found = await cluster.get("Experiment", "default", "exp")
        assert found is not None
        assert found["spec"]["objectives"][0]["metric"] == "loss"

    tell(story)
