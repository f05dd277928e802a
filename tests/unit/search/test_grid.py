"""The grid: counted without being listed, and the same points in the same order as listing them would give."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import space
from trialkeeper_operator.api.parameters import Parameter
from trialkeeper_operator.search import grid
from trialkeeper_operator.search.question import Question, SearchExhausted
from trialkeeper_operator.search.space import Space, active, count, fits, nth, position
from trialkeeper_operator.search.suggest import suggest


def at(of: Space, index: int) -> dict[str, Any]:
    return suggest("Grid", Question(of, [], 7, index, {}, {})).parameters


def listed(of: Space, number: int = 0, chosen: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Every point, the slow way."""
    chosen = chosen or {}
    if number == len(of.parameters):
        yield chosen
        return
    parameter = of.parameters[number]
    if not active(parameter, chosen):
        yield from listed(of, number + 1, chosen)
        return
    for k in range(count(parameter) or 0):
        yield from listed(of, number + 1, {**chosen, parameter.name: nth(parameter, k)})


FINITE: list[dict[str, Any]] = [
    {"choice": {"values": ["a", 1, True, "1"]}},
    {"choice": {"values": [False]}},
    {"int": {"min": -1, "max": 3, "step": 2}},
    {"int": {"min": 1, "max": 4, "scale": "Log"}},
    {"float": {"min": 0.1, "max": 0.4, "step": 0.1}},
    {"fixed": "f"},
]


@st.composite
def conditional_spaces(draw: st.DrawFn) -> Space:
    """Up to six finite parameters, each on its own or hanging on some values of an earlier one."""
    parameters: list[Parameter] = []
    for number in range(draw(st.integers(1, 6))):
        raw: dict[str, Any] = {"name": f"p{number}", **draw(st.sampled_from(FINITE))}
        parents = [p for p in parameters if p.float_ is None]
        hangs = draw(st.booleans())
        if hangs and parents:
            parent = draw(st.sampled_from(parents))
            values = [nth(parent, k) for k in range(count(parent) or 0)]
            wanted = draw(st.lists(st.sampled_from(values), min_size=1, unique_by=repr))
            raw["when"] = {"parameter": parent.name, "in": wanted}
        parameters.append(Parameter.model_validate(raw))
    return Space(tuple(parameters))


@settings(max_examples=60, deadline=None)
@given(conditional_spaces())
def test_counting_gives_the_points_that_listing_gives(of: Space) -> None:
    points = list(itertools.islice(listed(of), 200))
    assert [grid.point(of, i) for i in range(len(points))] == points
    assert [list(p) for p in points] == [list(at(of, i)) for i in range(len(points))]
    assert all(fits(of, p) == [] for p in points)
    assert len({repr(p) for p in points}) == len(points)
    total = grid.size(of)
    assert total is not None
    if len(points) < 200:
        assert total == len(points)
    assert grid.point(of, total - 1) is not None
    with pytest.raises(SearchExhausted):
        at(of, total)


def test_a_grid_has_each_point_once_the_last_fastest() -> None:
    of = space(
        {"name": "a", "choice": {"values": ["x", "y"]}},
        {"name": "b", "int": {"min": 1, "max": 3}, "when": {"parameter": "a", "in": ["x"]}},
        {"name": "c", "float": {"min": 0, "max": 0.3, "step": 0.1}},
    )
    assert grid.size(of) == (3 + 1) * 4
    assert [at(of, i) for i in range(5)] == [
        {"a": "x", "b": 1, "c": 0.0},
        {"a": "x", "b": 1, "c": 0.1},
        {"a": "x", "b": 1, "c": 0.2},
        {"a": "x", "b": 1, "c": 0.3},
        {"a": "x", "b": 2, "c": 0.0},
    ]
    assert at(of, 12) == {"a": "y", "c": 0.0}


def test_a_continuous_parameter_makes_no_grid() -> None:
    of = space({"name": "lr", "float": {"min": 0, "max": 1}})
    assert grid.size(of) is None
    assert grid.point(of, 0) is None


def _chain(length: int) -> Space:
    """Each hangs on the one before: the number of points doubles and doubles."""
    values = {"choice": {"values": list(range(100))}}
    hung = [
        {"name": f"p{i}", **values, "when": {"parameter": f"p{i - 1}", "in": list(range(100))}}
        for i in range(1, length)
    ]
    return space({"name": "p0", **values}, *hung)


WIDE = {"name": "a", "int": {"min": -(2**53), "max": 2**53}}
HUNG = {"name": "b", "int": {"min": 0, "max": 3}, "when": {"parameter": "a", "in": [5]}}
TENS = [{"name": f"c{i}", "choice": {"values": list(range(10))}} for i in range(12)]
M = {"name": "m", "int": {"min": 1, "max": 4}, "when": {"parameter": "c0", "in": [3]}}

HUGE = {
    "a chain of conditions": (_chain(64), 100**64, {f"p{i}": 99 for i in range(64)}),
    "a range without end": (space(WIDE, HUNG), 2**54 + 1 + 3, {"a": 2**53}),
    "fine steps": (space({"name": "x", "float": {"min": 0, "max": 1, "step": 1e-6}}), 10**6 + 1, {"x": 1.0}),
    "many choices": (space(*TENS, M), 10**11 * (9 + 4), {f"c{i}": 9 for i in range(12)}),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_grid_that_nobody_could_list_is_counted_at_once(case: str) -> None:
    of, total, last = HUGE[case]
    assert grid.size(of) == total
    assert at(of, total - 1) == last


@settings(deadline=None)
@given(st.sampled_from(FINITE))
def test_a_value_is_found_at_the_position_it_came_from(kind: dict[str, Any]) -> None:
    parameter = Parameter.model_validate({"name": "p", **kind})
    for k in range(count(parameter) or 0):
        assert position(parameter, nth(parameter, k)) == k
