"""The attempt ledger: every change of a Trial's status that an attempt causes, as pure functions.

Attempts are numbered; the number is raised by a conditional write before its pod exists, and its ending is
recorded by one write together with all counters. So whatever is seen twice is written once, and whatever
was lost on the way is found again by the next look. `history` is for people and keeps the newest ten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trialkeeper.contract import CheckpointRef, Message
from trialkeeper_operator.api.experiment import FailurePolicy
from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.api.trial import (
    AttemptRecord,
    Base,
    CheckpointStatus,
    LostWork,
    MetricStatus,
    PodRecord,
    Retried,
    TrialStatus,
)
from trialkeeper_operator.decide import disruptions, endings, waiting
from trialkeeper_operator.decide.endings import Ending

HISTORY = 10
FAILED_BACKOFF_LIMIT = 600.0  # seconds, as the Job controller's
INFRASTRUCTURE_BACKOFF_LIMIT = 300.0
QUICK_RETRIES = 3  # disruptions without progress that are retried at once; later ones wait
SHORT_BOUND = 10  # so many times maxWithoutProgress short attempts are forgiven
ASSUMED_INTERVAL = 60.0  # seconds between saves while none has been measured


def open_attempt(status: TrialStatus) -> TrialStatus:
    """Raise the number; the pod of that number may be created only after this has been stored."""
    return status.model_copy(
        update={
            "attempt": status.attempt + 1,
            "phase": "Pending",
            "reason": "",
            "message": "",
            "pod": None,
            "intent": None,
            "next_attempt_time": None,
        }
    )


def resumed(status: TrialStatus, now: float) -> TrialStatus:
    """A trial that rested because somebody wanted it to, on its way to its next attempt: the rest cost it nothing."""
    return status.model_copy(update={"resumed_time": stamp(now)}) if status.phase == "Paused" else status


def retry(status: TrialStatus, now: float) -> TrialStatus:
    """One more try for a trial that was over. Its budgets count from here; its checkpoints and counters stay."""
    number = status.retried.number if status.retried else 0
    counted = {"attempt": status.closed, "failures": status.failures, "disruptions": status.disruptions}
    return status.model_copy(
        update={
            "phase": "Waiting",
            "reason": "Retried",
            "message": "",
            "next_attempt_time": None,
            "completion_time": None,
            "resumed_time": stamp(now),
            "without_progress": 0,
            "short_attempts": 0,
            "retried": Retried(number=number + 1, **counted),
        }
    )


def record_pods(status: TrialStatus, name: str, pods: Sequence[Mapping[str, Any] | None], now: float) -> TrialStatus:
    """Note the uids of this attempt's pods, by rank, that are not noted yet: their absence means that they are gone.

    A uid that is noted stays; `name` is that of the first. The trial runs from when all pods are there.
    """
    known = status.pod.uids if status.pod else [""] * len(pods)
    found = [uid or (pod["metadata"]["uid"] if pod else "") for uid, pod in zip(known, pods, strict=False)]
    if found == known:
        return status
    first, *others = found
    uids: dict[str, Any] = {"uid": first} | ({"others": others} if others else {})
    if status.pod is None:
        record = PodRecord(name=name, start_time=stamp(now), **uids)
    else:
        record = status.pod.model_copy(update=uids)
    update: dict[str, Any] = {"pod": record, "start_time": status.start_time or record.start_time}
    return status.model_copy(update=update | ({"phase": "Running"} if all(found) else {}))


def _last(status: TrialStatus) -> AttemptRecord | None:
    return status.history[-1] if status.history else None


def _worked(status: TrialStatus) -> AttemptRecord | None:
    """The newest closed attempt that got as far as stating where it began: what it did may be lost."""
    return next((h for h in reversed(status.history) if h.from_iteration is not None), None)


def _down_since(status: TrialStatus) -> float | None:
    """Since when the trial would have gone on if it could; None before its first attempt has ended."""
    last = _last(status)
    rested = seconds(status.resumed_time) if status.resumed_time else 0.0
    return None if last is None else max(seconds(last.end_time), rested)


def _add(lost: LostWork, *, iterations: int = 0, work: float = 0.0, restart: float = 0.0) -> LostWork:
    return LostWork(
        iterations=lost.iterations + iterations,
        seconds=lost.seconds + max(0.0, work),
        restart_seconds=lost.restart_seconds + max(0.0, restart),
    )


def _short(record: AttemptRecord, interval: float | None) -> bool:
    """Whether an attempt was too short for a save to be expected of it."""
    lived = seconds(record.end_time) - seconds(record.start_time)
    restart = seconds(record.first_report_time) - seconds(record.start_time) if record.first_report_time else lived
    return lived < restart + (interval or ASSUMED_INTERVAL)


def _begun(status: TrialStatus, message: Message) -> TrialStatus:
    """Book what the trainer has stated: where this attempt began and what of the last one is run again."""
    resumed, pod = message.resumed, status.pod
    if resumed is None or pod is None or pod.from_iteration is not None:
        return status
    base = Base(attempt=resumed.attempt, iteration=resumed.iteration)
    update: dict[str, Any] = {"pod": pod.model_copy(update={"from_iteration": resumed.iteration}), "base": base}
    worked, work = _worked(status), 0.0
    if worked is not None:
        if status.base == base and worked.class_ == endings.STOPPED:
            pass  # it was ended because somebody wanted it: that it came to no checkpoint says nothing
        elif status.base == base:
            update |= _no_progress(status, worked)
        else:
            update |= {"without_progress": 0, "short_attempts": 0}
        own = resumed.attempt == worked.attempt
        began = resumed.time if own else seconds(worked.first_report_time or worked.end_time)
        work = seconds(worked.end_time) - began
        reached = {
            "lost_iterations": resumed.lostIterations,
            "lost_seconds": worked.lost_seconds + max(0.0, work),
            "to_iteration": max(worked.to_iteration or 0, resumed.iteration + resumed.lostIterations),
        }
        update["history"] = [h.model_copy(update=reached) if h == worked else h for h in status.history]
    # The iterations are stated as a sum over all attempts: a statement that was never heard is in the next one. An
    # attempt that could not read its store knows of none.
    unheard = max(0, resumed.lostBefore - status.lost_work.iterations)
    update["lost_work"] = _add(status.lost_work, iterations=unheard + resumed.lostIterations, work=work)
    return status.model_copy(update=update)


def _no_progress(status: TrialStatus, record: AttemptRecord) -> dict[str, Any]:
    if _short(record, status.save_interval):
        return {"short_attempts": status.short_attempts + 1}
    return {"without_progress": status.without_progress + 1}


def _first_report(status: TrialStatus, message: Message) -> TrialStatus:
    pod, since = status.pod, _down_since(status)
    if not message.firstReport or pod is None or pod.first_report_time is not None:
        return status
    update: dict[str, Any] = {"pod": pod.model_copy(update={"first_report_time": stamp(message.firstReport)})}
    if since is not None:
        update |= _restarted(status, message.firstReport - since)
    return status.model_copy(update=update)


def _restarted(status: TrialStatus, spent: float) -> dict[str, Any]:
    """Book seconds of a restart: of the trial, and of the attempt whose end made it necessary."""
    lost = _add(status.lost_work, restart=spent)
    last = status.history[-1]
    cost = last.restart_seconds + lost.restart_seconds - status.lost_work.restart_seconds
    return {"lost_work": lost, "history": [*status.history[:-1], last.model_copy(update={"restart_seconds": cost})]}


def goodput(trained: float, lost: LostWork) -> float | None:
    """Which part of the time was progress, of 1; None before there was any."""
    spent = trained + lost.seconds + lost.restart_seconds
    return round(trained / spent, 4) if spent > 0 else None


def _checkpoint(ref: CheckpointRef) -> CheckpointStatus:
    return CheckpointStatus(attempt=ref.attempt, iteration=ref.iteration, key=ref.key, time=stamp(ref.time))


def heard(status: TrialStatus, message: Message | None) -> TrialStatus:
    """What a report or the last words of the open attempt add; hearing the same twice adds nothing."""
    if message is None or message.attempt != status.attempt or status.pod is None:
        return status
    if message.podUid and message.podUid != status.pod.uid:
        return status
    known = status.pod.from_iteration is not None
    status = _first_report(_begun(status, message), message)
    if known and message.iteration < status.iteration:
        return status  # older words than have been heard already: the running marker, or a late report
    update: dict[str, Any] = {}
    if message.firstReport or message.resumed:
        update["iteration"] = message.iteration
        update["trained_seconds"] = message.trainedSeconds
    if message.metrics:
        update["metrics"] = {n: MetricStatus(last=m.last, min=m.min, max=m.max) for n, m in message.metrics.items()}
    if message.saveInterval:
        update["save_interval"] = message.saveInterval
    if message.checkpoint:
        update["checkpoint"] = _checkpoint(message.checkpoint)
    return status.model_copy(update=update)


def has_reported(status: TrialStatus) -> bool:
    """Whether any attempt of this trial has reported."""
    return bool(status.iteration or status.metrics or (status.pod and status.pod.first_report_time))


def has_ever_reported(status: TrialStatus) -> bool:
    """The same, also of attempts whose reports nobody heard but in their last words."""
    return has_reported(status) or any(h.first_report_time for h in status.history)


def has_started(status: TrialStatus) -> bool:
    """Whether the trainer of any attempt is known to have been started."""
    return has_ever_reported(status) or any(h.exit_code is not None for h in status.history)


def close(status: TrialStatus, ending: Ending, policy: FailurePolicy, now: float, *, paused: bool) -> TrialStatus:
    """Record the ending of the open attempt, its counters, and what comes next, for one write."""
    status = heard(status, ending.said)
    ending = _for_good(status, ending)
    pod, since = status.pod, _down_since(status)
    # A node whose clock is ahead must not make the next attempt wait.
    end_time = ending.time if ending.time and seconds(ending.time) <= now else stamp(now)
    record = AttemptRecord(
        attempt=status.attempt,
        class_=ending.class_,
        reason=ending.reason,
        message=ending.message,
        rank=ending.rank,
        exit_code=ending.exit_code,
        node=ending.node,
        start_time=pod.start_time if pod else end_time,
        end_time=end_time,
        first_report_time=pod.first_report_time if pod else None,
        from_iteration=pod.from_iteration if pod else None,
        to_iteration=status.iteration,
        lost_iterations=0,
    )
    update: dict[str, Any] = {
        "closed": status.attempt,
        "pod": None,
        "intent": None,
        "history": [*status.history, record][-HISTORY:],
        "reason": ending.reason,
        "message": ending.message,
        "running_seconds": status.running_seconds + round(disruptions.exposed(pod, seconds(end_time))),
    }
    if record.first_report_time is None and since is not None:
        restarted = _restarted(status, seconds(end_time) - since)
        update |= {**restarted, "history": [*restarted["history"], record][-HISTORY:]}
    if record.from_iteration is None and ending.class_ in endings.DISRUPTED | {endings.FAILED}:
        update |= _no_progress(status, record)
    update |= _verdict(status.model_copy(update=update), ending, policy, seconds(end_time), paused=paused)
    if update["phase"] in FINAL:
        update["completion_time"] = end_time
    return status.model_copy(update=update)


FINAL = frozenset({"Succeeded", "Failed", "Stopped"})


def _for_good(status: TrialStatus, ending: Ending) -> Ending:
    """Too little memory or storage, twice in a row with nothing gained in between: a third try would end the same."""
    last, pod = _last(status), status.pod
    if ending.reason not in endings.MEMORY or ending.class_ != endings.FAILED or last is None or pod is None:
        return ending
    saved = status.checkpoint is not None and status.checkpoint.attempt == status.attempt
    if status.retried is not None and last.attempt <= status.retried.attempt:
        return ending  # somebody has asked for one more try since
    if last.reason != ending.reason or last.from_iteration != pod.from_iteration or saved:
        return ending
    message = f"{ending.message} (twice in a row without a newer checkpoint)"
    return replace(ending, class_=endings.USER_ERROR, message=message)


def _verdict(
    status: TrialStatus, ending: Ending, policy: FailurePolicy, ended: float, *, paused: bool
) -> dict[str, Any]:
    """Phase and next attempt after an ending; `status` holds it already, but not yet its count."""
    if ending.class_ == endings.SUCCEEDED:
        return {"phase": "Succeeded"}
    if ending.class_ == endings.STOPPED:
        return {"phase": "Paused" if paused else "Stopped"}
    if ending.class_ == endings.USER_ERROR:
        return {"phase": "Failed"}
    if ending.class_ == endings.FAILED:
        return _failed(status, ending, policy, ended)
    return _disrupted(status, ending, policy, ended)


def _again(backoff: float, ended: float) -> dict[str, Any]:
    return {"phase": "Waiting", "next_attempt_time": stamp(ended + backoff)}


def _failed(status: TrialStatus, ending: Ending, policy: FailurePolicy, ended: float) -> dict[str, Any]:
    failures = status.failures + 1
    tries = failures - (status.retried.failures if status.retried else 0)
    if tries > policy.max_failures:
        counted = f"failed {tries} times, failurePolicy.maxFailures is {policy.max_failures}"
        return {"failures": failures, "phase": "Failed", "message": f"{ending.message} ({counted})"}
    backoff = min(policy.backoff_seconds * 2 ** (tries - 1), FAILED_BACKOFF_LIMIT)
    return {"failures": failures, **_again(backoff, ended)}


def _disrupted(status: TrialStatus, ending: Ending, policy: FailurePolicy, ended: float) -> dict[str, Any]:
    count = status.disruptions + 1
    hits = count - (status.retried.disruptions if status.retried else 0)
    if hits > policy.max_disruptions:
        counted = f"disrupted {hits} times, failurePolicy.maxDisruptions is {policy.max_disruptions}"
        return {"disruptions": count, "phase": "Failed", "message": f"{ending.message} ({counted})"}
    stuck = max(status.without_progress, status.short_attempts // SHORT_BOUND)
    if stuck > policy.max_without_progress:
        # From here on an ending that is nobody's fault counts all the same: a trial that kills its node,
        # or exits 75 for ever, would otherwise be retried for ever.
        verdict = _failed(status, ending, policy, ended)
        allowed = f"failurePolicy.maxWithoutProgress is {policy.max_without_progress}"
        said = f"no newer checkpoint in {stuck} attempts, {allowed}"
        return {"message": f"{ending.message} ({said})", **verdict}
    idle = status.without_progress + status.short_attempts
    if ending.reason == waiting.UNSCHEDULABLE:
        return {"disruptions": count, **_again(0.0, ended)}  # it has waited, and the next one may run elsewhere
    if ending.class_ == endings.INFRASTRUCTURE:
        backoff = min(policy.backoff_seconds * 2**idle, INFRASTRUCTURE_BACKOFF_LIMIT)
    elif idle > QUICK_RETRIES:
        backoff = min(policy.backoff_seconds * 2 ** (idle - QUICK_RETRIES - 1), INFRASTRUCTURE_BACKOFF_LIMIT)
    else:
        backoff = 0.0
    return {"disruptions": count, **_again(backoff, ended)}
