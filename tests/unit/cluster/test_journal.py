"""The journal: what was acknowledged is there again, whatever the file's end looks like."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.bench import Bench, reference
from trialkeeper_operator.cluster import journal as room
from trialkeeper_operator.cluster.journal import Journal, JournalCorrupt, JournalUnwritable, attach, replay
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import ClusterError, Object, Unavailable

Step = tuple[str, int, int]


def bench(memory: Memory) -> Bench:
    return Bench(memory, memory, memory.bind, "default")


def state(objects: Iterable[Object]) -> dict[tuple[str, str], Object]:
    return {(o["kind"], o["metadata"]["name"]): o for o in objects}


async def do(memory: Memory, step: Step) -> None:
    """One of the things that happen to a cluster; what is refused has changed nothing."""
    what, which, value = step
    at = bench(memory)
    owner = await memory.get("ConfigMap", "default", f"m{value % 4}")
    name = f"m{which}"
    with contextlib.suppress(ClusterError):
        match what:
            case "create":
                await memory.create(at.config_map(name, str(value)))
            case "child":
                references = [reference(owner)] if owner else []
                await memory.create(at.config_map(name, str(value), ownerReferences=references))
            case "pod":
                await memory.create(at.pod(name, owner=owner, grace=value))
            case "bind":
                await memory.bind("default", name, "node")
            case "status":
                pod = await memory.get("Pod", "default", name)
                await memory.put_status({**(pod or at.pod(name)), "status": {"phase": "Running", "n": value}})
            case "put":
                await memory.put(at.config_map(name, str(value)))
            case "delete":
                await memory.delete("ConfigMap", "default", name)
            case "evict":
                await memory.delete("Pod", "default", name, grace_seconds=value or None)
            case "remove":
                await memory.delete("Pod", "default", name, grace_seconds=0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "child", "pod", "bind", "status", "put", "delete", "evict", "remove"]),
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.just(1.0) | st.floats(0, 1))
def test_any_prefix_of_the_file_is_the_state_after_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step], fraction: float
) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    journal, ticks = Journal(path), itertools.count(1_700_000_000)
    states: list[dict[tuple[str, str], Object]] = []
    versions: list[int] = []

    def commit(op: Literal["PUT", "DELETE"], obj: Object) -> None:
        states.append(state(memory.objects()))
        versions.append(memory.version)
        journal.record(op, obj)

    memory = Memory(now=lambda: float(next(ticks)), commit=commit)

    async def live(there: Memory, steps: list[Step]) -> None:
        for step in steps:
            await do(there, step)

    asyncio.run(live(memory, steps))
    states.append(state(memory.objects()))
    versions.append(memory.version)
    journal.close()
    data = path.read_bytes()
    assert data.count(b"\n") == len(states) - 1

    cut = round(fraction * len(data))
    path.write_bytes(data[:cut])
    whole = data[:cut].count(b"\n")
    found = replay(path)
    assert state(found.objects) == states[whole]
    assert (found.version, found.lines) == (versions[whole], whole)

    again, journal = attach(path, now=lambda: float(next(ticks)))
    asyncio.run(live(again, [("create", 3, 1), ("pod", 2, 5), ("bind", 2, 0), ("put", 3, 7)]))
    journal.close()
    assert again.version >= versions[whole]
    assert state(replay(path).objects) == state(again.objects())


def a_map(name: str, value: int) -> dict[str, Any]:
    return {"kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"v": str(value)}}


def test_who_an_object_is_and_when_it_ends_survives(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    memory, journal = attach(path, now=time.time)

    async def story() -> Object:
        await bench(memory).running_pod()
        await bench(memory).delete("Pod", "p")
        return await bench(memory).get("Pod", "p")

    pod = asyncio.run(story())
    journal.close()
    again, journal = attach(path, now=time.time)
    assert asyncio.run(again.get("Pod", "default", "p")) == pod
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 30
    journal.close()


def test_a_write_is_in_the_file_before_anybody_hears_of_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)

    async def story() -> None:
        events = memory.events()
        await memory.create(a_map("a", 1))
        async for event in events:
            assert replay(path).objects == [event.object]
            return

    asyncio.run(story())
    journal.close()


def corrupt(lines: list[bytes]) -> dict[str, list[bytes]]:
    return {
        "no JSON": [lines[0], b'{"put": {"kind"}\n', lines[2]],
        "no object": [lines[0], b"[1]\n", lines[2]],
        "no entry": [lines[0], b'{"other": 1}\n', lines[2]],
        "an object without metadata": [lines[0], b'{"put": {"kind": "Pod"}}\n', lines[2]],
        "zeros": [lines[0], b"\0" * 40 + b"\n", lines[2]],
        "an empty line": [lines[0], b"\n", lines[2]],
    }


@pytest.mark.parametrize("what", corrupt([b"", b"", b""]))
def test_a_broken_line_in_the_middle_is_refused_by_its_number(tmp_path: Path, what: str) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)
    for n in range(3):
        asyncio.run(memory.create(a_map(f"m{n}", n)))
    journal.close()
    broken = b"".join(corrupt(path.read_bytes().splitlines(keepends=True))[what])
    path.write_bytes(broken)
    with pytest.raises(JournalCorrupt, match=r"line 2 is broken.*--fresh"):
        attach(path, now=time.time)
    assert path.read_bytes() == broken


@pytest.mark.parametrize("body", [a_map("a", 1), bench(Memory(now=time.time)).pod("a")])
def test_versions_go_on_after_a_restart_also_when_the_newest_object_is_gone(tmp_path: Path, body: Object) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)
    asyncio.run(memory.create(body))
    asyncio.run(memory.delete(body["kind"], "default", "a"))
    journal.close()
    again, journal = attach(path, now=time.time)
    assert again.version == memory.version
    journal.close()


@pytest.mark.parametrize("end", [b'{"put": {"ki', b'{"put": {"ki\n', b"\0" * 100, b"\0" * 100 + b"\n"])
def test_what_nobody_was_told_of_may_be_broken(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)
    asyncio.run(memory.create(a_map("a", 1)))
    journal.close()
    with path.open("ab") as file:
        file.write(end)
    again, journal = attach(path, now=time.time)
    assert state(again.objects()) == state(memory.objects())
    asyncio.run(again.create(a_map("b", 2)))
    journal.close()
    assert state(replay(path).objects) == state(again.objects())


def test_a_flush_makes_durable_what_is_not_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, journal = attach(tmp_path / "journal.jsonl", now=time.time)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    expected: list[int] = []
    for name in "ab":
        asyncio.run(memory.create(a_map(name, 1)))
        assert synced == expected
        expected.append(journal.fileno())
        for _ in range(2):
            journal.flush()
            assert synced == expected
    journal.close()


def test_a_cascade_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)

    async def story() -> None:
        at = bench(memory)
        owner = await memory.create(at.config_map("owner"))
        child = await memory.create(at.config_map("child", ownerReferences=[reference(owner)]))
        await memory.create(at.config_map("grandchild", ownerReferences=[reference(child)]))
        await at.delete("ConfigMap", "owner")

    asyncio.run(story())
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    path.write_bytes(b"".join(lines[:4]))
    again, journal = attach(path, now=time.time)
    assert list(again.objects()) == []
    journal.close()
    assert replay(path).objects == []


# Rewriting.


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that is soon thought too long."""
    monkeypatch.setattr(room, "COMPACT_LEAST", 20)


