"""What happened, as lines for people: pure, from one version of an object to the next."""

from __future__ import annotations

from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import find
from trialkeeper_operator.api.experiment import Experiment, Objective
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.api.trial import Trial, TrialStatus
from trialkeeper_operator.decide import ledger
from trialkeeper_operator.decide.objective import value
from trialkeeper_operator.decide.restore import TAKEN_OVER


def of_trial(old: Trial | None, new: Trial, objective: Objective, log: str) -> list[str]:
    """Lines about a trial's last change; `log` is where its last attempt's output is."""
    lines = []
    before, now = (old or new).status, new.status
    if old is not None and now.closed > before.closed and now.phase not in ledger.FINAL:
        last = now.history[-1]
        lines.append(
            f"{new.name} attempt {last.attempt}: {last.class_} ({last.reason}) at iteration {now.iteration}{_wait(now)}"
        )
        if last.class_ not in ("Preempted", "Lost"):
            lines.append(f"  {last.message}; output: {log}")
    begun = now.pod is not None and now.pod.from_iteration is not None
    began = begun and not (before.pod is not None and before.pod.from_iteration is not None)
    inherited = now.pod is not None and bool(now.pod.from_iteration)
    if old is not None and now.pod is not None and began and (now.attempt > 1 or inherited):
        lost = now.lost_work.seconds - before.lost_work.seconds
        how = f"resumed from iteration {now.pod.from_iteration}" if now.pod.from_iteration else "started over"
        lines.append(f"{new.name} attempt {now.attempt}: {how}, {lost:.1f} s of work lost")
    if now.phase in ledger.FINAL and before.phase not in ledger.FINAL:
        lines += _over(new, objective, log)
    return lines


def _wait(status: TrialStatus) -> str:
    """When the next attempt comes, if that is worth a word."""
    if status.next_attempt_time is None or not status.history:
        return ""
    left = seconds(status.next_attempt_time) - seconds(status.history[-1].end_time)
    return f"; the next attempt comes in {left:.0f} s" if left >= 1 else ""


def _over(trial: Trial, objective: Objective, log: str) -> list[str]:
    status = trial.status
    if status.message.startswith(TAKEN_OVER):
        return [f"{trial.name}: {status.phase} after {status.iteration} iterations, {status.message}"]
    if status.phase == "Succeeded":
        number = value(objective, status)
        said = status.message if number is None else f"{objective.metric} {number:.5g}"
        return [f"{trial.name}: Succeeded after {status.iteration} iterations, {said}"]
    return [f"{trial.name}: {status.phase} ({status.reason}) {status.message}", f"  output: {log}"]


def of_experiment(old: Experiment | None, new: Experiment) -> list[str]:
    """Lines about an experiment's last change."""
    passed = not_enqueued(new)
    lines = [passed] if passed and (old is None or passed != not_enqueued(old)) else []
    before, now = old.status.best if old else None, new.status.best
    finished = new.status.finished > (old.status.finished if old else 0)
    if now is None or not finished or (before is not None and before.trial == now.trial):
        return lines
    return [*lines, f"best so far: {now.trial}, {new.spec.objectives[0].metric} {now.value:.5g}"]


def not_enqueued(experiment: Experiment) -> str:
    """Which entries of spec.enqueue are no trial, and why; empty if there are none."""
    said = find(experiment.status.conditions, names.ENQUEUED)
    return said.message if said is not None and said.status == "False" else ""
