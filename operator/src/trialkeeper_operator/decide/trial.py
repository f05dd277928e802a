"""What ought to happen to one trial: a flat list of guarded steps from what is known to a plan.

The plan's status is stored first, under the resourceVersion it was made from; only then are its actions
carried out. So an attempt's number is stored before its pod exists, our intent before our delete, and an
ending before the pod is cleared away. Any step may be repeated, and a crash between two is met again by
the next pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import Condition, Verdict, find, set_condition
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.api.trial import Intent, TrialStatus
from trialkeeper_operator.decide import endings, evidence, group, ledger, nodes, placement, pods, watching
from trialkeeper_operator.decide.endings import Ending
from trialkeeper_operator.decide.view import (
    Action,
    ConfirmAbsence,
    CreatePod,
    CreateService,
    DeletePod,
    DeleteService,
    Object,
    Plan,
    View,
)


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
    running = (pod for pod in view.pods.values() if not evidence.ended(pod, view.container))
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
    found = find(experiment.status.conditions, kind)
    return (found.status, found.reason) if found is not None else ("", "")


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
        if not pod["metadata"].get("deletionTimestamp") and not (name == kept and evidence.is_terminal(pod))
    )


def _open(view: View, now: float) -> Plan:
    """An attempt is open: find its pods, hear them, judge them, or watch over them."""
    status, names_ = view.trial.status, _pods(view, view.trial.status.attempt)
    # One that went before it was noted has been there all the same: why it went may be why the others end.
    known = [view.pods.get(name) or view.last.get(name) for name in names_]
    status = ledger.record_pods(status, names_[0], known, now)
    if status.pod is None:
        return _without_pod(view, now)
    ranks = group.ranks(names_, status.pod, view.pods, view.last, lambda pod: _silence(view, pod, now))
    doubtful = [rank.name for rank in ranks if rank.gone and rank.name not in view.pods]
    if doubtful and not view.gone:
        return Plan(actions=tuple(map(ConfirmAbsence, doubtful)))
    status = ledger.heard(status, view.report)
    assert status.pod is not None
    ending = group.verdict(ranks, status.pod.ended, view.container, _judge(view, status))
    if ending is None:
        return _watch(view, status, ranks, now)
    left = [rank for rank in ranks if not rank.unmade and not rank.over(view.container)]
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
            container=view.container,
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
    return Plan(_observed(view, status), _delete(left), after=watching.LEAVING)


def _delete(ranks: Iterable[group.Rank]) -> tuple[Action, ...]:
    """End these pods, as they were judged by."""
    pods = [(rank, rank.pod["metadata"]) for rank in ranks if rank.pod is not None and not rank.leaving]
    return tuple(DeletePod(rank.name, rank.uid, version=meta.get("resourceVersion")) for rank, meta in pods)


def leaving(view: View) -> list[Object]:
    """Pods that are being deleted and have not ended, if anybody waits for that: only their nodes can end them."""
    if view.trial.status.phase in ledger.FINAL:
        return []
    deleted = (pod for pod in view.pods.values() if pod["metadata"].get("deletionTimestamp"))
    return [pod for pod in deleted if not evidence.ended(pod, view.container)]


def gives_up(view: View, plan: Plan) -> bool:
    """Whether a plan ends pods since one of their clocks has run out: only if their nodes answer is it their fault."""
    new = plan.status is not None and plan.status.intent is not None and view.trial.status.intent is None
    return new and wanted(view) is None


def _silence(view: View, pod: Object, now: float) -> str:
    """Why a pod on its way out will not be ended by its node, in one sentence; empty if it may be.

    It would be waited for forever; the fence holds off a trainer that lives on there.
    """
    deleted = pod["metadata"].get("deletionTimestamp")
    if view.site is None or not deleted or evidence.ended(pod, view.container):
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
    alive = [rank for rank in ranks if rank.pod is not None and not rank.over(view.container)]
    bodies = [rank.pod for rank in alive if rank.pod is not None]
    unmade = [rank.number for rank in ranks if rank.unmade]
    intent = status.intent or wanted(view)
    after: float | None = None
    if intent is None and unmade:
        return Plan(_observed(view, status), _create_pods(view, status, unmade), after=watching.sooner(None, bodies))
    # Who is on the way out reports no more, and what it leaves behind says why it went; the others wait for it.
    if intent is None and not any(rank.leaving for rank in alive):
        intent, after = watching.watched(view, status, bodies, now)
        if intent is not None and any(rank.name in view.silent for rank in alive):
            intent, after = None, watching.LEAVING  # it is silent with its node, which is said when that is lost
    if intent is None:
        return Plan(_observed(view, watching.held(status, alive, now)), after=watching.sooner(after, bodies))
    status = status.model_copy(update={"intent": intent})
    return Plan(_observed(view, status), _delete(alive), after=watching.sooner(None, bodies))
