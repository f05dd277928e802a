"""Pods that live: whether one of their clocks has run out, what they wait for, and when to look at them again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.api.trial import TrialStatus
from trialkeeper_operator.decide import evidence, group, placement, watchdogs
from trialkeeper_operator.decide.view import Object, View
from trialkeeper_operator.decide.waiting import PATIENCE, STARTING, starting, waiting

LEAVING = 5.0  # seconds between two looks at a pod that is being deleted


def watched(view: View, status: TrialStatus, alive: Sequence[Object], now: float) -> watchdogs.Watch:
    """What has run out. Of several pods the slowest count: who has not begun, else who has begun last."""
    report, recorded, last = view.report, status.pod, status.history[-1] if status.history else None
    assert recorded is not None
    heard = None
    if recorded.first_report_time is not None:
        # Who has just come up has heard no report yet, and waits for the next one as long as for any.
        own = view.report_time if report is not None and report.attempt == status.attempt else None
        heard = own or max(view.watched, seconds(recorded.first_report_time))
    late = [pod for pod in alive if not evidence.begun(pod, view.container)] if len(alive) > 1 else []
    slowest = late or [max(alive, key=lambda pod: watchdogs.began(pod, view.container) or 0.0)]
    watches = [
        watchdogs.watch(
            watchdogs.Pod(
                body=pod,
                container=view.container,
                recorded=seconds(recorded.start_time),
                heard=None if late else heard,
                movable=placement.movable(view.experiment.spec, status),
                started=view.started,
                again=last is not None and last.reason == STARTING,
            ),
            view.experiment.spec.timeouts,
            now,
        )
        for pod in slowest
    ]
    intent = next((intent for intent, _ in watches if intent is not None), None)
    return intent, min((left for _, left in watches if left is not None), default=None)


def sooner(after: float | None, pods: Iterable[Object]) -> float | None:
    """A pod on its way out is looked at again and again, since its node may be silent; one that starts, later."""
    waits = [after, *(_again(pod) for pod in pods)]
    return min((wait for wait in waits if wait is not None), default=None)


def _again(pod: Object) -> float | None:
    return LEAVING if pod["metadata"].get("deletionTimestamp") else PATIENCE + 1 if starting(pod) else None


def held(status: TrialStatus, alive: Sequence[group.Rank], now: float) -> TrialStatus:
    """Whether the pods have started, as far as anybody has to know; the same trouble is not told in new words."""
    assert status.pod is not None
    waits = ((rank, waiting(rank.pod, now)) for rank in alive if rank.pod is not None)
    rank, why = next(((rank, why) for rank, why in waits if why is not None), (None, None))
    if why is None or rank is None:
        update = {"phase": "Running", "reason": "", "message": ""}
    elif (status.phase, status.reason) == ("Waiting", why.reason):
        return status
    else:
        whose = f"rank {rank.number}: " if status.pod.others else ""
        update = {"phase": "Waiting", "reason": why.reason, "message": f"{whose}{why.message}"[:2048]}
    return status.model_copy(update=update)
