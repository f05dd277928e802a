"""What the operator lets a trainer judge by itself, as it comes in a variable or in an answer: checked whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trialkeeper import retention, stop
from trialkeeper.due import Policy


@dataclass(frozen=True)
class Settings:
    """Stop rules, when a save is due, what is kept, and mean seconds between disruptions if they have been told."""

    rules: stop.Rules
    policy: Policy
    retention: retention.Policy
    mtbf: float | None = None


def parse(value: Mapping[str, Any]) -> Settings:
    """Settings that can be judged by without a surprise.

    :raises ValueError: if something in them is of the wrong kind; the message names it.
    """
    if not isinstance(value, Mapping):
        raise ValueError("settings are no object")
    try:
        rules = stop.parse(value)
        checkpoint = value.get("checkpoint") or {}
        policy = Policy(
            checkpoint.get("frequency"),
            checkpoint.get("intervalSeconds"),
            checkpoint.get("atEnd", True),
            checkpoint.get("onBusy", "Latest"),
            frozenset(checkpoint.get("milestones") or ()),
        )
        kept = retention.parse(value)
    except (TypeError, AttributeError, KeyError, OverflowError) as broken:
        raise ValueError(f"settings are not what they should be: {broken}") from None
    _number("stop.maxIterations", rules.max_iterations, whole=True)
    _number("stop.timeoutSeconds", rules.timeout)
    for name, _, number in rules.metrics:
        if not math.isfinite(number):
            raise ValueError(f"stop.metrics.{name} is not finite")
    plateau = rules.plateau
    if plateau is not None and (not isinstance(plateau.metric, str) or plateau.results < 1):
        raise ValueError("stop.plateau needs a metric's name and at least one result")
    _number("checkpoint.frequency", policy.frequency, whole=True)
    _number("checkpoint.intervalSeconds", policy.interval)
    if not isinstance(policy.at_end, bool):
        raise ValueError("checkpoint.atEnd is neither true nor false")
    if policy.on_busy not in ("Latest", "Skip", "Wait"):
        raise ValueError("checkpoint.onBusy is none of Latest, Skip and Wait")
    for milestone in policy.milestones:
        _number("checkpoint.milestones", milestone, whole=True)
    mtbf = value.get("mtbfSeconds")
    _number("mtbfSeconds", mtbf)
    return Settings(rules, policy, kept, mtbf)


def _number(name: str, value: object, *, whole: bool = False) -> None:
    if value is None:
        return
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {str(value)[:40]!r}")