def churn(memory: Memory, first: int, last: int) -> None:
    async def writes() -> None:
        for n in range(first, last):
            await memory.put(a_map("a", n))

    asyncio.run(writes())


def test_a_journal_does_not_grow_with_the_number_of_writes(tmp_path: Path, eager: None) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)
    asyncio.run(memory.create(a_map("a", 0)))
    asyncio.run(memory.create(a_map("b", 0)))
    for n in range(1, 400, 7):
        churn(memory, n, n + 7)
        asyncio.run(memory.create(a_map("newest", 0)))
        asyncio.run(memory.delete("ConfigMap", "default", "newest"))
        assert journal.lines == path.read_bytes().count(b"\n") <= 21
        found = replay(path)
        assert (state(found.objects), found.version) == (state(memory.objects()), memory.version)
    journal.close()
    assert os.listdir(tmp_path) == ["journal.jsonl"]


def test_what_all_live_is_not_rewritten_over_and_over(tmp_path: Path, eager: None) -> None:
    memory, journal = attach(tmp_path / "journal.jsonl", now=time.time)

    async def story() -> None:
        for n in range(100):
            await memory.create(a_map(f"m{n}", n))

    asyncio.run(story())
    assert journal.lines == 100
    journal.close()


def test_a_long_journal_is_rewritten_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)
    asyncio.run(memory.create(a_map("a", 0)))
    churn(memory, 1, 100)
    asyncio.run(memory.create(a_map("newest", 0)))
    asyncio.run(memory.delete("ConfigMap", "default", "newest"))
    journal.close()
    size = path.stat().st_size
    monkeypatch.setattr(room, "COMPACT_LEAST", 20)
    again, journal = attach(path, now=time.time)
    assert (state(again.objects()), again.version) == (state(memory.objects()), memory.version)
    assert replay(path).version == memory.version
    assert path.stat().st_size < size / 20
    assert json.loads(path.read_text().splitlines()[0])["put"]["data"]["v"] == "99"
    churn(again, 100, 103)
    journal.close()
    assert state(replay(path).objects) == state(again.objects())


