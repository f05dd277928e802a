"""What ought to happen to one trial: a flat list of guarded steps from what is known to a plan.

The plan's status is stored first, under the resourceVersion it was made from; only then are its actions
carried out. So an attempt's number is stored before its pod exists, our intent before our delete, and an
ending before the pod is cleared away. Any step may be repeated, and a crash between two is met again by
the next pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trialkeeper.contract import PRIOR_MTBF_SECONDS, Message
from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import Condition, Verdict, set_condition
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.api.trial import Intent, Trial, TrialStatus
from trialkeeper_operator.decide import endings, evidence, group, ledger, nodes, placement, pods, watchdogs
from trialkeeper_operator.decide.endings import Ending
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.decide.waiting import PATIENCE, STARTING, starting, waiting

Object = Mapping[str, Any]

LEAVING = 5.0  # seconds between two looks at a pod that is being deleted


@dataclass(frozen=True)
class View:
    """What is known about one trial.

    `pods` are those whose controller is this very Trial, by name. `last` is the last state seen of the
    open attempt's pods whose deletion has been watched. `gone`: a live read has just said of the open
    attempt's pods that are not there that they do not exist. `report`: the newest live report and when it was received;
    `watched`: since when reports have been received at all. `silent`: pods that are being deleted and whose node does
    not answer, or is gone.
    """

    experiment: Experiment
    trial: Trial
    pods: Mapping[str, Object]
    report: Message | None = None
    report_time: float | None = None
    watched: float = 0.0
    last: Mapping[str, Object] = field(default_factory=dict)
    gone: bool = False
    site: Site | None = None  # the cluster that pods are for, None: this machine
    mtbf: float = PRIOR_MTBF_SECONDS  # seconds between disruptions of a pod of this experiment
    started: bool = False  # whether a pod of this experiment is known to have been started
    held: Collection[int] = ()  # iterations that forks of this trial are about to begin from
    silent: Collection[str] = ()


@dataclass(frozen=True)
class CreatePod:
    """Create a pod of the open attempt; that its name is taken by ours is as good."""

    body: dict[str, Any]


@dataclass(frozen=True)
class CreateService:
    """Create the Service by which the pods of an attempt find each other; that ours is there is as good."""

    body: dict[str, Any]


@dataclass(frozen=True)
class DeleteService:
    """Delete the trial's Service, if there is one."""


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


Action = CreatePod | CreateService | DeletePod | DeleteService | ConfirmAbsence


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
        service = (DeleteService(),) if _nodes(view) > 1 else ()
        return Plan(_another_try(view, stop, now), (*leftovers, *service))
    if stop is not None:
        return Plan(_rest(view, stop, now), leftovers)
    if _condition(view.experiment, names.STALLED) == ("True", names.REPEATED_ERROR) and status.reason != "Retried":
        return Plan(actions=leftovers)  # the next attempt would end as the last ones did
    wait = seconds(status.next_attempt_time) - now if status.next_attempt_time else 0.0
    if 0 < wait <= ledger.FAILED_BACKOFF_LIMIT:  # what is further off comes from a clock that was ahead
        return Plan(actions=leftovers, after=wait)
    if _still_running(view, now):
        return Plan(actions=leftovers, after=5.0)
    opened = placement.opened(view.experiment.spec, ledger.open_attempt(ledger.resumed(status, now)))
    return Plan(_observed(view, opened), (*leftovers, *_create(view, opened)))


def _nodes(view: View) -> int:
    return view.experiment.spec.nodes


def _pods(view: View, attempt: int) -> list[str]:
    """Names of an attempt's pods, by rank."""
    return names.pod_names(view.trial.name, attempt, _nodes(view))


def _create(view: View, status: TrialStatus) -> tuple[Action, ...]:
    """All pods of an attempt; if they are several, after what they find each other by."""
    service = (CreateService(nodes.service(view.experiment, view.trial)),) if _nodes(view) > 1 else ()
    return (*service, *_create_pods(view, status, range(_nodes(view))))


def _create_pods(view: View, status: TrialStatus, ranks: Iterable[int]) -> tuple[Action, ...]:
    trial = view.trial.model_copy(update={"status": status})
    where = (view.experiment, trial, status.attempt, view.site, view.mtbf, view.held)
    return tuple(CreatePod(pods.render(*where, rank=rank)) for rank in ranks)


