"""Scenarios of the simulation on a real API server behind a proxy that fails: each ends as the simulation says."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from cluster.conftest import Play
from cluster.plane import Plane
from cluster.sweeps.telling import Broken, Told, told
from faults import Call, Fault
from simulation.sweeps.ends import wrong
from simulation.sweeps.runner import Life, Trouble, live
from simulation.sweeps.scenarios import SCENARIOS, Scenario
from simulation.sweeps.surroundings import Errors
from simulation.trainer import Script

# Those that need no wait of minutes: what is tried is how the API server answers.
STORIES = ("plain", "preempted", "killed", "paused, and gone on with", "stopped by hand", "target reached", "deleted")
TROUBLES = 5  # in each story
AT_ONCE = 6  # tellings at the same time
FAULTS = (
    Fault.CONFLICT,
    Fault.THROTTLED,
    Fault.UNAVAILABLE,
    Fault.APPLIED_UNAVAILABLE,
    Fault.CRASH_BEFORE,
    Fault.CRASH_AFTER,
)


def patient(plot: Scenario) -> Scenario:
    """The story with trainers that do not end by themselves while a person waits for somebody to hear of a wish."""

    def longer(script: Script) -> Script:
        asked = any(what in ("pause", "stop") for _, what in script.mishaps.values())
        return replace(script, iterations=max(script.iterations, 16)) if asked else script

    return replace(plot, scripts=tuple(map(longer, plot.scripts)))


class Place(NamedTuple):
    """A trouble, and whether it was met."""

    kind: str
    broken: Broken
    met: Callable[[], bool]


def to_write(kind: str, fault: Fault, number: int) -> Place:
    """A fault of the write of this number."""
    writes, met = itertools.count(), []

    def decide(call: Call) -> Fault | None:
        if not call.writes or next(writes) != number:
            return None
        met.append(call)
        return fault

    return Place(f"{kind} / {number}", Broken(fault=decide), lambda: bool(met))


def dropped(number: int) -> Place:
    """An event that the operator's watch never tells; what a watch begins with is not counted."""
    events, met = itertools.count(), []

    def drop(event: dict[str, Any]) -> bool:
        if next(events) != number:
            return False
        met.append(event)
        return True

    return Place(f"an event dropped / {number}", Broken(drop=drop), lambda: bool(met))


def places(story: str, model: Life) -> list[Place]:
    """A handful: other troubles in each story, at other writes, so that together they meet every kind of both."""
    first, half = STORIES.index(story), model.writes // 2
    writes = [to_write(f.name, f, (first + 1 + half * n // len(FAULTS)) % half) for n, f in enumerate(FAULTS)]
    breaking = Place("watches that break", Broken(closes=True), lambda: True)
    troubles = [*writes, dropped(2 * first + 3), breaking]
    return [
        Place("no trouble", Broken(), lambda: True),
        *(troubles[(first + 3 * n) % len(troubles)] for n in range(TROUBLES)),
    ]


def lines(life: Told, model: Life, place: Place) -> list[str]:
    said = wrong(life, model) + ([] if place.met() else ["its trouble was not met"])
    return [f"--- {place.kind}", *life.trace, *said] if said else []


@pytest.mark.timeout(240)
@pytest.mark.parametrize("story", STORIES)
def test_a_story_ends_on_a_real_api_server_as_in_the_simulation(story: str, play: Play) -> None:
    plot, errors = patient(SCENARIOS[story]), Errors()
    model = live(plot, Trouble())

    async def tell(plane: Plane) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(place: Place) -> list[str]:
            async with room:
                return lines(await told(plane, plot, place.broken), model, place)

        said = await asyncio.gather(*map(one, places(story, model)))
        assert not (wrongs := list(itertools.chain(*said))), "\n".join(wrongs)

    logger = logging.getLogger("trialkeeper_operator")
    logger.addHandler(errors)
    try:
        play(tell)
    finally:
        logger.removeHandler(errors)
    assert errors.found == []
