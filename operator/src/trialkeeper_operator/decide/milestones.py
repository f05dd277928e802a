"""What of a change of status is worth telling people: at most three Events an attempt, none for mere progress."""

from __future__ import annotations

from typing import Literal, NamedTuple

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import ExperimentStatus
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.api.trial import TrialStatus
from trialkeeper_operator.decide import endings, ledger

_BAD = frozenset({(names.STALLED, "True"), (names.ACCEPTED, "False"), (names.ENQUEUED, "False")})


class Milestone(NamedTuple):
    """One Event to post; of those with the same `attempt` and `part` only the first. Attempt 0: it is no attempt's."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    attempt: int = 0
    part: Literal["begun", "held", "ended"] = "ended"


def of_trial(old: TrialStatus, new: TrialStatus) -> list[Milestone]:
    """What a trial's change tells: started or resumed, held up, ended, each once an attempt.

    What holds up a pod next is in the status alone: reason and message of the trial always say the newest.
    """
    return [*_begun(old, new), *_held(old, new), *_ended(old, new), *_retried(old, new)]


def _begun(old: TrialStatus, new: TrialStatus) -> list[Milestone]:
    return [told._replace(attempt=new.attempt, part="begun") for told in _beginning(old, new)]


def _beginning(old: TrialStatus, new: TrialStatus) -> list[Milestone]:
    if new.pod is None:
        # An attempt so short that its start and its end were heard in one go says both with its ending.
        return []
    before = old.pod if old.attempt == new.attempt else None
    stated = new.pod.from_iteration is not None and (before is None or before.from_iteration is None)
    if new.attempt == 1 and old.checkpoint is not None:
        return [_restored(old.checkpoint.iteration, new.pod.from_iteration or 0)] if stated else []
    if new.attempt == 1 and before is None:
        return [Milestone("Normal", "Started", f"attempt 1 runs in pod {new.pod.name}")]
    if new.attempt > 1 and stated:
        last = new.history[-1] if new.history else None
        after = f" after {last.reason}" if last else ""
        whence = f"resumed from iteration {new.pod.from_iteration}" if new.pod.from_iteration else "began anew"
        return [Milestone("Normal", "Resumed", f"attempt {new.attempt} {whence}{after}")]
    return []


def _restored(known: int, base: int) -> Milestone:
    """A first attempt that goes on where another experiment's trial was, or that could not."""
    if base < known:
        text = f"the checkpoint of iteration {known} is not in the store: attempt 1 begins at iteration {base}"
        return Milestone("Warning", "CheckpointMissing", text)
    return Milestone("Normal", "Resumed", f"attempt 1 goes on from iteration {base} of the snapshot")


def _held(old: TrialStatus, new: TrialStatus) -> list[Milestone]:
    if new.phase != "Waiting" or new.next_attempt_time or not new.reason or new.attempt <= new.closed:
        return []
    if (old.phase, old.reason) == (new.phase, new.reason):
        return []
    return [Milestone("Warning", new.reason, new.message, new.attempt, "held")]


def _ended(old: TrialStatus, new: TrialStatus) -> list[Milestone]:
    if new.closed <= old.closed or not new.history:
        return []
    last = new.history[-1]
    said = f"attempt {last.attempt} ended at iteration {last.to_iteration}: {last.message}"
    if new.phase in ledger.FINAL:
        type_: Literal["Normal", "Warning"] = "Warning" if new.phase == "Failed" else "Normal"
        said = said if last.message in new.message else f"{said}; {new.message}"
        return [Milestone(type_, new.phase, said, last.attempt)]
    type_ = "Normal" if last.class_ in (endings.PREEMPTED, endings.LOST, endings.STOPPED) else "Warning"
    return [Milestone(type_, last.class_, f"{said} ({last.reason}){_next(new, last.end_time)}", last.attempt)]


def _retried(old: TrialStatus, new: TrialStatus) -> list[Milestone]:
    if new.retried == old.retried or old.phase not in ledger.FINAL:
        return []
    whence = f"from iteration {new.checkpoint.iteration}" if new.checkpoint else "from the start"
    return [Milestone("Normal", "Retried", f"somebody asked for another try: attempt {new.closed + 1} begins {whence}")]


def _next(status: TrialStatus, ended: str) -> str:
    """Where the next attempt begins, and when, if not at once."""
    if status.next_attempt_time is None:
        return ""
    known = status.checkpoint.iteration if status.checkpoint else 0
    wait = seconds(status.next_attempt_time) - seconds(ended)
    when = f" in {wait:.0f} s" if wait >= 1 else ""
    return f"; it goes on from iteration {known}{when}" if known else f"; it begins anew{when}"


def of_experiment(old: ExperimentStatus, new: ExperimentStatus) -> list[Milestone]:
    """What an experiment's change tells: another trial is best, stalled, over."""
    told: list[Milestone] = []
    if new.best is not None and (old.best is None or old.best.trial != new.best.trial):
        told.append(Milestone("Normal", "BestChanged", f"{new.best.trial} is best with {new.best.value:.6g}"))
    before = {c.type: (c.status, c.reason) for c in old.conditions}
    for condition in new.conditions:
        if before.get(condition.type) == (condition.status, condition.reason):
            continue
        if condition.type == names.SUSPENDED and condition.reason != "Suspending":
            told.append(Milestone("Normal", condition.reason, condition.message))
        elif (condition.type, condition.status) in _BAD:
            told.append(Milestone("Warning", condition.reason, condition.message))
        elif condition.type == names.SUCCEEDED and condition.status != "Unknown":
            type_: Literal["Normal", "Warning"] = "Normal" if condition.status == "True" else "Warning"
            told.append(Milestone(type_, "Finished", condition.message))
    return told
