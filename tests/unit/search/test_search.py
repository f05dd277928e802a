"""The search: suggestions fit their space and depend on nothing but their arguments."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import EPOCHS, HIDDEN, LR, MOMENTUM, OPTIMIZER, space
from trialkeeper_operator.api.parameters import Parameter
from trialkeeper_operator.search.question import Asked, Question, Suggestion
from trialkeeper_operator.search.space import Space, at, count, fits, nth, where
from trialkeeper_operator.search.suggest import suggest, with_given

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


@pytest.mark.parametrize(
    ("range_", "u", "value"),
    [
        ({"min": 0, "max": 1}, 1 / 3, 0.33333333),
        ({"min": -200, "max": 800}, 2 / 3, 466.66667),
        ({"min": 1e-5, "max": 0.1, "scale": "Log"}, 1 / 3, 0.00021544347),
        ({"min": 1e6, "max": 1e6 + 0.01}, 1 / 3, 1000000.003333333),
        ({"min": 0.1, "max": 0.1000000000001}, 1.0, 0.1000000000001),
        ({"min": 1e-300, "max": 1e18, "scale": "Log"}, 300 / 318, 1.0),
        ({"min": -1e18, "max": 1e18}, 2 / 3, 333333300000000000.0),
    ],
)
def test_a_continuous_value_has_eight_digits(range_: dict[str, Any], u: float, value: float) -> None:
    of = Parameter.model_validate({"name": "x", "float": range_})
    assert at(of, u) == value


def test_random_is_pinned_for_ever() -> None:
    assert [asked(ALL, "Random", i) for i in range(3)] == [
        {"lr": 0.046938396, "hidden": 64, "optimizer": "1", "epochs": 20},
        {"lr": 0.020177058, "hidden": 56, "optimizer": "sgd", "momentum": 0.2, "epochs": 20},
        {"lr": 0.0064056691, "hidden": 80, "optimizer": 1, "momentum": 0.6, "epochs": 20},
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


def test_given_values_are_taken_and_the_rest_is_suggested() -> None:
    suggestion = suggest("Random", Question(ALL, [], 7, 0, {}, {}))
    found = with_given(ALL, {"lr": 0.05, "optimizer": "sgd"}, suggestion).parameters
    assert (found["lr"], found["optimizer"], found["hidden"]) == (0.05, "sgd", suggestion.parameters["hidden"])
    assert fits(ALL, found) == []


def test_one_and_true_and_the_text_one_are_three_values() -> None:
    of = space({"name": "c", "choice": {"values": [1, True, "1"]}})
    assert fits(of, {"c": 1}) == fits(of, {"c": True}) == fits(of, {"c": "1"}) == []
    assert fits(of, {"c": "true"}) == ["c must be one of 1, True, '1'"]


@pytest.mark.parametrize(
    ("value", "clause"), [(math.inf, "a finite number"), (math.nan, "a finite number"), (2.5, "a whole number")]
)
def test_a_number_that_is_none_does_not_fit(value: float, clause: str) -> None:
    of = space({"name": "n", "int": {"min": 1, "max": 9}})
    assert fits(of, {"n": value}) == [f"n must be {clause}"]


def test_given_values_take_the_type_of_their_parameter() -> None:
    of = space(LR, HIDDEN, {"name": "x", "float": {"min": 0, "max": 2}})
    found = with_given(of, {"lr": 0.05, "hidden": 64.0, "x": 1}, Suggestion({})).parameters
    assert [(k, type(v)) for k, v in found.items()] == [("lr", float), ("hidden", int), ("x", float)]


@pytest.mark.parametrize("algorithm", ["Random", "Grid"])
def test_what_needs_no_heavy_package_imports_none(algorithm: str) -> None:
    program = (
        "import sys; from trialkeeper_operator.api.parameters import Parameter;"
        "from trialkeeper_operator.search import check, question, space, suggest;"
        "p = Parameter.model_validate({'name': 'c', 'choice': {'values': [1, 2]}});"
        f"suggest.suggest('{algorithm}', question.Question(space.Space((p,)), [], 0, 0, {{}}, {{}}));"
        "print([m for m in ('optuna', 'scipy', 'numpy') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert said.stdout == "[]\n"


LOGGED = {"name": "n", "int": {"min": 1, "max": 1000, "scale": "Log"}}


@pytest.mark.parametrize("parameter", [LR, LOGGED, HIDDEN, MOMENTUM])
@settings(deadline=None)
@given(u=st.floats(0, 1))
def test_a_number_lies_where_it_came_from(parameter: dict[str, Any], u: float) -> None:
    of = Parameter.model_validate(parameter)
    value = at(of, u)
    assert at(of, where(of, value)) == pytest.approx(value, rel=1e-9)


STEPPED = {
    "tenths": ((0.1, 0.7, 0.1), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
    "an end off the steps": ((0, 1, 0.4), [0.0, 0.4, 0.8]),
    "below zero": ((-0.3, 0.3, 0.3), [-0.3, 0.0, 0.3]),
    "tiny": ((1e-7, 3e-7, 1e-7), [1e-7, 2e-7, 3e-7]),
    "many digits": ((1.23456789012345, 1.234571, 1e-6), [1.23456789012345, 1.23456889012345, 1.23456989012345]),
    "large with a fraction": ((123456789012.25, 123456789013, 0.25), [123456789012.25 + k / 4 for k in range(4)]),
    "large": ((1e17, 1e17 + 64, 32), [1e17, 1e17 + 32, 1e17 + 64]),
}


@pytest.mark.parametrize("case", STEPPED)
def test_stepped_values_are_what_people_would_write(case: str) -> None:
    (low, high, step), wanted = STEPPED[case]
    of = space({"name": "x", "float": {"min": low, "max": high, "step": step}})
    [parameter] = of.parameters
    found = [nth(parameter, k) for k in range(count(parameter) or 0)]
    assert found[: len(wanted)] == wanted
    assert all(fits(of, {"x": value}) == [] for value in found)
