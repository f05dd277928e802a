"""A Trial: what of it may change, and that a status survives the way to the API server and back."""

from __future__ import annotations

from typing import Any

import pytest

from builders import trial
from trialkeeper_operator.api.conditions import Condition, set_condition
from trialkeeper_operator.api.trial import Trial, TrialStatus
from trialkeeper_operator.api.validate import InvalidObject, Problem, check_trial

FIXED = "cannot change: only spec.desired and spec.retries may"
MOMENT = "2026-11-24T08:37:46.123456Z"


def spec(**changes: Any) -> dict[str, Any]:
    return {**trial(), "spec": {**trial()["spec"], **changes}}


@pytest.mark.parametrize("desired", ["Run", "Pause", "Stop"])
def test_desired_belongs_to_people(desired: str) -> None:
    assert check_trial(spec(desired=desired), trial()).spec.desired == desired


def test_retries_only_grow() -> None:
    assert check_trial(spec(retries=1), trial()).spec.retries == 1
    assert check_trial(spec(retries=3), spec(retries=1)).spec.retries == 3
    for fewer in (spec(retries=1), trial()):
        with pytest.raises(InvalidObject) as refusal:
            check_trial(fewer, spec(retries=2))
        assert refusal.value.problems == [Problem("spec.retries", "can only grow")]


CHANGES: dict[str, Any] = {
    "experiment": "other",
    "experimentUid": "other",
    "index": 1,
    "name": "first",
    "parameters": {"lr": 0.02},
    "note": "{}",
    "seed": 6,
    "enqueued": 0,
    "fork": "default/exp-12345678/00000/manifests/a000001-i000000000001.json",
    "base": ["default/exp-12345678/00000/manifests/a000001-i000000000001.json"],
}


@pytest.mark.parametrize("field", CHANGES)
def test_everything_else_of_a_trial_is_fixed(field: str) -> None:
    with pytest.raises(InvalidObject) as refusal:
        check_trial(spec(**{field: CHANGES[field]}), trial())
    assert refusal.value.problems == [Problem(f"spec.{field}", FIXED)]


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "an unknown wish": ({"desired": "Go"}, "spec.desired", "must be Run, Pause or Stop, not the text 'Go'"),
    "an index below 0": ({"index": -1}, "spec.index", "must be at least 0, not -1"),
    "a seed that is text": ({"seed": "1"}, "spec.seed", "must be a whole number, not the text '1'"),
    "a misspelt field": ({"desird": "Run"}, "spec.desird", "is not a field; did you mean desired?"),
    "parameters in a list": ({"parameters": [1]}, "spec.parameters", "must be a mapping, not a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_trial_is_refused_with_its_path_and_sentence(name: str) -> None:
    changes, path, sentence = BAD[name]
    with pytest.raises(InvalidObject) as refusal:
        check_trial(spec(**changes))
    assert refusal.value.problems == [Problem(path, sentence)]


STATUS: dict[str, Any] = {
    "observedGeneration": 3,
    "phase": "Waiting",
    "attempt": 2,
    "closed": 2,
    "nextAttemptTime": MOMENT,
    "disruptions": 1,
    "iteration": 12,
    "metrics": {"val/loss.top-1": {"last": 0.5, "min": 0.25, "max": 1.5}},
    "checkpoint": {"attempt": 2, "iteration": 12, "key": "manifests/a000002-i000000000012.json", "time": MOMENT},
    "base": {"attempt": 1, "iteration": 7},
    "lostWork": {"iterations": 3, "seconds": 1.5, "restartSeconds": 0.5},
    "history": [
        {
            "attempt": 1,
            "class": "Preempted",
            "reason": "SIGTERM",
            "message": "",
            "exitCode": 143,
            "startTime": MOMENT,
            "endTime": MOMENT,
            "toIteration": 9,
            "lostIterations": 0,
            "lostSeconds": 1.5,
            "restartSeconds": 0.5,
        }
    ],
    "conditions": [
        {"type": "Succeeded", "status": "Unknown", "reason": "Waiting", "message": "", "lastTransitionTime": MOMENT}
    ],
}


def test_a_status_survives_the_way_out_and_back() -> None:
    status = TrialStatus.model_validate(STATUS)
    assert status.history[0].class_ == "Preempted"
    out = status.to_object()
    assert {key: out[key] for key in STATUS} == STATUS
    assert TrialStatus.model_validate(out) == status


def test_what_another_version_wrote_into_a_status_is_passed_over() -> None:
    found = Trial.from_object({**trial(), "status": {**STATUS, "tier": "spot-b", "pod": None}})
    assert found.status == TrialStatus.model_validate(STATUS)


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    def condition(status: Any, reason: str, time: str) -> Condition:
        return Condition(type="Succeeded", status=status, reason=reason, last_transition_time=time)

    other = Condition(type="Accepted", status="True", reason="Valid", last_transition_time="t0")
    first = set_condition([other], condition("Unknown", "Running", "t1"))
    second = set_condition(first, condition("Unknown", "Waiting", "t2"))
    third = set_condition(second, condition("True", "Completed", "t3"))
    assert [(c.type, c.reason, c.last_transition_time) for c in second] == [
        ("Accepted", "Valid", "t0"),
        ("Succeeded", "Waiting", "t1"),
    ]
    assert [(c.type, c.reason, c.last_transition_time) for c in third] == [
        ("Accepted", "Valid", "t0"),
        ("Succeeded", "Completed", "t3"),
    ]