def test_what_a_dead_rewrite_left_is_no_harm(tmp_path: Path, eager: None) -> None:
    path = tmp_path / "journal.jsonl"
    (tmp_path / "journal.jsonl.new").write_bytes(b"half a li")
    memory, journal = attach(path, now=time.time)
    asyncio.run(memory.create(a_map("a", 0)))
    churn(memory, 1, 25)
    assert journal.lines < 20
    journal.close()
    assert state(replay(path).objects) == state(memory.objects())
    assert os.listdir(tmp_path) == ["journal.jsonl"]


def test_a_rewrite_that_fails_costs_nothing_and_is_not_tried_at_each_write(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tries = tmp_path / "journal.jsonl", []

    def no_room(*_: Any) -> None:
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    memory, journal = attach(path, now=time.time)
    asyncio.run(memory.create(a_map("a", 0)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_room)
        churn(memory, 1, 100)
    assert 1 <= len(tries) <= 3
    assert os.listdir(tmp_path) == ["journal.jsonl"]
    assert state(replay(path).objects) == state(memory.objects())
    churn(memory, 100, 200)
    assert journal.lines <= 21
    journal.close()


def test_a_rewritten_journal_takes_up_after_a_write_that_failed(tmp_path: Path, eager: None) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)
    asyncio.run(memory.create(a_map("a", 0)))
    churn(memory, 1, 30)
    assert journal.lines < 20
    with room_for(path.stat().st_size + 10), pytest.raises(JournalUnwritable):
        churn(memory, 30, 31)
    churn(memory, 31, 33)
    journal.close()
    assert state(replay(path).objects) == state(memory.objects())


# A disk that is full.


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """As if the disk had room for files of so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def told(memory: Memory) -> list[str]:
    """What a source tells before this map is made."""
    events, names = memory.events(), []
    await memory.create(a_map("end", 0))
    async for event in events:
        names.append(event.object["metadata"]["name"])
        if names[-1] == "end":
            break
    return names


WRITES: dict[str, Callable[[Memory], Any]] = {
    "create": lambda m: m.create(a_map("b", 1)),
    "put": lambda m: m.put(a_map("a", 2)),
    "delete": lambda m: m.delete("ConfigMap", "default", "a"),
}


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("left", [0, 10])
def test_a_write_that_the_disk_does_not_take_has_not_happened(tmp_path: Path, what: str, left: int) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)
    asyncio.run(memory.create(a_map("a", 1)))
    before, version, size = state(memory.objects()), memory.version, path.stat().st_size

    async def refused() -> None:
        with room_for(size + left), pytest.raises(JournalUnwritable, match=r"make room") as refusal:
            await WRITES[what](memory)
        assert isinstance(refusal.value, Unavailable)
        assert (refusal.value.errno, refusal.value.filename) == (errno.EFBIG, str(path))

    for _ in range(2):
        asyncio.run(refused())
    assert (state(memory.objects()), memory.version) == (before, version)
    assert state(replay(path).objects) == before
    assert asyncio.run(told(memory)) == ["a", "end"]
    asyncio.run(WRITES[what](memory))
    journal.close()
    assert state(replay(path).objects) == state(memory.objects())
    assert state(memory.objects()) != before
