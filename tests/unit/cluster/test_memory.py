"""What is the memory cluster's own: its clock and uids are given, JSON is all it holds, nothing leaks in or out."""

from __future__ import annotations

import asyncio
import enum
import itertools
import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.bench import Bench, reference
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.cluster.body import copy
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import Invalid, Object

NOW = 1_700_000_000.25


def bench(memory: Memory) -> Bench:
    return Bench(memory, memory, memory.bind, "default")


def test_clock_and_uids_are_those_that_were_given() -> None:
    async def story() -> list[Object]:
        numbers = itertools.count(1)
        at = bench(Memory(now=lambda: NOW, ids=lambda: f"uid-{next(numbers)}"))
        await at.running_pod(grace=10)
        await at.delete("Pod", "p")
        return [await at.get("Pod", "p"), await at.cluster.create(at.config_map())]

    pod, config_map = asyncio.run(story())
    assert pod["metadata"]["uid"] == "uid-1"
    assert pod["metadata"]["creationTimestamp"] == "2023-11-14T22:13:20.250000Z"
    assert pod["metadata"]["deletionTimestamp"] == "2023-11-14T22:13:30.250000Z"
    assert config_map["metadata"]["uid"] == "uid-2"
    assert [o["metadata"]["resourceVersion"] for o in (pod, config_map)] == ["3", "4"]


# Seconds after the first deletion (with 60 s of grace), what is asked for then, and when the pod ends after that.
LESS = [(2.0, 20, 20.0), (2.0, 59, 59.0), (10.0, 10, 10.0), (10.0, 5, 10.0), (10.0, -3, 10.0), (90.0, 40, 90.0)]


@pytest.mark.parametrize(("after", "asked", "end"), LESS)
def test_a_shorter_grace_counts_from_the_first_deletion_and_never_ends_in_the_past(
    after: float, asked: int, end: float
) -> None:
    async def story() -> Object:
        clock = NOW
        at = bench(Memory(now=lambda: clock))
        await at.running_pod(grace=60)
        await at.delete("Pod", "p")
        clock += after
        await at.delete("Pod", "p", grace_seconds=asked)
        return await at.get("Pod", "p")

    assert seconds(asyncio.run(story())["metadata"]["deletionTimestamp"]) - NOW == pytest.approx(end)


def test_the_same_calls_make_the_same_history() -> None:
    async def story() -> list[Any]:
        numbers = itertools.count(1)
        memory = Memory(now=lambda: NOW, ids=lambda: f"uid-{next(numbers)}")
        at, events, history = bench(memory), memory.events(), []
        owner = await memory.create(at.config_map("owner"))
        for n in range(8):
            await memory.create(at.config_map(f"child-{n}", ownerReferences=[reference(owner)]))
        await at.delete("ConfigMap", "owner")
        await memory.create(at.config_map("end"))
        async for event in events:
            history.append(event)
            if event.object["metadata"]["name"] == "end":
                break
        return [*history, *memory.objects()]

    assert asyncio.run(story()) == asyncio.run(story())


class Word(str, enum.Enum):
    ONE = "one"


class Number(enum.IntEnum):
    TWO = 2


class Real(float):
    pass


@pytest.mark.parametrize(
    ("given_", "stored"),
    [
        (Word.ONE, "one"),
        (Number.TWO, 2),
        (Real(0.5), 0.5),
        ((1, [2, (3,)]), [1, [2, [3]]]),
        (MappingProxyType({"a": MappingProxyType({"b": 1})}), {"a": {"b": 1}}),
        ({Word.ONE.value: Word.ONE}, {"one": "one"}),
    ],
)
def test_the_relatives_of_what_json_knows_are_stored_as_json_knows_them(given_: Any, stored: Any) -> None:
    def exactly(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: exactly(v) for k, v in value.items()}
        return [exactly(v) for v in value] if isinstance(value, list) else (type(value), value)

    assert exactly(copy(given_)) == exactly(stored)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, {1: "a"}, {None: "a"}, {"a": {1, 2}}, b"bytes", [object()], {"a": 1j}]
)
def test_what_json_does_not_know_is_refused(value: Any) -> None:
    async def story() -> None:
        memory = Memory(now=time.time)
        body = {"kind": "ConfigMap", "metadata": {"name": "m", "namespace": "default"}, "data": {"v": value}}
        with pytest.raises(Invalid):
            await memory.create(body)
        assert (list(memory.objects()), memory.version) == ([], 0)

    asyncio.run(story())


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_a_copy_equals_its_original_and_shares_nothing_that_can_change(value: Any) -> None:
    def containers(value: Any) -> list[int]:
        below = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        own = [id(value)] if isinstance(value, (dict, list)) else []
        return own + [i for item in below for i in containers(item)]

    copied = copy(value)
    assert copied == value
    assert not set(containers(copied)) & set(containers(value))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"kind": "Node", "metadata": {"name": "n", "namespace": "default"}}, r"'Node' is not served"),
        ({"metadata": {"name": "n", "namespace": "default"}}, r"None is not served"),
        ({"kind": "Pod"}, r"name and namespace are needed"),
        ({"kind": "Pod", "metadata": {"namespace": "default"}}, r"metadata\.name"),
        ({"kind": "Pod", "metadata": {"name": "n"}}, r"metadata\.namespace"),
        ({"kind": "Pod", "metadata": {"name": "../n", "namespace": "default"}}, r"metadata\.name"),
        (
            {"kind": "Pod", "metadata": {"name": "n", "namespace": "default", "finalizers": ["a.b/c"]}},
            r"metadata\.finalizers",
        ),
    ],
)
def test_a_body_that_nobody_could_store_is_refused_with_a_sentence(body: Object, sentence: str) -> None:
    async def story() -> None:
        with pytest.raises(Invalid, match=sentence):
            await Memory(now=time.time).create(body)

    asyncio.run(story())


def test_who_has_stopped_listening_is_forgotten() -> None:
    async def story() -> int:
        memory = Memory(now=time.time)

        async def listen() -> None:
            async for _ in memory.events():
                pass

        for _ in range(3):
            listener = asyncio.ensure_future(listen())
            await asyncio.sleep(0)
            listener.cancel()
            await asyncio.wait({listener})
        return len(memory._watchers)

    assert asyncio.run(story()) == 0


def test_a_write_that_is_not_committed_is_not_seen() -> None:
    class NoRoom(Exception):
        pass

    def commit(*_: Any) -> None:
        raise NoRoom

    async def story() -> None:
        memory = Memory(now=time.time, commit=commit)
        with pytest.raises(NoRoom):
            await memory.create(bench(memory).config_map())
        assert (list(memory.objects()), memory.version) == ([], 0)

    asyncio.run(story())
