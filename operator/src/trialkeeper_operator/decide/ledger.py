"""The attempt ledger: every change of a Trial's status that an attempt causes, as pure functions.

Attempts are numbered; the number is raised by a conditional write before its pod exists, and its ending is
recorded by one write together with all counters. So whatever is seen twice is written once, and whatever
was lost on the way is found again by the next look. `history` is for people and keeps the newest ten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trialkeeper.contract import REASON_OOM, CheckpointRef, Message
from trialkeeper_operator.api.experiment import FailurePolicy
from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.api.trial import (
    AttemptRecord,
    Base,
    CheckpointStatus,
    LostWork,
    MetricStatus,
    PodRecord,
    TrialStatus,
)
from trialkeeper_operator.decide import disruptions, endings
from trialkeeper_operator.decide.endings import Ending

HISTORY = 10
FAILED_BACKOFF_LIMIT = 600.0  # seconds, as the Job controller's
INFRASTRUCTURE_BACKOFF_LIMIT = 300.0
QUICK_RETRIES = 3  # disruptions without progress that are retried at once; later ones wait
SHORT_BOUND = 10  # so many times maxWithoutProgress short attempts are forgiven
ASSUMED_INTERVAL = 60.0  # seconds between saves while none has been measured

_MEMORY = frozenset({REASON_OOM, "StorageLimit"})


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


def record_pod(status: TrialStatus, pod: Mapping[str, Any], now: float) -> TrialStatus:
    """Note the uid of this attempt's pod; from now on its absence means that it is gone."""
    meta = pod["metadata"]
    record = PodRecord(name=meta["name"], uid=meta["uid"], start_time=stamp(now))
    return status.model_copy(
        update={"pod": record, "phase": "Running", "start_time": status.start_time or record.start_time}
    )


def _last(status: TrialStatus) -> AttemptRecord | None:
    return status.history[-1] if status.history else None


def _worked(status: TrialStatus) -> AttemptRecord | None:
    """The newest closed attempt that got as far as stating where it began: what it did may be lost."""
    return next((h for h in reversed(status.history) if h.from_iteration is not None), None)


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
        if status.base == base:
            update |= _no_progress(status, worked)
        else:
            update |= {"without_progress": 0, "short_attempts": 0}
        own = resumed.attempt == worked.attempt
        began = resumed.time if own else seconds(worked.first_report_time or worked.end_time)
        work = seconds(worked.end_time) - began
        reached = {
            "lost_iterations": resumed.lostIterations,
            "to_iteration": resumed.iteration + resumed.lostIterations,
        }
        update["history"] = [h.model_copy(update=reached) if h == worked else h for h in status.history]
    # The iterations are stated as a sum over all attempts: a statement that was never heard is in the next one.
    lost = resumed.lostBefore + resumed.lostIterations - status.lost_work.iterations
    update["lost_work"] = _add(status.lost_work, iterations=lost, work=work)
    return status.model_copy(update=update)


def _no_progress(status: TrialStatus, record: AttemptRecord) -> dict[str, Any]:
    if _short(record, status.save_interval):
        return {"short_attempts": status.short_attempts + 1}
    return {"without_progress": status.without_progress + 1}


def _first_report(status: TrialStatus, message: Message) -> TrialStatus:
    pod, last = status.pod, _last(status)
    if not message.firstReport or pod is None or pod.first_report_time is not None:
        return status
    update: dict[str, Any] = {"pod": pod.model_copy(update={"first_report_time": stamp(message.firstReport)})}
    if last is not None:
        restart = message.firstReport - seconds(last.end_time)
        update["lost_work"] = _add(status.lost_work, restart=restart)
    return status.model_copy(update=update)


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


def close(status: TrialStatus, ending: Ending, policy: FailurePolicy, now: float, *, paused: bool) -> TrialStatus:
    """Record the ending of the open attempt, its counters, and what comes next, for one write."""
    status = heard(status, ending.said)
    pod, last = status.pod, _last(status)
    end_time = ending.time or stamp(now)
    record = AttemptRecord(
        attempt=status.attempt,
        class_=ending.class_,
        reason=ending.reason,
        message=ending.message,
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
    if record.first_report_time is None and last is not None:
        restart = seconds(end_time) - seconds(last.end_time)
        update["lost_work"] = _add(status.lost_work, restart=restart)
    if record.from_iteration is None and ending.class_ in endings.DISRUPTED | {endings.FAILED}:
        update |= _no_progress(status, record)
    update |= _verdict(status.model_copy(update=update), ending, policy, seconds(end_time), paused=paused)
    if update["phase"] in FINAL:
        update["completion_time"] = end_time
    return status.model_copy(update=update)


FINAL = frozenset({"Succeeded", "Failed", "Stopped"})


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
    reasons = [h.reason for h in status.history[-2:]]
    if len(reasons) == 2 and reasons[0] == reasons[1] and reasons[0] in _MEMORY and not _newer_checkpoint(status):
        advice = "twice in a row without a newer checkpoint: raise the limit or make the trial smaller"
        return {"failures": failures, "phase": "Failed", "message": f"{ending.message} ({advice})"}
    if failures > policy.max_failures:
        counted = f"failed {failures} times, failurePolicy.maxFailures is {policy.max_failures}"
        return {"failures": failures, "phase": "Failed", "message": f"{ending.message} ({counted})"}
    backoff = min(policy.backoff_seconds * 2 ** (failures - 1), FAILED_BACKOFF_LIMIT)
    return {"failures": failures, **_again(backoff, ended)}


def _newer_checkpoint(status: TrialStatus) -> bool:
    return (status.checkpoint.iteration if status.checkpoint else 0) > (status.base.iteration if status.base else 0)


def _disrupted(status: TrialStatus, ending: Ending, policy: FailurePolicy, ended: float) -> dict[str, Any]:
    count = status.disruptions + 1
    if count > policy.max_disruptions:
        counted = f"disrupted {count} times, failurePolicy.maxDisruptions is {policy.max_disruptions}"
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
    if ending.class_ == endings.INFRASTRUCTURE:
        backoff = min(policy.backoff_seconds * 2**idle, INFRASTRUCTURE_BACKOFF_LIMIT)
    elif idle > QUICK_RETRIES:
        backoff = min(policy.backoff_seconds * 2 ** (idle - QUICK_RETRIES - 1), INFRASTRUCTURE_BACKOFF_LIMIT)
    else:
        backoff = 0.0
    return {"disruptions": count, **_again(backoff, ended)}
