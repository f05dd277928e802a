"""Thousands of stories: real reconcilers in virtual time, kills, restarts, faults; the invariants hold in all.

TRIALKEEPER_SEEDS=100000 tells more of them, TRIALKEEPER_SEED=4711 one, with its trace.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import pytest

from simulation.invariants import judge
from simulation.scenario import LIMIT, Plot, Story, draw, draw_by_hand, draw_groups, draw_restores, tell
from simulation.virtual import run

SEEDS = int(os.environ.get("TRIALKEEPER_SEEDS", "2000"))
ONE = os.environ.get("TRIALKEEPER_SEED")
BATCH = 100


def story_of(seed: int, plot: Callable[[int], Plot] = draw) -> Story:
    return run(tell(plot(seed)), limit=LIMIT)


def verdict(seed: int, plot: Callable[[int], Plot] = draw) -> str:
    """Empty if the story of this seed ends well; else what a person needs to see what happened."""
    story = story_of(seed, plot)
    wrong = judge(story)
    if not wrong:
        return ""
    again = f"again: TRIALKEEPER_SEED={seed} .venv/bin/pytest tests/simulation/test_seeds.py"
    return "\n".join([f"seed {seed}: {story.plot}", *story.trace, *wrong, again])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("plot", [draw, draw_restores, draw_by_hand, draw_groups])
@pytest.mark.parametrize("first", [int(ONE)] if ONE else range(0, SEEDS, BATCH))
def test_every_story_ends_well(first: int, plot: Callable[[int], Plot], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    seeds = SEEDS // (1 if plot is draw else 10 if plot is draw_restores else 4)  # those with more in them take longer
    for seed in [first] if ONE else range(first, min(first + BATCH, seeds)):
        said = verdict(seed, plot)
        assert not said, said
        errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
        assert not errors, f"seed {seed}: {errors[0].getMessage()}\n{errors[0].exc_text}"


def test_the_stories_by_hand_are_about_something() -> None:
    """The seeds together meet rests, tries, and forks that went on to their end."""
    stories = [story_of(seed, draw_by_hand) for seed in range(40)]
    trials = [t for s in stories for t in s.trials]
    assert sum(t["status"].get("reason") == "Completed" and "fork" in t["spec"] for t in trials) > 10
    assert sum("retried" in t["status"] for t in trials) > 5
    rests = [h for t in trials for h in t["status"]["history"] if h["reason"] in ("Suspended", "Desired")]
    assert len(rests) > 20


def test_the_stories_of_groups_are_about_something() -> None:
    """The seeds together meet ends of rank 0 and of others, of every class, and attempts that went on after them."""
    stories = [story_of(seed, draw_groups) for seed in range(60)]
    ends = [h for s in stories for t in s.trials for h in t["status"]["history"]]
    others = [h for h in ends if h.get("rank", 0)]
    assert {h["class"] for h in others} >= {"Preempted", "Infrastructure"}
    assert sum(h["class"] == "Failed" for h in ends) > 5
    assert (
        sum(t["status"]["phase"] == "Succeeded" and t["status"]["closed"] > 1 for s in stories for t in s.trials) > 10
    )


def test_the_same_seed_tells_the_same_story() -> None:
    for seed in (3, 17, 99):
        assert story_of(seed).trace == story_of(seed).trace


def test_the_stories_are_about_something() -> None:
    """The seeds together meet each phase, resumes with lost work, crashes and restarts of the operator."""
    stories = [story_of(seed) for seed in range(60)]
    phases = {t["status"]["phase"] for s in stories for t in s.trials}
    assert phases == {"Succeeded", "Failed", "Stopped"}
    assert sum(t["status"].get("lostWork", {}).get("iterations", 0) > 0 for s in stories for t in s.trials) > 10
    assert sum("operator crashed" in line for s in stories for line in s.trace) > 10
    assert sum(min(s.node.mtbf, default=1e9) < 21_600 / 2 for s in stories) > 10
    assert sum("operator restarted" in line for s in stories for line in s.trace) > 10