def _still_running(view: View, now: float) -> bool:
    """One trainer of a trial at a time, but for pods that may never end, and after Lost: the fence holds."""
    history = view.trial.status.history
    if history and history[-1].class_ == endings.LOST:
        return False
    running = (pod for pod in view.pods.values() if not evidence.ended(pod, _container(view)))
    return any(not _silence(view, pod, now) for pod in running)


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
        kept = _pods(view, status.closed)[status.history[-1].rank or 0]
    return tuple(
        DeletePod(name, pod["metadata"]["uid"])
        for name, pod in sorted(view.pods.items())
        if not pod["metadata"].get("deletionTimestamp") and not (name == kept and evidence.ended(pod, _container(view)))
    )


def _container(view: View) -> str:
    return view.experiment.spec.container_name


def _open(view: View, now: float) -> Plan:
    """An attempt is open: find its pods, hear them, judge them, or watch over them."""
    status, names_ = view.trial.status, _pods(view, view.trial.status.attempt)
    status = ledger.record_pods(status, names_[0], [view.pods.get(name) for name in names_], now)
    if status.pod is None:
        return _without_pod(view, now)
    ranks = group.ranks(names_, status.pod, view.pods, view.last, lambda pod: _silence(view, pod, now))
    doubtful = [rank.name for rank in ranks if rank.gone and rank.name not in view.pods]
    if doubtful and not view.gone:
        return Plan(actions=tuple(map(ConfirmAbsence, doubtful)))
    status = ledger.heard(status, view.report)
    assert status.pod is not None
    ending = group.verdict(ranks, status.pod.ended, _container(view), _judge(view, status))
    if ending is None:
        return _watch(view, status, ranks, now)
    left = [rank for rank in ranks if not rank.unmade and not rank.over(_container(view))]
    if left:
        wait = group.settling(ending, now) if status.intent is None and status.pod.ended is None else 0.0
        if wait:
            return Plan(_observed(view, status), after=wait)
        return _dissolved(view, ledger.heard(status, ending.said), ending, left)
    unmade = [rank.name for rank in ranks if rank.unmade]
    if unmade and not view.gone:
        return Plan(actions=tuple(map(ConfirmAbsence, unmade)))
    return _closed(view, status, ending, now)


def _judge(view: View, status: TrialStatus) -> group.Judge:
    """How a pod that has ended is judged. Only rank 0 reports, and it alone leaves last words."""

    def judge(rank: group.Rank, pod: Object | None) -> Ending:
        ending = endings.classify(
            pod,
            container=_container(view),
            attempt=status.attempt,
            intent=_intended(status.intent),
            report=view.report if rank.number == 0 else None,
            reported=ledger.has_reported(status),
            gone=True,
            silent=rank.silent,
            rules=view.experiment.spec.failure_policy.rules or (),
        )
        assert ending is not None
        return ending

    return judge


def _dissolved(view: View, status: TrialStatus, ending: Ending, left: Sequence[group.Rank]) -> Plan:
    """One pod's end is all pods' end: why is stored first, so that what we delete is not taken for the reason."""
    assert status.pod is not None
    if status.intent is None:
        status = status.model_copy(update={"pod": status.pod.model_copy(update={"ended": group.record(ending)})})
    return Plan(_observed(view, status), _delete(left), after=LEAVING)


def _delete(ranks: Iterable[group.Rank]) -> tuple[Action, ...]:
    """End these pods, as they were judged by."""
    pods = [(rank, rank.pod["metadata"]) for rank in ranks if rank.pod is not None and not rank.leaving]
    return tuple(DeletePod(rank.name, rank.uid, version=meta.get("resourceVersion")) for rank, meta in pods)


def leaving(view: View) -> list[Object]:
    """Pods that are being deleted and have not ended, if anybody waits for that: only their nodes can end them."""
    if view.trial.status.phase in ledger.FINAL:
        return []
    deleted = (pod for pod in view.pods.values() if pod["metadata"].get("deletionTimestamp"))
    return [pod for pod in deleted if not evidence.ended(pod, _container(view))]


