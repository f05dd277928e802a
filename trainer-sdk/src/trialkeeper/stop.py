"""Stop rules: when a trial is done although its trainer would go on. Pure, and judged without any network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trialkeeper import contract
from trialkeeper.metrics import written


@dataclass(frozen=True)
class Plateau:
    """As Ray Tune's TrialPlateauStopper: the last values' deviation, judged after a grace."""

    metric: str
    results: int
    tolerance: float
    grace: int


@dataclass(frozen=True)
class Rules:
    """`stop` of the experiment; whatever is None is no rule."""

    max_iterations: int | None = None
    metrics: tuple[tuple[str, str, float], ...] = ()  # (name, "below" or "above", number)
    timeout: float | None = None
    plateau: Plateau | None = None


def parse(settings: Mapping[str, Any]) -> Rules:
    """The rules in a trainer's settings."""
    stop = settings.get("stop") or {}
    objectives = settings.get("objectives") or [{}]
    plateau = stop.get("plateau")
    return Rules(
        max_iterations=stop.get("maxIterations"),
        metrics=tuple(
            (name, side, float(threshold[side]))
            for name, threshold in (stop.get("metrics") or {}).items()
            for side in ("below", "above")
            if threshold.get(side) is not None
        ),
        timeout=stop.get("timeoutSeconds"),
        plateau=None
        if plateau is None
        else Plateau(
            metric=plateau.get("metric") or objectives[0].get("metric", ""),
            results=int(plateau.get("results", 4)),
            tolerance=float(plateau.get("tolerance", 0.01)),
            grace=int(plateau.get("grace", 4)),
        ),
    )


def named(rules: Rules) -> dict[str, str]:
    """The metrics that rules need, and which of them names each, as the beginning of a sentence."""
    found = {} if rules.plateau is None else {rules.plateau.metric: "stop.plateau names"}
    return found | {name: "stop.metrics names" for name, _, _ in rules.metrics}


def judge(
    rules: Rules, values: Mapping[str, float | int], window: Sequence[float], *, iteration: int, seconds: float
) -> tuple[str, str] | None:
    """(reason, sentence) of the first rule that holds, or None.

    `values` are this iteration's, `window` the plateau metric's last ones; `seconds` of the visible history.
    """
    if rules.max_iterations is not None and iteration >= rules.max_iterations:
        return contract.REASON_MAX_ITERATIONS, f"iteration {iteration} is stop.maxIterations"
    for name, side, number in rules.metrics:
        value = values.get(name)
        if value is not None and (value <= number if side == "below" else value >= number):
            return contract.REASON_METRIC, f"{name} is {value:g}, stop.metrics says {side} {number:g}"
    if rules.timeout is not None and seconds >= rules.timeout:
        return contract.REASON_TIMEOUT, f"{seconds:.1f} s of training, stop.timeoutSeconds is {rules.timeout:g}"
    plateau = rules.plateau
    if plateau is not None and iteration >= plateau.grace and len(window) >= plateau.results:
        deviation = _deviation(window)
        if deviation <= plateau.tolerance:
            return contract.REASON_PLATEAU, f"{plateau.metric} deviates by {deviation:.3g} over {len(window)} results"
    return None


def diverged(objectives: Sequence[str], values: Mapping[str, float | int], iteration: int) -> str | None:
    """A sentence if an objective has left the finite numbers."""
    for name in objectives:
        value = values.get(name)
        if value is not None and not math.isfinite(value):
            return (
                f"objective {name} was {written(value)} at iteration {iteration}: the trial has diverged and is "
                "not repeated (onNonFinite: Continue lets such trials go on)"
            )
    return None


def _deviation(values: Sequence[float]) -> float:
    """The population's standard deviation."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
