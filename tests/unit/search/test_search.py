"""The search: suggestions fit their space, depend on nothing but their arguments, and get better."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trialkeeper_operator.api.parameters import Parameter
from trialkeeper_operator.search import grid
from trialkeeper_operator.search.question import Asked, Question, SearchExhausted
from trialkeeper_operator.search.space import Space, fits
from trialkeeper_operator.search.suggest import suggest, with_given


def space(*parameters: dict[str, Any], directions: tuple[str, ...] = ("Minimize",)) -> Space:
    return Space(tuple(Parameter.model_validate(p) for p in parameters), directions)


LR = {"name": "lr", "float": {"min": 1e-5, "max": 0.1, "scale": "Log"}}
HIDDEN = {"name": "hidden", "int": {"min": 8, "max": 128, "step": 8}}
OPTIMIZER = {"name": "optimizer", "choice": {"values": ["sgd", "adam", 1, True, "1"]}}
MOMENTUM = {
    "name": "momentum",
    "float": {"min": 0, "max": 0.9, "step": 0.1},
    "when": {"parameter": "optimizer", "in": ["sgd", 1]},
}
EPOCHS = {"name": "epochs", "fixed": 20}
ALL = space(LR, HIDDEN, OPTIMIZER, MOMENTUM, EPOCHS)


def asked(
    of: Space, algorithm: str, index: int, log: list[Asked] | None = None, cache: Any = None, seed: int = 7
) -> dict[str, Any]:
    question = Question(
        of,
        log or [],
        seed,
        index,
        {"startupTrials": 4} if algorithm == "TPE" else {},
        cache if cache is not None else {},
    )
    return suggest(algorithm, question).parameters


def test_random_is_pinned_for_ever() -> None:
    assert [asked(ALL, "Random", i) for i in range(3)] == [
        {"lr": 0.04693839600659525, "hidden": 64, "optimizer": "1", "epochs": 20},
        {"lr": 0.020177057983186714, "hidden": 56, "optimizer": "sgd", "momentum": 0.2, "epochs": 20},
        {"lr": 0.006405669120235736, "hidden": 80, "optimizer": 1, "momentum": 0.6, "epochs": 20},
    ]
    assert asked(ALL, "Random", 5) == asked(ALL, "Random", 5)
    assert asked(ALL, "Random", 5) != asked(ALL, "Random", 6)
    assert asked(ALL, "Random", 5) != asked(ALL, "Random", 5, seed=8)


@pytest.mark.parametrize("algorithm", ["Random", "QMC", "TPE"])
def test_every_suggestion_fits_its_space(algorithm: str) -> None:
    log: list[Asked] = []
    cache: dict[str, Any] = {}
    for index in range(40):
        parameters = asked(ALL, algorithm, index, log, cache)
        assert fits(ALL, parameters) == []
        assert list(parameters) == [p.name for p in ALL.parameters if p.name in parameters]
        log.append(Asked(index, parameters, "complete", (abs(parameters["lr"] - 0.01),)))


def numbers(low: float, high: float) -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.tuples(st.floats(low, high), st.floats(low, high)).filter(lambda b: b[0] < b[1])
    return bounds.map(lambda b: {"min": b[0], "max": b[1]})


KINDS = st.one_of(
    numbers(-1e6, 1e6).map(lambda b: {"float": b}),
    numbers(1e-6, 1e6).map(lambda b: {"float": {**b, "scale": "Log"}}),
    st.tuples(st.integers(-50, 50), st.integers(1, 100), st.integers(1, 7)).map(
        lambda t: {"int": {"min": t[0], "max": t[0] + t[1] + t[2], "step": t[2]}}
    ),
    st.tuples(st.integers(1, 50), st.integers(1, 1000)).map(
        lambda t: {"int": {"min": t[0], "max": t[0] + t[1], "scale": "Log"}}
    ),
    st.tuples(st.integers(-20, 20), st.integers(1, 30), st.sampled_from([0.1, 0.25, 0.05, 1.5])).map(
        lambda t: {"float": {"min": t[0] / 10, "max": t[0] / 10 + t[1] * t[2], "step": t[2]}}
    ),
    st.lists(st.one_of(st.booleans(), st.integers(), st.text(max_size=5)), min_size=1, max_size=6, unique_by=repr).map(
        lambda v: {"choice": {"values": v}}
    ),
)
SPACES = st.lists(KINDS, min_size=1, max_size=5).map(
    lambda ks: space(*({"name": f"p{i}", **k} for i, k in enumerate(ks)))
)


@settings(max_examples=150, deadline=None)
@given(SPACES, st.sampled_from(["Random", "QMC"]), st.integers(0, 2**40), st.integers(0, 5000))
def test_suggestions_of_any_space_fit_it(of: Space, algorithm: str, seed: int, index: int) -> None:
    found = asked(of, algorithm, index, seed=seed)
    assert fits(of, found) == []
    for parameter in of.parameters:
        if parameter.int_:
            assert type(found[parameter.name]) is int
        if parameter.float_ and parameter.float_.step:
            assert len(repr(found[parameter.name])) < 12, "binary noise"


def test_sobol_goes_on_where_it_was_and_repeats_nothing() -> None:
    of = space(LR, {"name": "x", "float": {"min": 0, "max": 1}})
    points = [tuple(asked(of, "QMC", i).values()) for i in range(200)]
    assert len(set(points)) == 200
    assert tuple(asked(of, "QMC", 150).values()) == points[150]
    spread = sorted(p[1] for p in points[:64])
    assert max(b - a for a, b in itertools.pairwise(spread)) < 2 / 64


def test_a_grid_has_each_point_once_the_last_fastest() -> None:
    of = space(
        {"name": "a", "choice": {"values": ["x", "y"]}},
        {"name": "b", "int": {"min": 1, "max": 3}, "when": {"parameter": "a", "in": ["x"]}},
        {"name": "c", "float": {"min": 0, "max": 0.3, "step": 0.1}},
    )
    assert grid.size(of) == (3 + 1) * 4
    points = [asked(of, "Grid", i) for i in range(16)]
    assert points[:5] == [
        {"a": "x", "b": 1, "c": 0.0},
        {"a": "x", "b": 1, "c": 0.1},
        {"a": "x", "b": 1, "c": 0.2},
        {"a": "x", "b": 1, "c": 0.3},
        {"a": "x", "b": 2, "c": 0.0},
    ]
    assert points[12] == {"a": "y", "c": 0.0}
    assert len({repr(p) for p in points}) == 16
    with pytest.raises(SearchExhausted):
        asked(of, "Grid", 16)
    assert grid.size(ALL) is None


def objective(parameters: dict[str, Any]) -> float:
    return float((math.log10(parameters["lr"]) + 3) ** 2 + (parameters["x"] - 0.3) ** 2 * 10)


def best(algorithm: str, seed: int) -> float:
    of = space(LR, {"name": "x", "float": {"min": 0, "max": 1}})
    log: list[Asked] = []
    cache: dict[str, Any] = {}
    for index in range(40):
        parameters = asked(of, algorithm, index, log, cache, seed)
        log.append(Asked(index, parameters, "complete", (objective(parameters),)))
    return min(a.values[0] for a in log if a.values)


def test_tpe_finds_better_points_than_random() -> None:
    ours = statistics.median(best("TPE", seed) for seed in range(5))
    assert ours < statistics.median(best("Random", seed) for seed in range(5)) / 2


def test_a_rebuilt_study_suggests_what_the_kept_one_does() -> None:
    """Trials run side by side and end in another order; some fail; one was enqueued by a person."""
    log: list[Asked] = []
    cache: dict[str, Any] = {}
    for index in range(30):
        kept = asked(ALL, "TPE", index, log, cache)
        assert kept == asked(ALL, "TPE", index, log), index
        if index == 9:
            kept = {**kept, "lr": 0.02}
        log.append(Asked(index, kept, "running"))
        if index >= 3 and index % 3 == 0:
            for done in (index - 1, index - 3, index - 2):
                state = "failed" if done % 7 == 0 else "complete"
                values = (abs(log[done].parameters["lr"] - 0.01),) if state == "complete" else None
                log[done] = Asked(done, log[done].parameters, state, values)  # type: ignore[arg-type]


def test_four_objectives() -> None:
    of = space(LR, HIDDEN, directions=("Minimize", "Maximize", "Minimize", "Maximize"))
    log: list[Asked] = []
    cache: dict[str, Any] = {}
    for index in range(15):
        p = asked(of, "TPE", index, log, cache)
        log.append(Asked(index, p, "complete", (p["lr"], p["hidden"], -p["lr"], 1.0)))
    assert fits(of, asked(of, "TPE", 15, log, cache)) == []


def test_given_values_are_taken_and_the_rest_is_suggested() -> None:
    suggestion = suggest("Random", Question(ALL, [], 7, 0, {}, {}))
    found = with_given(ALL, {"lr": 0.05, "optimizer": "sgd"}, suggestion).parameters
    assert (found["lr"], found["optimizer"], found["hidden"]) == (0.05, "sgd", suggestion.parameters["hidden"])
    assert fits(ALL, found) == []


def test_one_and_true_and_the_text_one_are_three_values() -> None:
    of = space({"name": "c", "choice": {"values": [1, True, "1"]}})
    assert fits(of, {"c": 1}) == fits(of, {"c": True}) == fits(of, {"c": "1"}) == []
    assert fits(of, {"c": "true"}) == ["c must be one of 1, True, '1'"]
    log = [Asked(i, {"c": c}, "complete", (float(i),)) for i, c in enumerate([1, True, "1", True])]
    assert type(asked(of, "TPE", 10, log)["c"]) in (int, bool, str)


def test_a_huge_grid_is_counted_at_once() -> None:
    many = [{"name": f"c{i}", "choice": {"values": list(range(10))}} for i in range(12)]
    of = space(*many, {"name": "m", "int": {"min": 1, "max": 4}, "when": {"parameter": "c0", "in": [3]}})
    assert grid.size(of) == 10**11 * (9 + 4)
    assert asked(of, "Grid", 10**11 * 13 - 1)["c0"] == 9
