"""What ought to happen to one trial: a flat list of guarded steps from what is known to a plan.

The plan's status is stored first, under the resourceVersion it was made from; only then are its actions
carried out. So an attempt's number is stored before its pod exists, our intent before our delete, and an
ending before the pod is cleared away. Any step may be repeated, and a crash between two is met again by
the next pass.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trialkeeper.contract import PRIOR_MTBF_SECONDS, Message
from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import Condition, Verdict, set_condition
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.api.trial import Intent, Trial, TrialStatus
from trialkeeper_operator.decide import endings, evidence, ledger, placement, watchdogs
from trialkeeper_operator.decide.endings import Ending
from trialkeeper_operator.decide.pods import Site, render
from trialkeeper_operator.decide.waiting import PATIENCE, STARTING, starting, waiting

Object = Mapping[str, Any]

LEAVING = 5.0  # seconds between two looks at a pod that is being deleted


@dataclass(frozen=True)
class View:
    """What is known about one trial.

    `pods` are those whose controller is this very Trial, by name. `last` is the last state seen of the
    open attempt's pod if its deletion has been watched. `gone`: a live read has just said that the open
    attempt's pod does not exist. `report`: the newest live report and when it was received; `watched`: since when
    reports have been received at all.
    """

    experiment: Experiment
    trial: Trial
    pods: Mapping[str, Object]
    report: Message | None = None
    report_time: float | None = None
    watched: float = 0.0
    last: Object | None = None
    gone: bool = False
    site: Site | None = None  # the cluster that pods are for, None: this machine
    mtbf: float = PRIOR_MTBF_SECONDS  # seconds between disruptions of a pod of this experiment
    started: bool = False  # whether a pod of this experiment is known to have been started
    held: Collection[int] = ()  # iterations that forks of this trial are about to begin from
    silent: bool = False  # whether the node of a pod that is being deleted does not answer, or is gone


@dataclass(frozen=True)
class CreatePod:
    """Create the pod of the open attempt; that its name is taken by ours is as good."""

    body: dict[str, Any]


@dataclass(frozen=True)
class DeletePod:
    """Delete this very pod (uid); `grace` None leaves it the grace that it has.

    `version`: the pod as it was judged by. One that has changed since may have ended by itself, and its last words
    would go with it; None where they are not wanted any more.
    """

    name: str
    uid: str
    grace: int | None = None
    version: str | None = None


@dataclass(frozen=True)
class ConfirmAbsence:
    """Read the pod live: the cache's silence proves nothing."""

    name: str


Action = CreatePod | DeletePod | ConfirmAbsence


@dataclass(frozen=True)
class Plan:
    """`status` to store first (None: it stands), then `actions` in order; look again after `after` seconds."""

    status: TrialStatus | None = None
    actions: tuple[Action, ...] = ()
    after: float | None = None


def plan(view: View, now: float) -> Plan:
    """The next step of a trial. Pure; `now` is seconds since the epoch."""
    status = view.trial.status
    if status.attempt > status.closed:
        return _open(view, now)
    leftovers = _leftovers(view)
    stop = wanted(view)
    if status.phase in ledger.FINAL:
        return Plan(_another_try(view, stop, now), leftovers)
    if stop is not None:
        return Plan(_rest(view, stop, now), leftovers)
    if _condition(view.experiment, names.STALLED) == ("True", names.REPEATED_ERROR) and status.reason != "Retried":
        return Plan(actions=leftovers)  # the next attempt would end as the last ones did
    wait = seconds(status.next_attempt_time) - now if status.next_attempt_time else 0.0
    if 0 < wait <= ledger.FAILED_BACKOFF_LIMIT:  # what is further off comes from a clock that was ahead
        return Plan(actions=leftovers, after=wait)
    if _still_running(view):
        return Plan(actions=leftovers, after=5.0)
    opened = placement.opened(view.experiment.spec, ledger.open_attempt(ledger.resumed(status, now)))
    return Plan(_observed(view, opened), (*leftovers, _create(view, opened)))


def _create(view: View, status: TrialStatus) -> CreatePod:
    trial = view.trial.model_copy(update={"status": status})
    return CreatePod(render(view.experiment, trial, status.attempt, view.site, view.mtbf, view.held))


def _still_running(view: View) -> bool:
    """One trainer of a trial at a time, except after Lost: that pod may never end, and the fence holds."""
    history = view.trial.status.history
    if history and history[-1].class_ == endings.LOST:
        return False
    return any(not evidence.ended(pod, _container(view)) for pod in view.pods.values())


def wanted(view: View) -> Intent | None:
    """What speaks against running: the person's desire first, then the experiment's end."""
    desired = view.trial.spec.desired
    if desired == "Stop":
        return Intent(action="Stop", reason="Desired", message="spec.desired is Stop")
    ending = names.STOPPING.get(_condition(view.experiment, names.SUCCEEDED)[1])
    if ending is not None:
        return Intent(action="Stop", reason="ExperimentEnded", message=ending)
    if desired == "Pause":
        return Intent(action="Pause", reason="Desired", message="spec.desired is Pause")
    if view.experiment.spec.suspend:
        return Intent(action="Pause", reason="Suspended", message="the experiment's spec.suspend is true")
    return None


