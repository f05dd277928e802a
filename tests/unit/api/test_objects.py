"""The table of good and bad objects, judged by the models; a real API server is asked in another suite."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objects import BAD, CHANGES, GOOD, changed
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.validate import InvalidObject, Problem, check_experiment
from trialkeeper_operator.search.check import problems


def check(new: dict[str, Any], old: dict[str, Any] | None = None) -> Experiment:
    found = check_experiment(new, old)
    if wrong := problems(found):
        raise InvalidObject(wrong)
    return found


@pytest.mark.parametrize("name", GOOD)
def test_a_good_object_is_taken(name: str) -> None:
    found = check(changed(GOOD[name]))
    again = check({**changed(GOOD[name]), "spec": found.spec.to_object()})
    assert again.spec == found.spec


@pytest.mark.parametrize("name", BAD)
def test_a_bad_object_is_refused_with_its_path_and_sentence(name: str) -> None:
    with pytest.raises(InvalidObject) as refusal:
        check(changed(BAD[name].changes))
    assert refusal.value.problems == [Problem(BAD[name].path, BAD[name].sentence)]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_taken_or_refused(name: str) -> None:
    change = CHANGES[name]
    old = changed(change.old)
    stored = {**old, "spec": check(old).spec.to_object()}
    if not change.sentence:
        check(changed(change.new), stored)
        return
    with pytest.raises(InvalidObject) as refusal:
        check(changed(change.new), stored)
    assert refusal.value.problems == [Problem(change.path, change.sentence)]


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvalidObject) as refusal:
        check(changed({"spec.maxTrials": 0, "spec.paralelism": 1, "spec.objectives[0].direction": "up"}))
    assert [p.path for p in refusal.value.problems] == [
        "spec.maxTrials",
        "spec.objectives[0].direction",
        "spec.paralelism",
    ]


# What no file can hold, but a program may give.
BEYOND_JSON = [
    ({"spec.parameters[0].float.max": float("inf")}, "spec.parameters[0].float.max", "must be a finite number"),
    (
        {"spec.parameters[0]": {"name": "a", "fixed": float("nan")}},
        "spec.parameters[0].fixed",
        "must be a finite number",
    ),
    (
        {"spec.parameters[0]": {"name": "a", "fixed": 10**400}},
        "spec.parameters[0].fixed",
        f"must be below 9223372036854775808, not 1{'0' * 58}…",
    ),
]


@pytest.mark.parametrize(("changes", "path", "sentence"), BEYOND_JSON)
def test_a_number_that_json_cannot_hold_is_refused(changes: Any, path: str, sentence: str) -> None:
    with pytest.raises(InvalidObject) as refusal:
        check(changed(changes))
    assert refusal.value.problems == [Problem(path, sentence)]


NAMELESS = [
    ({}, [("metadata.name", "is missing"), ("spec", "is missing")]),
    ({"metadata": None, "spec": None}, [("metadata.name", "is missing"), ("spec", "is missing")]),
    (
        {"metadata": {"name": 7}, "spec": 1},
        [("metadata.name", "must be text, not 7"), ("spec", "must be a mapping, not 1")],
    ),
    (
        {"metadata": [], "spec": []},
        [
            ("metadata.name", "is missing: metadata must be a mapping, not a list"),
            ("spec", "must be a mapping, not a list"),
        ],
    ),
    ([], [("", "must be a mapping, not a list")]),
    (None, [("", "must be a mapping, not nothing")]),
]


@pytest.mark.parametrize(("raw", "expected"), NAMELESS)
def test_what_is_no_object_at_all_is_refused(raw: Any, expected: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidObject) as refusal:
        check(raw)
    assert refusal.value.problems == [Problem(*problem) for problem in expected]


def test_anything_may_follow_an_object_that_was_never_valid() -> None:
    never = changed({"spec.parameters": "all of them", "spec.search": {"seed": 7}})
    assert check(changed({}), never).spec.search.seed == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PLACES = ["spec", "spec.objectives", "spec.parameters", "spec.parameters[0]", "spec.parameters[0].float", "spec.search",
          "spec.enqueue", "spec.stop", "spec.template", "spec.template.spec.containers", "metadata.name"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_whatever_stands_anywhere_is_taken_or_refused_and_never_crashes(place: str, value: Any) -> None:
    try:
        check(changed({place: value}))
    except InvalidObject as refusal:
        assert all(problem.sentence for problem in refusal.problems)


@settings(max_examples=200, deadline=None)
@given(JSON, JSON)
def test_whatever_stands_alone_or_before_is_taken_or_refused_and_never_crashes(whole: Any, before: Any) -> None:
    with pytest.raises(InvalidObject):
        check(whole)
    if isinstance(before, dict):
        check(changed({}), before)
        check(changed({}), {**changed({}), "spec": before})
