"""TPE: better than chance, a function of the log alone, and not to be upset by what the log holds."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import EPOCHS, HIDDEN, LR, MOMENTUM, OPTIMIZER, space
from trialkeeper_operator.search.question import Asked, Question
from trialkeeper_operator.search.space import Space, fits
from trialkeeper_operator.search.suggest import suggest

X = {"name": "x", "float": {"min": 0, "max": 1}}
NESTEROV = {"name": "nesterov", "choice": {"values": [True, False]}, "when": {"parameter": "optimizer", "in": ["sgd"]}}


ALL = space(LR, HIDDEN, OPTIMIZER, MOMENTUM, NESTEROV, EPOCHS)


def asked(
    of: Space, index: int, log: list[Asked], cache: dict[str, Any] | None = None, seed: int = 7
) -> dict[str, Any]:
    question = Question(of, log, seed, index, {"startupTrials": 4}, {} if cache is None else cache)
    return suggest("TPE", question).parameters


def complete(of: Space, number: int, *values: float) -> list[Asked]:
    """A log of trials at random points that all gave the same."""
    points = (suggest("Random", Question(of, [], 7, i, {}, {})).parameters for i in range(number))
    return [Asked(i, p, "complete", values) for i, p in enumerate(points)]


def searched(algorithm: str, seed: int, sign: float) -> float:
    """The best of 40 trials on a bowl, or on its mirror image upside down."""
    of = space(LR, X, directions=("Minimize" if sign > 0 else "Maximize",))
    log: list[Asked] = []
    cache: dict[str, Any] = {}
    for index in range(40):
        p = suggest(algorithm, Question(of, log, seed, index, {}, cache)).parameters
        value = (math.log10(p["lr"]) + 3) ** 2 + (p["x"] - 0.3) ** 2 * 10
        log.append(Asked(index, p, "complete", (sign * value,)))
    return min(sign * a.values[0] for a in log if a.values)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_tpe_finds_better_points_than_random(sign: float) -> None:
    ours = statistics.median(searched("TPE", seed, sign) for seed in range(5))
    assert ours < statistics.median(searched("Random", seed, sign) for seed in range(5)) / 2


LOGGED = {"name": "n", "int": {"min": 1, "max": 99, "scale": "Log"}}
SOME: list[dict[str, Any]] = [LR, X, HIDDEN, LOGGED, OPTIMIZER, EPOCHS]
OPEN_SPACES = st.lists(st.sampled_from(SOME), min_size=1, unique_by=lambda p: str(p["name"])).map(
    lambda ps: space(*ps, *([MOMENTUM, NESTEROV] if OPTIMIZER in ps else []))
)
FATES = st.lists(st.tuples(st.integers(0, 5), st.floats(-1e300, 1e300) | st.none()), min_size=20, max_size=20)


@settings(max_examples=30, deadline=None)
@given(OPEN_SPACES, FATES, st.integers(0, 2**40))
def test_a_rebuilt_study_suggests_what_the_kept_one_does(
    of: Space, fates: list[tuple[int, float | None]], seed: int
) -> None:
    """Trials run side by side and end in any order, some of them without a result."""
    log: list[Asked] = []
    cache: dict[str, Any] = {}
    for index, (which, value) in enumerate(fates):
        kept = asked(of, index, log, cache, seed)
        assert fits(of, kept) == []
        assert kept == asked(of, index, list(log), None, seed)
        log.append(Asked(index, kept, "running"))
        running = [a.index for a in log if a.state == "running"]
        if which < len(running):
            done = log[running[which]]
            state, values = ("failed", None) if value is None else ("complete", (value,))
            log[done.index] = Asked(done.index, done.parameters, state, values)  # type: ignore[arg-type]


def test_a_study_of_another_space_or_of_a_log_that_changed_its_past_is_not_used() -> None:
    cache: dict[str, Any] = {}
    log = complete(ALL, 8, 1.0)
    asked(ALL, 8, log, cache)
    other = space(LR, X)
    assert asked(other, 8, complete(other, 8, 1.0), cache) == asked(other, 8, complete(other, 8, 1.0))
    past = [Asked(a.index, a.parameters, "complete", (float(a.index),)) for a in log]
    assert asked(ALL, 8, log, cache) == asked(ALL, 8, log)
    assert asked(ALL, 8, past, cache) == asked(ALL, 8, past)
    assert asked(ALL, 5, past[:5], cache) == asked(ALL, 5, past[:5])


def test_a_suggestion_does_not_depend_on_how_often_the_study_was_asked() -> None:
    log, cache = complete(ALL, 8, 1.0), dict[str, Any]()
    first = asked(ALL, 8, log, cache)
    assert [asked(ALL, i, log, cache) for i in (9, 8, 10, 8)][1::2] == [first, first]


PROGRAM = """
from trialkeeper_operator.api.parameters import Parameter
from trialkeeper_operator.search.question import Asked, Question
from trialkeeper_operator.search.space import Space
from trialkeeper_operator.search.suggest import suggest
choice = {"name": "b", "choice": {"values": ["x", "y"]}}
hung = [{"name": n, "float": {"min": 0, "max": 1}, "when": {"parameter": "b", "in": ["x"]}} for n in "cde"]
space = Space(tuple(map(Parameter.model_validate, [{"name": "a", "float": {"min": 0, "max": 1}}, choice, *hung])))
log = [Asked(i, suggest("Random", Question(space, [], 1, i, {}, {})).parameters, "complete", (i,)) for i in range(12)]
for index in range(12, 18):
    print(suggest("TPE", Question(space, log, 1, index, {}, {})).parameters)
