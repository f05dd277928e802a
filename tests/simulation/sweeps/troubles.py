"""The table of what can go wrong: for each kind how many places there are in a story, and the trouble at each of them.

A place is a number; the same number is the same trouble, so that what went wrong can be told again.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

from faults import Call, Fault, LaggingSource, LossySource
from simulation.sweeps.history import History, Telling
from simulation.sweeps.runner import Life, Trouble
from trialkeeper_operator.reconcile.ports import Cluster, Object, Source

REVISIONS = 20  # by which what an operator reads after its start may be old
CATCHES_UP = 30.0  # seconds until its watch has told of what came after that
JUMP = 1800.0  # seconds by which a clock is set
PAIRS = 200  # interleavings of two leaders
LAGS = (0.0, 0.0, 0.0, 0.02, 0.5, 4.0)  # seconds that a call or an event may be late where two lead


class Kind(NamedTuple):
    """A kind of trouble. `places`: how many there are in a story that has gone well."""

    places: Callable[[Life], int]
    at: Callable[[int], Trouble]


class _Nth:
    """Does something to the n-th write of a story, and nothing to any other."""

    def __init__(self, number: int, fault: Fault) -> None:
        self._number, self._fault = number, fault
        self._writes = itertools.count()

    def __call__(self, call: Call) -> Fault | None:
        return self._fault if call.writes and next(self._writes) == self._number else None


def _to_write(fault: Fault) -> Kind:
    return Kind(lambda life: life.writes, lambda place: Trouble(fault=_Nth(place, fault)))


def _stale(place: int) -> Trouble:
    """The operator dies after a write, and the next one begins with what was there some revisions ago."""
    write, behind = divmod(place, REVISIONS)

    def source(history: History, life: int) -> Source:
        return Telling(history, behind + 1, CATCHES_UP) if life else Telling(history)

    return Trouble(fault=_Nth(write, Fault.CRASH_AFTER), source=source)


def _dropped(place: int) -> Trouble:
    told = itertools.count()
    return Trouble(source=lambda history, life: LossySource(Telling(history), lambda _: next(told) == place))


def _jump(seconds: float) -> Kind:
    """The operator's clock is set at a write, and stays so."""

    def at(place: int) -> Trouble:
        nth, ahead = _Nth(place, Fault.CONFLICT), [0.0]

        def fault(call: Call) -> None:
            ahead[0] = seconds if nth(call) else ahead[0]

        return Trouble(fault=fault, ahead=lambda: ahead[0])

    return Kind(lambda life: life.writes, at)


class Late:
    """A Cluster whose calls take their time, before and after they are carried out."""

    def __init__(self, inner: Cluster, rng: random.Random) -> None:
        self._inner, self._rng = inner, rng

    async def _late(self) -> None:
        await asyncio.sleep(self._rng.choice(LAGS))

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        await self._late()
        found = await self._inner.get(kind, namespace, name)
        await self._late()
        return found

    async def list(
        self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Object]:
        await self._late()
        found = [obj async for obj in self._inner.list(kind, namespace, labels)]
        await self._late()
        for obj in found:
            yield obj

    async def create(self, body: Object, *, dry_run: bool = False) -> Object:
        await self._late()
        created = await self._inner.create(body, dry_run=dry_run)
        await self._late()
        return created

    async def put(self, body: Object) -> Object:
        await self._late()
        written = await self._inner.put(body)
        await self._late()
        return written

    async def put_status(self, body: Object) -> Object:
        await self._late()
        written = await self._inner.put_status(body)
        await self._late()
        return written

    async def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        version: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        await self._late()
        await self._inner.delete(kind, namespace, name, uid=uid, version=version, grace_seconds=grace_seconds)
        await self._late()


def _two_leaders(place: int) -> Trouble:
    rng = random.Random(place)

    def source(history: History, life: int) -> Source:
        return LaggingSource(Telling(history), lambda _: rng.choice(LAGS))

    return Trouble(source=source, cluster=lambda inner: Late(inner, rng), leaders=2)


KINDS: dict[str, Kind] = {
    "crash before a write": _to_write(Fault.CRASH_BEFORE),
    "crash after a write": _to_write(Fault.CRASH_AFTER),
    "409": _to_write(Fault.CONFLICT),
    "429": _to_write(Fault.THROTTLED),
    "500": _to_write(Fault.UNAVAILABLE),
    "504, but applied": _to_write(Fault.APPLIED_UNAVAILABLE),
    "stale after a restart": Kind(lambda life: life.writes * REVISIONS, _stale),
    "an event dropped": Kind(lambda life: life.events, _dropped),
    "two leaders": Kind(lambda life: PAIRS, _two_leaders),
    "clock set forward": _jump(JUMP),
    "clock set back": _jump(-JUMP),
}
