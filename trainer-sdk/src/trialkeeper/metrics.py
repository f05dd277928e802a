"""Metrics as trainers hand them in: flattened, checked, and summed up over the visible history."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trialkeeper.contract import MetricSummary

AUTOMATIC = (
    "training_iteration",
    "time_this_iter_s",
    "time_total_s",
    "timestamp",
    "trial_id",
    "attempt",
    "hostname",
)
LARGEST = 10**308  # a whole number beyond it is no float
FORCED = "should_checkpoint"  # among the metrics of a report, and none: have this report's save made
RESERVED = frozenset({*AUTOMATIC, "step"})


def of_report(reported: Mapping[str, Any]) -> tuple[dict[str, float | int], bool]:
    """A report's metrics, flattened, and whether it asks for its save; errors are those of `flatten`."""
    if not isinstance(reported, Mapping) or FORCED not in reported:
        return flatten(reported), False
    return flatten({name: value for name, value in reported.items() if name != FORCED}), bool(reported[FORCED])


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | int]:
    """Nested mappings joined by `/`; numbers, booleans, and anything with `item()` become Python numbers.

    :raises TypeError: if a value is no number; the message names its key.
    :raises ValueError: if a key is one that is set automatically.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"report() takes a dict of metrics, not {type(metrics).__name__}")
    flat: dict[str, float | int] = {}
    for name, value in metrics.items():
        key = f"{prefix}{name}"
        kind = type(value)
        if kind is float or (kind is int and -LARGEST < value < LARGEST):
            flat[key] = value
        elif isinstance(value, Mapping):
            flat.update(flatten(value, f"{key}/"))
        else:
            flat[key] = _number(key, value)
    if not prefix and not RESERVED.isdisjoint(flat):
        taken = ", ".join(sorted(RESERVED & flat.keys()))
        raise ValueError(f"metric {taken}: this name is set automatically, choose another one")
    return flat


def _number(key: str, value: Any) -> float | int:
    item = getattr(value, "item", None)
    if callable(item):
        try:
            value = item()
        except (TypeError, ValueError, RuntimeError) as many:
            raise TypeError(f"metric {key}: {many}; report one number, for example its mean") from many
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) or (isinstance(value, int) and -LARGEST < value < LARGEST):
        return value
    if isinstance(value, int):
        raise TypeError(f"metric {key} is a whole number too large for a float: report its logarithm")
    try:
        return float(value.__float__())
    except (AttributeError, TypeError, ValueError, OverflowError):
        what = f"{type(value).__name__} {str(value)[:40]!r}"
        raise TypeError(f"metric {key} is {what}: only numbers can be reported") from None


def written(value: float | int) -> float | int | str:
    """A number as raw results have it: JSON knows no NaN and no infinity, so these are words."""
    if type(value) is int or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def summarise(summaries: dict[str, MetricSummary], flat: Mapping[str, float | int]) -> None:
    """Take one report's values into the summaries; what is not finite stays out."""
    for name, value in flat.items():
        if not math.isfinite(value):
            continue
        number = float(value)
        old = summaries.get(name)
        if old is None:
            summaries[name] = MetricSummary(number, number, number)
        else:
            summaries[name] = MetricSummary(
                number, number if number < old.min else old.min, number if number > old.max else old.max
            )