def _condition(experiment: Experiment, kind: str) -> tuple[str, str]:
    """Status and reason of a condition, both empty if it is not there."""
    return next(((c.status, c.reason) for c in experiment.status.conditions if c.type == kind), ("", ""))


def _observed(view: View, status: TrialStatus) -> TrialStatus | None:
    """The status to store, completed by what follows from its phase; None if it is what is stored already."""
    status = completed(status, view.trial.generation, view.trial.created)
    return None if status == view.trial.status else status


def completed(status: TrialStatus, generation: int, created: str) -> TrialStatus:
    """A status with what follows from its phase; `created` is when its trial was."""
    phase = status.phase
    verdict: Verdict = "True" if phase == "Succeeded" else "False" if phase in ledger.FINAL else "Unknown"
    reason, message = (status.reason or phase, status.message) if phase in ledger.FINAL else (phase, "")
    condition = Condition(
        type=names.SUCCEEDED,
        status=verdict,
        reason=reason,
        message=message[:1024],
        last_transition_time=status.completion_time or status.start_time or created,
    )
    conditions = set_condition(status.conditions, condition)
    goodput = ledger.goodput(status.trained_seconds, status.lost_work)
    update = {"observed_generation": generation, "conditions": conditions, "goodput": goodput}
    return status.model_copy(update=update)


def _rest(view: View, stop: Intent, now: float) -> TrialStatus | None:
    """No attempt is open and none is wanted: the trial is stopped, or rests."""
    status = view.trial.status
    if stop.action == "Pause":
        update: dict[str, Any] = {"phase": "Paused", "reason": stop.reason, "message": stop.message}
    else:
        update = {"phase": "Stopped", "reason": stop.reason, "message": stop.message, "completion_time": stamp(now)}
    return _observed(view, status.model_copy(update=update))


def _another_try(view: View, stop: Intent | None, now: float) -> TrialStatus | None:
    """What a person's retry makes of a trial that is over without success; None without one, or if it could not run."""
    trial, status = view.trial, view.trial.status
    used = status.retried.number if status.retried else 0
    if status.phase == "Succeeded" or used >= trial.spec.retries or (stop is not None and stop.action == "Stop"):
        return None
    again = ledger.retry(status, now)
    condition = Condition(type=names.SUCCEEDED, status="Unknown", reason=again.phase, last_transition_time=stamp(now))
    return _observed(view, again.model_copy(update={"conditions": set_condition(again.conditions, condition)}))


def _leftovers(view: View) -> tuple[Action, ...]:
    """Pods of closed attempts: cleared away, except a failed one's newest, kept for its log."""
    status = view.trial.status
    kept = ""
    if status.phase == "Failed" and status.history and status.history[-1].class_ not in endings.DISRUPTED:
        kept = names.pod_name(view.trial.name, status.closed)
    return tuple(
        DeletePod(name, pod["metadata"]["uid"])
        for name, pod in sorted(view.pods.items())
        if not pod["metadata"].get("deletionTimestamp") and not (name == kept and evidence.ended(pod, _container(view)))
    )


def _container(view: View) -> str:
    return view.experiment.spec.container_name


def _open(view: View, now: float) -> Plan:
    """An attempt is open: find its pod, hear it, judge it, or watch over it."""
    status, name = view.trial.status, names.pod_name(view.trial.name, view.trial.status.attempt)
    pod = view.pods.get(name)
    if status.pod is None:
        if pod is None:
            return _without_pod(view, now)
        status = ledger.record_pod(status, pod, now)
    assert status.pod is not None
    gone = pod is None or pod["metadata"]["uid"] != status.pod.uid
    if gone and pod is None and not view.gone:
        return Plan(actions=(ConfirmAbsence(name),))
    status = ledger.heard(status, view.report)
    ending = endings.classify(
        view.last if gone else pod,
        container=_container(view),
        attempt=status.attempt,
        intent=_intended(status.intent),
        report=view.report,
        reported=ledger.has_reported(status),
        gone=gone,
        silent="" if gone else _silence(view, now),
        rules=view.experiment.spec.failure_policy.rules or (),
    )
    if ending is not None:
        return _closed(view, status, ending, now)
    assert pod is not None
    return _watch(view, status, pod, now)


def leaving(view: View) -> Object | None:
    """The open attempt's pod if it is being deleted and has not ended: only its node can end it."""
    status = view.trial.status
    pod = view.pods.get(names.pod_name(view.trial.name, status.attempt)) if status.attempt > status.closed else None
    gone = pod is None or not pod["metadata"].get("deletionTimestamp")
    return None if pod is None or gone or evidence.ended(pod, _container(view)) else pod


