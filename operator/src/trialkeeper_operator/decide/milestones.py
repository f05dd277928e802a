"""What of a change of status is worth telling people: at most three Events an attempt, none for mere progress."""

from __future__ import annotations

from typing import Literal, NamedTuple

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import ExperimentStatus
from trialkeeper_operator.api.trial import TrialStatus
from trialkeeper_operator.decide import endings, ledger

_BAD = frozenset({(names.STALLED, "True"), (names.ACCEPTED, "False")})


class Milestone(NamedTuple):
    """One Event to post."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def of_trial(old: TrialStatus, new: TrialStatus) -> list[Milestone]:
    """What a trial's change tells: started, resumed, held up, ended."""
    return [*_begun(old, new), *_held(old, new), *_ended(old, new)]


def _begun(old: TrialStatus, new: TrialStatus) -> list[Milestone]:
    if new.pod is None:
        # An attempt so short that its start and its end were heard in one go says both with its ending.
        return []
    before = old.pod if old.attempt == new.attempt else None
    if new.attempt == 1 and before is None:
        return [Milestone("Normal", "Started", f"attempt 1 runs in pod {new.pod.name}")]
    if new.attempt > 1 and new.pod.from_iteration is not None and (before is None or before.from_iteration is None):
        last = new.history[-1] if new.history else None
        after = f" after {last.reason}" if last else ""
        whence = f"resumed from iteration {new.pod.from_iteration}" if new.pod.from_iteration else "began anew"
        return [Milestone("Normal", "Resumed", f"attempt {new.attempt} {whence}{after}")]
    return []


def _held(old: TrialStatus, new: TrialStatus) -> list[Milestone]:
    if new.phase != "Waiting" or new.next_attempt_time or not new.reason or new.attempt <= new.closed:
        return []
    if (old.phase, old.reason) == (new.phase, new.reason):
        return []
    return [Milestone("Warning", new.reason, new.message)]


def _ended(old: TrialStatus, new: TrialStatus) -> list[Milestone]:
    if new.closed <= old.closed or not new.history:
        return []
    last = new.history[-1]
    said = f"attempt {last.attempt} ended at iteration {last.to_iteration}: {last.message}"
    if new.phase in ledger.FINAL:
        type_: Literal["Normal", "Warning"] = "Warning" if new.phase == "Failed" else "Normal"
        return [Milestone(type_, new.phase, f"{said}" if last.message in new.message else f"{said}; {new.message}")]
    type_ = "Normal" if last.class_ in (*endings.DISRUPTED, endings.STOPPED) else "Warning"
    return [Milestone(type_, last.class_, f"{said} ({last.reason}); it goes on from its newest checkpoint")]


def of_experiment(old: ExperimentStatus, new: ExperimentStatus) -> list[Milestone]:
    """What an experiment's change tells: another trial is best, stalled, over."""
    told: list[Milestone] = []
    if new.best is not None and (old.best is None or old.best.trial != new.best.trial):
        told.append(Milestone("Normal", "BestChanged", f"{new.best.trial} is best with {new.best.value:.6g}"))
    before = {c.type: (c.status, c.reason) for c in old.conditions}
    for condition in new.conditions:
        if before.get(condition.type) == (condition.status, condition.reason):
            continue
        if (condition.type, condition.status) in _BAD:
            told.append(Milestone("Warning", condition.reason, condition.message))
        elif condition.type == names.SUCCEEDED and condition.status != "Unknown":
            type_: Literal["Normal", "Warning"] = "Normal" if condition.status == "True" else "Warning"
            told.append(Milestone(type_, "Finished", condition.message))
    return told
