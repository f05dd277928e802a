"""Every scenario with every trouble at every place: the same end, the invariants at every step, no error.

A run of all suites takes some of the places, in turns that are prime to what repeats; TRIALKEEPER_SWEEPS=all takes all
of them, and TRIALKEEPER_SWEEP="preempted / 409 / 17" one, as the trace of one that went wrong says.
"""

from __future__ import annotations

import os
from functools import cache

import pytest

from simulation.sweeps.ends import wrong
from simulation.sweeps.runner import Life, Trouble, live
from simulation.sweeps.scenarios import SCENARIOS
from simulation.sweeps.troubles import KINDS

ALL = os.environ.get("TRIALKEEPER_SWEEPS") == "all"
ONE = os.environ.get("TRIALKEEPER_SWEEP", "").split(" / ")
SHARE = 4  # places of each scenario and kind in a run of all suites

CASES = [(scenario, kind) for scenario in SCENARIOS for kind in KINDS if len(ONE) != 3 or [scenario, kind] == ONE[:2]]


@cache
def model(scenario: str) -> Life:
    """The scenario without any trouble."""
    return live(SCENARIOS[scenario], Trouble())


def places(scenario: str, kind: str) -> range:
    """Where a trouble of this kind is tried."""
    if len(ONE) == 3:
        return range(int(ONE[2]), int(ONE[2]) + 1)
    number = KINDS[kind].places(model(scenario))
    step = 1 if ALL else max(1, number // SHARE)
    # Where it begins differs from case to case, so that together they meet every write of a common story.
    return range(CASES.index((scenario, kind)) % step, number, step)


def verdict(scenario: str, kind: str, place: int) -> str:
    """Empty if all is well; else what a person needs to see what happened, and how to see it again."""
    life = live(SCENARIOS[scenario], KINDS[kind].at(place))
    lines = wrong(life, model(scenario))
    if not lines:
        return ""
    again = f'again: TRIALKEEPER_SWEEP="{scenario} / {kind} / {place}" .venv/bin/pytest tests/simulation/sweeps'
    return "\n".join([f"{scenario} / {kind} / {place}", *life.trace, *lines, again])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_without_trouble_each_scenario_ends_as_it_says(scenario: str) -> None:
    life = model(scenario)
    assert not (lines := wrong(life)), "\n".join([*life.trace, *lines])
    assert tuple(trial.classes for trial in life.end().trials) == SCENARIOS[scenario].endings


@pytest.mark.timeout(3600 if ALL else 120)
@pytest.mark.parametrize(("scenario", "kind"), CASES)
def test_a_trouble_changes_nothing(scenario: str, kind: str) -> None:
    for place in places(scenario, kind):
        assert not (said := verdict(scenario, kind, place)), said


def test_the_same_place_is_the_same_story() -> None:
    for scenario, kind, place in (("preempted", "two leaders", 3), ("restored", "stale after a restart", 101)):
        one, other = (live(SCENARIOS[scenario], KINDS[kind].at(place)) for _ in range(2))
        assert one.trace == other.trace
