"""A refusal stands beside what an experiment has said already."""

from __future__ import annotations

from typing import Any

from builders import NOW
from trialkeeper_operator.api.conditions import Condition
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.reconcile.refusing import _with

REFUSED = Condition(type="Accepted", status="False", reason="Invalid", message="m", last_transition_time=stamp(NOW))


def said(*conditions: dict[str, Any], **status: Any) -> dict[str, Any]:
    return _with({"phase": "Succeeded", "best": {"trial": "exp-1"}, "conditions": list(conditions), **status}, REFUSED)


def test_an_experiment_that_is_over_stays_what_it_came_to() -> None:
    found = said({"type": "Succeeded", "status": "True"}, {"type": "Accepted", "status": "True"})
    assert (found["phase"], found["best"]) == ("Succeeded", {"trial": "exp-1"})
    assert [(c["type"], c["status"]) for c in found["conditions"]] == [("Succeeded", "True"), ("Accepted", "False")]


def test_one_that_runs_is_invalid_and_keeps_its_counts() -> None:
    found = said({"type": "Succeeded", "status": "Unknown"}, phase="Running", trials=3)
    assert (found["phase"], found["trials"]) == ("Invalid", 3)
