"""The journal: what was acknowledged is there again, whatever the file's end looks like."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trialkeeper_operator.cluster.journal import JournalCorrupt, attach, replay
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import ClusterError


def a_map(name: str, value: int) -> dict[str, Any]:
    return {"kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"v": str(value)}}


async def do(memory: Memory, step: tuple[str, int, int]) -> None:
    what, name, value = step
    body = a_map(f"m{name}", value)
    try:
        if what == "create":
            await memory.create(body)
        elif what == "put":
            await memory.put(body)
        else:
            await memory.delete("ConfigMap", "default", f"m{name}")
    except ClusterError:
        return


def state(memory: Memory) -> list[dict[str, Any]]:
    return sorted(memory.objects(), key=lambda o: str(o["metadata"]["name"]))


STEPS = st.lists(
    st.tuples(st.sampled_from(["create", "put", "delete"]), st.integers(0, 3), st.integers(0, 9)), max_size=30
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.randoms(use_true_random=False))
def test_any_prefix_of_the_file_is_the_state_after_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], rng: Any
) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    memory, journal = attach(path, now=time.time)
    states = [state(memory)]
    for step in steps:
        version = memory.version
        asyncio.run(do(memory, step))
        if memory.version != version:
            states.append(state(memory))
    journal.close()
    data = path.read_bytes()
    cut = rng.randint(0, len(data))
    path.write_bytes(data[:cut])
    again, journal = attach(path, now=time.time)
    assert state(again) == states[data[:cut].count(b"\n")]
    asyncio.run(do(again, ("create", 9, 1)))
    journal.close()
    assert state(attach(path, now=time.time)[0]) == state(again)


def test_a_broken_line_in_the_middle_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)
    for n in range(3):
        asyncio.run(memory.create(a_map(f"m{n}", n)))
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"put": {"kind"}\n' + lines[2])
    with pytest.raises(JournalCorrupt, match="line 2 is broken"):
        replay(path)


def test_versions_go_on_after_a_restart_also_when_the_newest_object_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)
    asyncio.run(memory.create(a_map("a", 1)))
    asyncio.run(memory.delete("ConfigMap", "default", "a"))
    journal.close()
    again, _ = attach(path, now=time.time)
    assert again.version == memory.version


def test_a_long_journal_is_rewritten_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    memory, journal = attach(path, now=time.time)
    asyncio.run(memory.create(a_map("a", 0)))

    async def churn() -> None:
        for n in range(1200):
            await memory.put(a_map("a", n + 1))

    asyncio.run(churn())
    journal.close()
    size = path.stat().st_size
    again, journal = attach(path, now=time.time)
    assert state(again) == state(memory)
    assert again.version == memory.version
    assert path.stat().st_size < size / 100
    journal.close()
    assert json.loads(path.read_text().splitlines()[0])["put"]["data"]["v"] == "1200"
