"""The table of what can go wrong: for each kind how many places there are in a story, and the trouble at each of them.

A place is a number; the same number is the same trouble, so that what went wrong can be told again.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from faults import Call, Fault, FaultyCluster, LaggingSource, LossySource
from simulation.sweeps.history import History, Telling
from simulation.sweeps.runner import Life, Trouble
from trialkeeper_operator.reconcile.ports import Cluster, Source

T = TypeVar("T")

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


class Late(FaultyCluster):
    """A Cluster whose calls take their time, before and after they are carried out."""

    def __init__(self, inner: Cluster, rng: random.Random) -> None:
        super().__init__(inner, lambda call: None)
        self._rng = rng

    async def _call(self, verb: str, kind: str, name: str, doing: Callable[[], Awaitable[T]]) -> T:
        await asyncio.sleep(self._rng.choice(LAGS))
        done = await super()._call(verb, kind, name, doing)
        await asyncio.sleep(self._rng.choice(LAGS))
        return done


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
