"""How a story ended, and where two ends differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from simulation.invariants import judge
from trialkeeper_operator.decide import endings
from trialkeeper_operator.reconcile.ports import Object

if TYPE_CHECKING:
    from simulation.sweeps.runner import Life


class TrialEnd(NamedTuple):
    """How a trial ended; `lost` are the iterations that are said to have been run again."""

    phase: str
    closed: int
    classes: str
    failures: int
    disruptions: int
    iteration: int
    lost: int


class End(NamedTuple):
    """How a story ended; `left` are pods that are there although nobody wants them."""

    verdict: str
    trials: tuple[TrialEnd, ...]
    left: tuple[str, ...]


def phase_of(trial: Object) -> str:
    return str((trial.get("status") or {}).get("phase", ""))


def end_of(trial: Object) -> TrialEnd:
    status = trial.get("status") or {}
    classes = " ".join(record["class"] for record in status.get("history", ()))
    return TrialEnd(
        phase=phase_of(trial),
        closed=status.get("closed", 0),
        classes=classes,
        failures=status.get("failures", 0),
        disruptions=status.get("disruptions", 0),
        iteration=status.get("iteration", 0),
        lost=(status.get("lostWork") or {}).get("iterations", 0),
    )


def wrong(life: Life, model: Life | None = None) -> list[str]:
    """What is wrong with how a story ended, by itself, and compared with how it ends without any trouble."""
    if life.violations:
        return life.violations
    lines = [] if life.plot.gone else judge(life)
    end = life.end()
    if end.left:
        lines.append(f"left over: {end.left}")
    if life.plot.gone:
        there = [*life.trials, *life.pods] + ([life.experiment] if life.experiment else [])
        return [*lines, *(f"{obj['kind']} {obj['metadata']['name']} is left" for obj in there)]
    if end.verdict != life.plot.verdict:
        lines.append(f"the verdict is {end.verdict} instead of {life.plot.verdict}")
    if model is not None:
        lines += _otherwise(end, model.end(), life.plot.loose)
        if life.seconds > model.seconds + life.plot.patience:
            lines.append(f"it took {life.seconds:.0f} s instead of {model.seconds:.0f} s")
    return lines


def _otherwise(end: End, model: End, loose: tuple[str, ...]) -> list[str]:
    """Where two ends differ."""
    lines = []
    for index, (one, other) in enumerate(zip(end.trials, model.trials, strict=False)):
        for name in TrialEnd._fields:
            got, want = getattr(one, name), getattr(other, name)
            if got != want and name not in loose and not (name == "classes" and _as_good(got, want)):
                lines.append(f"trial {index}: {name} is {got} instead of {want}")
    if len(end.trials) != len(model.trials):
        lines.append(f"{len(end.trials)} trials instead of {len(model.trials)}")
    return lines


def _as_good(got: str, want: str) -> bool:
    """Whether these are the same endings, some of which nobody saw."""
    pairs = list(zip(got.split(), want.split(), strict=False))
    same = all(one == other or {one, other} == {endings.LOST, endings.PREEMPTED} for one, other in pairs)
    return same and len(got.split()) == len(want.split())