def _silence(view: View, pod: Object, now: float) -> str:
    """Why a pod on its way out will not be ended by its node, in one sentence; empty if it may be.

    It would be waited for forever; the fence holds off a trainer that lives on there.
    """
    deleted = pod["metadata"].get("deletionTimestamp")
    if view.site is None or not deleted or evidence.ended(pod, _container(view)):
        return ""
    node, limit = evidence.node_of(pod), view.experiment.spec.timeouts.node_lost_seconds
    if pod["metadata"]["name"] in view.silent:
        return f"node {node} does not answer"
    late = limit > 0 and now >= seconds(deleted) + limit
    return f"node {node} has not ended the pod {limit:g} s after its grace" if late else ""


def _without_pod(view: View, now: float) -> Plan:
    """The number is stored, no pod is known to exist: create them, unless nobody wants them any more."""
    status, stop = view.trial.status, wanted(view)
    if stop is None:
        return Plan(actions=_create(view, status))
    if not view.gone:
        return Plan(actions=tuple(map(ConfirmAbsence, _pods(view, status.attempt))))
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


def _watch(view: View, status: TrialStatus, ranks: Sequence[group.Rank], now: float) -> Plan:
    """The pods live: end them if they are not wanted or hang, else complete them and note what they said."""
    alive = [rank for rank in ranks if rank.pod is not None and not rank.over(_container(view))]
    bodies = [rank.pod for rank in alive if rank.pod is not None]
    unmade = [rank.number for rank in ranks if rank.unmade]
    intent = status.intent or wanted(view)
    after: float | None = None
    if intent is None and unmade:
        return Plan(_observed(view, status), _create_pods(view, status, unmade), after=_sooner(None, bodies))
    if intent is None:
        intent, after = _watched(view, status, bodies, now)
    if intent is None:
        return Plan(_observed(view, _held(status, alive, now)), after=_sooner(after, bodies))
    status = status.model_copy(update={"intent": intent})
    return Plan(_observed(view, status), _delete(alive), after=_sooner(None, bodies))


def _watched(view: View, status: TrialStatus, alive: Sequence[Object], now: float) -> watchdogs.Watch:
    """What has run out. Of several pods the slowest count: who has not begun, else who has begun last."""
    report, recorded, last = view.report, status.pod, status.history[-1] if status.history else None
    assert recorded is not None
    heard = None
    if recorded.first_report_time is not None:
        # Who has just come up has heard no report yet, and waits for the next one as long as for any.
        own = view.report_time if report is not None and report.attempt == status.attempt else None
        heard = own or max(view.watched, seconds(recorded.first_report_time))
    starting = [pod for pod in alive if not evidence.begun(pod, _container(view))] if len(alive) > 1 else []
    slowest = starting or [max(alive, key=lambda pod: watchdogs.began(pod, _container(view)) or 0.0)]
    watches = [
        watchdogs.watch(
            watchdogs.Pod(
                body=pod,
                container=_container(view),
                recorded=seconds(recorded.start_time),
                heard=None if starting else heard,
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


def _sooner(after: float | None, pods: Iterable[Object]) -> float | None:
    """A pod on its way out is looked at again and again, since its node may be silent; one that starts, later."""
    waits = [after, *(_again(pod) for pod in pods)]
    return min((wait for wait in waits if wait is not None), default=None)


def _again(pod: Object) -> float | None:
    return LEAVING if pod["metadata"].get("deletionTimestamp") else PATIENCE + 1 if starting(pod) else None


def _held(status: TrialStatus, alive: Sequence[group.Rank], now: float) -> TrialStatus:
    """Whether the pods have started, as far as anybody has to know; the same trouble is not told in new words."""
    assert status.pod is not None
    waits = ((rank, waiting(rank.pod, now)) for rank in alive if rank.pod is not None)
    rank, held = next(((rank, held) for rank, held in waits if held is not None), (None, None))
    if held is None or rank is None:
        update = {"phase": "Running", "reason": "", "message": ""}
    elif (status.phase, status.reason) == ("Waiting", held.reason):
        return status
    else:
        whose = f"rank {rank.number}: " if status.pod.others else ""
        update = {"phase": "Waiting", "reason": held.reason, "message": f"{whose}{held.message}"[:2048]}
    return status.model_copy(update=update)