def _silence(view: View, now: float) -> str:
    """Why a pod on its way out will not be ended by its node, in one sentence; empty if it may be.

    It would be waited for forever; the fence holds off a trainer that lives on there.
    """
    pod = leaving(view) if view.site is not None else None
    if pod is None:
        return ""
    node, limit = evidence.node_of(pod), view.experiment.spec.timeouts.node_lost_seconds
    if view.silent:
        return f"node {node} does not answer"
    late = limit > 0 and now >= seconds(pod["metadata"]["deletionTimestamp"]) + limit
    return f"node {node} has not ended the pod {limit:g} s after its grace" if late else ""


def _without_pod(view: View, now: float) -> Plan:
    """The number is stored, the pod is not known to exist: create it, unless nobody wants it any more."""
    status, stop = view.trial.status, wanted(view)
    if stop is None:
        return Plan(actions=(_create(view, status),))
    if not view.gone:
        return Plan(actions=(ConfirmAbsence(names.pod_name(view.trial.name, status.attempt)),))
    ending = Ending(endings.STOPPED, stop.reason, stop.message)
    return _closed(view, status.model_copy(update={"intent": stop}), ending, now)


def _closed(view: View, status: TrialStatus, ending: Ending, now: float) -> Plan:
    paused = status.intent is not None and status.intent.action == "Pause" and ending.class_ == endings.STOPPED
    closed = ledger.close(status, ending, view.experiment.spec.failure_policy, now, paused=paused)
    closed = placement.closed(view.experiment.spec, _without_objective(view, closed))
    return Plan(_observed(view, closed), after=0.0)


def _without_objective(view: View, status: TrialStatus) -> TrialStatus:
    """A success that says nothing about the objective: it stays one, and says what is missing."""
    objective = view.experiment.spec.objectives[0].metric
    if status.phase != "Succeeded" or not status.metrics or objective in status.metrics:
        return status
    known = ", ".join(sorted(status.metrics)[:5])
    message = f"the trainer never reported the objective {objective}: its metrics are {known}"
    return status.model_copy(update={"reason": "NoObjective", "message": message})


_INTENDED: Final[dict[str, endings.Class]] = {
    "Stop": endings.STOPPED,
    "Pause": endings.STOPPED,
    "Restart": endings.FAILED,
    "Reschedule": endings.INFRASTRUCTURE,
    "Fail": endings.USER_ERROR,
}


def _intended(intent: Intent | None) -> endings.Verdict | None:
    return None if intent is None else (_INTENDED[intent.action], intent.reason, intent.message)


def _watch(view: View, status: TrialStatus, pod: Object, now: float) -> Plan:
    """The pod lives: end it if it is not wanted or hangs, else note what it said."""
    intent = status.intent or wanted(view)
    after: float | None = None
    if intent is None:
        intent, after = watchdogs.watch(_watched(view, status, pod), view.experiment.spec.timeouts, now)
    if intent is None:
        return Plan(_observed(view, _held(status, pod, now)), after=_sooner(after, pod))
    status = status.model_copy(update={"intent": intent})
    assert status.pod is not None
    meta = pod["metadata"]
    delete = DeletePod(meta["name"], status.pod.uid, version=meta.get("resourceVersion"))
    actions = () if meta.get("deletionTimestamp") else (delete,)
    return Plan(_observed(view, status), actions, after=_sooner(None, pod))


def _watched(view: View, status: TrialStatus, pod: Object) -> watchdogs.Pod:
    report, record, last = view.report, status.pod, status.history[-1] if status.history else None
    assert record is not None
    heard = None
    if record.first_report_time is not None:
        # Who has just come up has heard no report yet, and waits for the next one as long as for any.
        own = view.report_time if report is not None and report.attempt == status.attempt else None
        heard = own or max(view.watched, seconds(record.first_report_time))
    return watchdogs.Pod(
        body=pod,
        container=_container(view),
        recorded=seconds(record.start_time),
        heard=heard,
        movable=placement.movable(view.experiment.spec, status),
        started=view.started,
        again=last is not None and last.reason == STARTING,
    )


def _sooner(after: float | None, pod: Object) -> float | None:
    """A pod on its way out is looked at again and again, since its node may be silent; one that starts, later."""
    again = LEAVING if pod["metadata"].get("deletionTimestamp") else PATIENCE + 1 if starting(pod) else None
    return min((wait for wait in (after, again) if wait is not None), default=None)


def _held(status: TrialStatus, pod: Object, now: float) -> TrialStatus:
    """Whether the pod has started, as far as anybody has to know; the same trouble is not told in new words."""
    held = waiting(pod, now)
    if held is None:
        update = {"phase": "Running", "reason": "", "message": ""}
    elif (status.phase, status.reason) == ("Waiting", held.reason):
        return status
    else:
        update = {"phase": "Waiting", "reason": held.reason, "message": held.message}
    return status.model_copy(update=update)
