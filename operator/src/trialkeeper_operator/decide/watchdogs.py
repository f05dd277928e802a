"""Watchdogs over a pod that lives: a place to run, a start, a first report, and then one after the other.

Each of the four has its own clock, which begins where the one before has ended: an hour in a queue is no hour
without a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trialkeeper_operator.api.experiment import Timeouts
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.api.trial import Intent
from trialkeeper_operator.decide import evidence, waiting

Watch = tuple[Intent | None, float | None]  # our intent if one has run out, else seconds until it may
QUIET: Watch = (None, None)


@dataclass(frozen=True)
class Pod:
    """What watchdogs look at. Times are seconds since the epoch.

    `recorded`: when the operator first saw it. `heard`: its newest report, None before the first. `movable`: how
    long it may be unschedulable before another pod could do better, 0 for ever. `started`: some pod of this template
    has been started before. `again`: the attempt before this one was ended by the same start timeout.
    """

    body: Mapping[str, Any]
    container: str
    recorded: float
    heard: float | None = None
    movable: float = 0.0
    started: bool = False
    again: bool = False


def watch(pod: Pod, timeouts: Timeouts, now: float) -> Watch:
    """What has run out for a pod that has not ended; `now` is seconds since the epoch."""
    held = waiting.waiting(pod.body, now)
    if held is not None and held.reason == waiting.GATED:
        return QUIET  # somebody's queue: another pod would only lose its place there
    if held is not None and held.reason == waiting.UNSCHEDULABLE:
        return _unscheduled(pod, held, now)
    if pod.heard is not None or evidence.begun(pod.body, pod.container):
        return _silent(pod, timeouts, now)
    if held is not None and held.reason == waiting.IMAGE_NAME:
        return Intent(action="Fail", reason=held.reason, message=held.message), None
    return _not_started(pod, held, timeouts, now)


def _left(limit: float, since: float | None, now: float) -> float | None:
    """Seconds that are left, None if the clock does not run."""
    return None if not limit or since is None else since + limit - now


def _unscheduled(pod: Pod, held: waiting.Waiting, now: float) -> Watch:
    condition = _condition(pod.body, "PodScheduled")
    left = _left(pod.movable, _time(condition, "lastTransitionTime"), now)
    if left is None or condition.get("reason") != "Unschedulable":
        return QUIET
    if left > 0:
        return None, left
    message = f"{held.message} (for {pod.movable:g} s: the next attempt may run elsewhere)"
    return Intent(action="Reschedule", reason=held.reason, message=message[:1024]), None


def _not_started(pod: Pod, held: waiting.Waiting | None, timeouts: Timeouts, now: float) -> Watch:
    """It is on a node. Init containers take the time that they take: they are the template's own program."""
    limit = timeouts.start_seconds
    left = _left(limit, _ready_to_start(pod.body), now)
    if left is None:
        return QUIET
    if left > 0:
        return None, left
    name = (pod.body.get("metadata") or {}).get("name", "")
    slow = held is None or held.reason == waiting.STARTING
    if slow and waiting.pulling(pod.body):
        return QUIET  # a large image takes its time; one that cannot be had is said, and is another case
    said = f"pod {name} did not start: kubectl get events --field-selector involvedObject.name={name} says why"
    reason, sentence = (waiting.STARTING, said) if held is None or slow else held
    message = f"{sentence[:960]} (timeouts.startSeconds is {limit:g})"
    # What has started elsewhere can start. And of what is slow nothing is said: it may be the node's network.
    hopeless = not pod.started and (not slow or pod.again)
    return Intent(action="Fail" if hopeless else "Reschedule", reason=reason, message=message), None


def _silent(pod: Pod, timeouts: Timeouts, now: float) -> Watch:
    if pod.heard is not None:
        limit, since = timeouts.progress_seconds, pod.heard
        reason, field = "NoProgress", "timeouts.progressSeconds"
    else:
        limit, since = timeouts.first_report_seconds, max(pod.recorded, began(pod.body, pod.container) or 0.0)
        reason, field = "NoReport", "timeouts.firstReportSeconds"
    left = _left(limit, since, now)
    if left is None or left > 0:
        return None, left
    message = f"no report for {limit:g} s ({field}): the trainer hangs or reports too rarely"
    return Intent(action="Restart", reason=reason, message=message), None


def _condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((c for c in evidence.conditions_of(pod) if c.get("type") == kind), {})


def _time(of: Mapping[str, Any], key: str) -> float | None:
    try:
        return seconds(of[key])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def began(pod: Mapping[str, Any], container: str) -> float | None:
    """When a pod's trainer was started, None if it does not run."""
    running = evidence.states(pod, "running", "containerStatuses")
    return next((_time(state, "startedAt") for entry, state in running if entry.get("name") == container), None)


def _ready_to_start(pod: Mapping[str, Any]) -> float | None:
    """Since when nothing but the kubelet has held up the containers, None while something else does."""
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") != "True" or any(evidence.states(pod, "running", "initContainerStatuses")):
        return None
    ended = (_time(state, "finishedAt") for _, state in evidence.states(pod, "terminated", "initContainerStatuses"))
    return max((time for time in (_time(scheduled, "lastTransitionTime"), *ended) if time is not None), default=None)
