"""The value of an objective: what counts of a metric's history, and whether it is good enough."""

from __future__ import annotations

from collections.abc import Sequence

from trialkeeper_operator.api.experiment import Objective
from trialkeeper_operator.api.trial import TrialStatus


def value(objective: Objective, status: TrialStatus) -> float | None:
    """The objective's value of a trial so far: its last one, or its best one over the visible history."""
    metric = status.metrics.get(objective.metric)
    if metric is None:
        return None
    if objective.value == "Last":
        return metric.last
    return metric.min if objective.direction == "Minimize" else metric.max


def values(objectives: Sequence[Objective], status: TrialStatus) -> list[float] | None:
    """All objectives' values, or None while one of them has not been reported."""
    found = [value(objective, status) for objective in objectives]
    return None if any(v is None for v in found) else [v for v in found if v is not None]


def reached(objectives: Sequence[Objective], status: TrialStatus) -> bool:
    """Whether every objective that has a target has reached it, and at least one has a target."""
    aimed = [o for o in objectives if o.target is not None]
    return bool(aimed) and all(_good(o, value(o, status)) for o in aimed)


def _good(objective: Objective, number: float | None) -> bool:
    if number is None or objective.target is None:
        return False
    return number <= objective.target if objective.direction == "Minimize" else number >= objective.target