"""


def test_another_process_suggests_the_same() -> None:
    """Whatever the order of its sets of texts is."""
    said = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert said[0].count("'a'") == 6


NO_RESULTS = {"NaN": (math.nan,), "inf": (math.inf,), "none": (), "two": (1.0, 2.0), "absent": None}


@pytest.mark.parametrize("values", NO_RESULTS.values(), ids=NO_RESULTS)
def test_results_that_are_none_upset_nobody(values: tuple[float, ...] | None) -> None:
    log = [*complete(ALL, 6, 1.0), *(Asked(i, {"lr": 0.01}, "complete", values) for i in range(6, 9))]
    assert fits(ALL, asked(ALL, 9, log)) == []
    assert fits(ALL, asked(ALL, 9, log[6:])) == []


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"lr": 11.0, "hidden": 9, "optimizer": "lion"},
        {"lr": "fast", "hidden": None, "optimizer": ["sgd"]},
        {"lr": math.nan, "hidden": math.inf, "optimizer": {}},
        {"lr": 0.01, "hidden": 64.0, "optimizer": "adam", "momentum": 0.5, "stranger": 1},
    ],
)
def test_parameters_of_trials_that_people_wrote_upset_nobody(parameters: dict[str, Any]) -> None:
    log = [*complete(ALL, 6, 1.0), *(Asked(i, parameters, "complete", (0.5,)) for i in range(6, 9))]
    assert fits(ALL, asked(ALL, 9, log)) == []


EXTREME = [
    {"name": "i", "int": {"min": -(2**53), "max": 2**53}},
    {"name": "s", "int": {"min": -(2**53) + 1, "max": 2**53, "step": 3}},
    {"name": "l", "int": {"min": 1, "max": 2**53, "scale": "Log"}},
    {"name": "f", "float": {"min": -1e18, "max": 1e18}},
    {"name": "t", "float": {"min": 5e-324, "max": 1e18, "scale": "Log"}},
    {"name": "c", "choice": {"values": ["one"]}},
    {"name": "n", "float": {"min": 0.1, "max": 0.3, "step": 1e-6}},
]


@pytest.mark.parametrize("directions", [("Minimize",), ("Maximize", "Minimize", "Maximize", "Minimize")])
def test_extreme_bounds_and_results_are_no_trouble(directions: tuple[str, ...]) -> None:
    of = space(*EXTREME, directions=directions)
    log: list[Asked] = []
    cache: dict[str, Any] = {}
    for index in range(20):
        found = asked(of, index, log, cache)
        assert fits(of, found) == []
        sign = (-1.0) ** index
        log.append(Asked(index, found, "complete", tuple(sign * 1.7e308 for _ in directions)))


def test_four_objectives_draw_the_search_to_where_none_is_worse() -> None:
    of = space(X, {"name": "y", "float": {"min": 0, "max": 1}}, directions=("Minimize", "Maximize") * 2)

    def near(p: Mapping[str, Any]) -> float:
        return abs(float(p["x"]) - 0.2) + abs(float(p["y"]) - 0.7)

    log: list[Asked] = []
    cache: dict[str, Any] = {}
    for index in range(60):
        p = asked(of, index, log, cache)
        log.append(Asked(index, p, "complete", (near(p), -near(p), p["x"] + 10 * near(p), -near(p))))
    late = statistics.median(near(a.parameters) for a in log[30:])
    assert late < statistics.median(near(a.parameters) for a in complete(of, 60)) * 0.75


def test_what_others_have_set_in_optuna_stays() -> None:
    before, filters = optuna.logging.get_verbosity(), list(warnings.filters)
    asked(ALL, 8, complete(ALL, 8, 1.0))
    assert (optuna.logging.get_verbosity(), list(warnings.filters)) == (before, filters)


def test_nothing_is_said_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    asked(ALL, 8, complete(ALL, 8, 1.0))
    assert capsys.readouterr() == ("", "")
