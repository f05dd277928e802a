"""The faults that other tests rely upon: each does to the cluster what its name says, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from contract.bench import Bench
from faults import Call, Crash, Fault, FaultyCluster, LaggingSource, LossySource, RepeatingSource
from simulation.virtual import run
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import Cluster, Conflict, Event, NotFound, Source, Unavailable

NOWHERE = Memory(now=time.time)
BENCH = Bench(NOWHERE, NOWHERE, NOWHERE.bind, "default")  # for its objects


async def create(cluster: Cluster) -> object:
    return await cluster.create(BENCH.config_map("new"))


async def put(cluster: Cluster) -> object:
    return await cluster.put(BENCH.config_map("old", "2"))


async def put_status(cluster: Cluster) -> object:
    return await cluster.put_status({**BENCH.pod("pod"), "status": {"phase": "Running"}})


async def delete(cluster: Cluster) -> object:
    await cluster.delete("ConfigMap", "default", "old")
    return None


async def get(cluster: Cluster) -> object:
    return await cluster.get("ConfigMap", "default", "old")


async def list_(cluster: Cluster) -> object:
    return [obj async for obj in cluster.list("ConfigMap")]


WRITES = (create, put, put_status, delete)
READS = (get, list_)
Doing = Callable[[Cluster], Awaitable[object]]

RAISES: dict[Fault, tuple[type[BaseException], bool]] = {  # what is raised, and whether a write has happened
    Fault.CONFLICT: (Conflict, False),
    Fault.THROTTLED: (Unavailable, False),
    Fault.UNAVAILABLE: (Unavailable, False),
    Fault.APPLIED_UNAVAILABLE: (Unavailable, True),
    Fault.CRASH_BEFORE: (Crash, False),
    Fault.CRASH_AFTER: (Crash, True),
}


async def a_memory() -> Memory:
    memory = Memory(now=time.time)
    await memory.create(BENCH.config_map("old"))
    await memory.create(BENCH.pod("pod"))
    return memory


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("doing", [*WRITES, *READS])
def test_a_fault_raises_what_it_says_and_applies_what_it_says(fault: Fault, doing: Doing) -> None:
    async def story() -> None:
        memory = await a_memory()
        version = memory.version
        cluster = FaultyCluster(memory, lambda _: fault)
        raised, applied = RAISES[fault]
        if fault is Fault.CONFLICT and doing not in WRITES:
            await doing(cluster)
            applied = True
        else:
            with pytest.raises(raised):
                await doing(cluster)
        assert (memory.version > version) == (applied and doing in WRITES)

    asyncio.run(story())


def test_a_crash_is_nothing_that_an_operator_could_catch() -> None:
    assert not issubclass(Crash, Exception)


def test_without_a_fault_a_call_goes_through_with_all_that_it_says() -> None:
    async def story() -> None:
        memory = await a_memory()
        cluster = FaultyCluster(memory, lambda _: None)
        one = await cluster.create({**BENCH.pod("new"), "metadata": BENCH.meta("new", labels={"x": "y"})})
        assert await cluster.get("Pod", "default", "new") == one
        assert [o["metadata"]["name"] async for o in cluster.list("Pod", "default", {"x": "y"})] == ["new"]
        assert [o async for o in cluster.list("Pod", "elsewhere")] == []
        with pytest.raises(Conflict):
            await cluster.delete("Pod", "default", "new", uid="another")
        await memory.bind("default", "new", "node")
        await cluster.delete("Pod", "default", "new", grace_seconds=7)
        found = await cluster.get("Pod", "default", "new")
        assert found is not None
        assert found["metadata"]["deletionGracePeriodSeconds"] == 7
        with pytest.raises(NotFound):
            await cluster.delete("Pod", "default", "nobody")

    asyncio.run(story())


def test_the_decider_sees_each_call_once_and_in_order() -> None:
    async def story() -> None:
        seen: list[Call] = []
        cluster = FaultyCluster(await a_memory(), seen.append)
        for doing in (*WRITES, *READS):
            await doing(cluster)
        assert cluster.calls == seen
        assert [(c.number, c.verb, c.kind, c.name) for c in seen] == [
            (0, "create", "ConfigMap", "new"),
            (1, "put", "ConfigMap", "old"),
            (2, "put_status", "Pod", "pod"),
            (3, "delete", "ConfigMap", "old"),
            (4, "get", "ConfigMap", "old"),
            (5, "list", "ConfigMap", ""),
        ]
        assert [c.writes for c in seen] == [True] * 4 + [False] * 2

    asyncio.run(story())


class Told:
    """A Source that tells these events and ends."""

    def __init__(self, *names: str) -> None:
        self._events = [Event("ConfigMap", "ADDED", BENCH.config_map(name)) for name in names]

    async def events(self) -> AsyncIterator[Event]:
        for event in self._events:
            yield event


def name(event: Event) -> str:
    return str(event.object["metadata"]["name"])


SOURCES: dict[str, tuple[Callable[[Source], Source], list[str]]] = {
    "lossy": (lambda inner: LossySource(inner, lambda e: name(e) == "b"), ["a", "c"]),
    "repeating": (lambda inner: RepeatingSource(inner, lambda e: name(e) == "b"), ["a", "b", "b", "c"]),
    "both": (lambda inner: LossySource(RepeatingSource(inner, lambda _: True), lambda e: name(e) == "a"), list("bbcc")),
    "neither": (lambda inner: LaggingSource(inner, lambda _: 0.0), ["a", "b", "c"]),
}


@pytest.mark.parametrize("which", SOURCES)
def test_a_faulty_source_tells_what_is_left(which: str) -> None:
    wrap, expected = SOURCES[which]

    async def story() -> list[str]:
        return [name(event) async for event in wrap(Told("a", "b", "c")).events()]

    assert asyncio.run(story()) == expected


def test_a_late_event_delays_those_behind_it() -> None:
    async def story() -> list[tuple[str, float]]:
        clock = asyncio.get_running_loop().time
        start, source = clock(), LaggingSource(Told("a", "b", "c"), lambda e: 5.0 if name(e) == "b" else 0.0)
        return [(name(event), clock() - start) async for event in source.events()]

    assert run(story(), limit=60.0) == [("a", 0.0), ("b", 5.0), ("c", 5.0)]
