"""Reconciling one trial: look at the cache, ask `decide`, store the status, carry out the actions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial, TrialStatus
from trialkeeper_operator.decide import endings, evidence, ledger, waiting
from trialkeeper_operator.decide import trial as decide
from trialkeeper_operator.decide.endings import Ending
from trialkeeper_operator.decide.view import (
    Action,
    ConfirmAbsence,
    CreatePod,
    CreateService,
    DeletePod,
    DeleteService,
    Plan,
    View,
)
from trialkeeper_operator.reconcile import restore, service
from trialkeeper_operator.reconcile.admitted import admitted
from trialkeeper_operator.reconcile.ports import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    QuotaExceeded,
)
from trialkeeper_operator.reconcile.world import Outcome, World, remaining
from trialkeeper_operator.state.cache import Name, owner_uid

_LIVE = frozenset({"iteration", "trained_seconds", "metrics", "save_interval", "goodput"})
CHECKPOINTS = 2.0  # seconds between two writes of a trial's newest checkpoint, at least
NAME_TAKEN = 30.0  # seconds until a pod's name that somebody else has is tried again
NO_ROOM = 15.0  # seconds until a pod that the quota has refused is tried again


async def reconcile(world: World, name: Name) -> Outcome:
    """One pass over a trial; seconds until the next one is wanted, if the clock decides it."""
    view = _view(world, name)
    if view is None:
        return None
    if world.site is not None:
        view = replace(view, silent=await _silent(world, decide.leaving(view)))
    plan = decide.plan(view, world.now())
    if world.site is not None and decide.gives_up(view, plan):
        ended = [view.pods[a.name] for a in plan.actions if isinstance(a, DeletePod) and a.name in view.pods]
        if silent := await _silent(world, ended):
            view = replace(view, silent={*view.silent, *silent})
            plan = decide.plan(view, world.now())
    doubtful = {action.name for action in plan.actions if isinstance(action, ConfirmAbsence)}
    if doubtful:
        view = await _confirmed(world, name, view, doubtful)
        if view is None:
            return 0.0
        plan = decide.plan(view, world.now())
    if plan.status is None and any(isinstance(action, CreatePod) for action in plan.actions):
        # No write of this pass says that the attempt is still open: who knows an old status would start a second pod.
        await world.look(names.TRIAL, name)
        if world.cache.trial(name) != view.trial:
            return 0.0
    if await _changed(world, view.trial, plan):
        return 0.0
    try:
        wait = await _store(world, name, view.trial, plan)
    except Conflict:
        await world.look(names.TRIAL, name)
        return 0.0
    for action in plan.actions:
        if not await _act(world, view, action):
            break
    waits = [seconds for seconds in (wait, plan.after) if seconds is not None]
    return min(waits) if waits else None


def _view(world: World, name: Name) -> View | None:
    trial = world.cache.trial(name)
    if trial is None or trial.deleting or trial.name != names.trial_name(trial.spec.experiment, trial.spec.index):
        return None
    experiment = world.cache.experiment((trial.namespace, trial.spec.experiment))
    if experiment is None or experiment.uid != trial.spec.experiment_uid or experiment.deleting:
        return None
    if not restore.may_run(experiment):
        return None  # its status may not be recorded yet: what is over would look like what has not begun
    report, heard = world.reports.get(name, (None, None))
    last = _last_seen(world, experiment, trial)
    pods, mtbf = world.cache.pods_of(trial), world.mtbf(experiment)
    forks = world.awaited(experiment, trial.name)
    started = _started(world, experiment, pods)
    known = (experiment, trial, pods, report, heard, world.began, last)
    return View(*known, site=world.site, mtbf=mtbf, started=started, held=forks)


def _last_seen(world: World, experiment: Experiment, trial: Trial) -> dict[str, Mapping[str, Any]]:
    """The open attempt's pods whose deletion was watched, as they were then; also those that were not noted before."""
    noted = trial.status.pod.uids if trial.status.pod else ()
    found = {}
    for name, uid in zip_longest(names.pod_names(trial.name, trial.status.attempt, experiment.spec.nodes), noted):
        pod = world.cache.last_pod((trial.namespace, name))
        if pod is not None and (pod["metadata"]["uid"] == uid if uid else owner_uid(pod) == trial.uid):
            found[name] = pod
    return found


def _started(world: World, experiment: Experiment, pods: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a pod of an experiment is known to have been started; looked at when one of these does not start."""
    if experiment.uid not in world.started and any(waiting.waiting(pod, world.now()) for pod in pods.values()):
        container, trials = experiment.spec.container_name, world.cache.trials_of(experiment)
        alive = (pod for trial in trials for pod in world.cache.pods_of(trial).values())
        if any(ledger.has_started(t.status) for t in trials) or any(evidence.begun(p, container) for p in alive):
            world.started.add(experiment.uid)
    return experiment.uid in world.started


async def _silent(world: World, pods: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Those of these pods whose node is gone or has not been heard of; none where nodes may not be read."""
    nodes = {pod["metadata"]["name"]: evidence.node_of(pod) for pod in pods}
    lost = {node for node in set(nodes.values()) if node is not None and await _lost(world, node)}
    return frozenset(name for name, node in nodes.items() if node in lost)


async def _lost(world: World, node: str) -> bool:
    if world.nodes_closed:
        return False
    try:
        found = await world.cluster.get(names.NODE, "", node)
    except Forbidden:
        world.nodes_closed = True
        return False
    if found is None:
        return True
    conditions = (found.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "Unknown" for c in conditions)


async def _changed(world: World, trial: Trial, plan: Plan) -> bool:
    """Whether a live read of a pod that is to be ended has brought news: what has ended is judged, not deleted.

    It comes before our intent is stored, since that explains whatever is seen of the pod later.
    """
    for action in plan.actions:
        if isinstance(action, DeletePod) and action.version is not None and action.uid not in world.deleted:
            found = await world.look(names.POD, (trial.namespace, action.name))
            if found is None or found["metadata"].get("resourceVersion") != action.version:
                return True
    return False


async def _confirmed(world: World, name: Name, view: View, doubtful: Collection[str]) -> View | None:
    """The view after a live read of those of the open attempt's pods; None if a read has brought news."""
    trial = view.trial
    for pod_name in sorted(doubtful):
        found = await world.look(names.POD, (trial.namespace, pod_name))
        if found is not None and owner_uid(found) == trial.uid:
            return None
    fresh = _view(world, name)
    if fresh is None or fresh.trial != trial or view.pods.keys() != fresh.pods.keys():
        return None
    return replace(fresh, gone=True, silent=view.silent)


async def _store(world: World, name: Name, trial: Trial, plan: Plan) -> Outcome:
    """Write the status, unless only what changes all the time differs and the last write is too young."""
    if plan.status is None:
        return None
    left = remaining(world.live_writes.get(name, 0.0), _patience(world, trial.status, plan.status), world.now())
    if left > 0:
        return left
    world.live_writes[name] = world.now()
    raw = world.cache.raw(names.TRIAL, name)
    if raw is None or raw["metadata"].get("resourceVersion") != trial.resource_version:
        raise Conflict(f"trial {trial.name} has changed since it was looked at")
    await world.put_status(raw, plan.status.to_object())
    if plan.status.closed > trial.status.closed:
        nodes = len(trial.status.pod.uids) if trial.status.pod else 1
        for pod in names.pod_names(trial.name, plan.status.closed, nodes):
            world.cache.forget_pod((trial.namespace, pod))
    return None


def _patience(world: World, old: TrialStatus, new: TrialStatus) -> float:
    """Seconds between two writes of what differs: the store has it all, so a trainer's pace is not the API server's."""
    if old.model_copy(update={field: getattr(new, field) for field in _LIVE}) == new:
        return world.status_interval
    if old.model_copy(update={field: getattr(new, field) for field in (*_LIVE, "checkpoint")}) == new:
        return min(world.status_interval, CHECKPOINTS)
    return 0.0


async def _act(world: World, view: View, action: Action) -> bool:
    """Carry out one action; False if those after it are in vain for now."""
    if isinstance(action, CreatePod):
        return await _create(world, view, action)
    if isinstance(action, CreateService):
        return await _serve(world, view, action)
    if isinstance(action, DeletePod):
        await _delete(world, view.trial, action)
    elif isinstance(action, DeleteService):
        await service.remove(world, view.experiment, view.trial)
    return True


async def _serve(world: World, view: View, action: CreateService) -> bool:
    trial = view.trial
    why = await service.ensure(world, view.experiment, trial, action.body)
    if why is not None:
        await _wait(world, (trial.namespace, trial.name), why.reason, why.message, NAME_TAKEN)
    return why is None


async def _create(world: World, view: View, action: CreatePod) -> bool:
    trial, pod = view.trial, action.body["metadata"]["name"]
    try:
        created = await admitted(world, view.experiment.uid, action.body)
    except AlreadyExists:
        # Ours from before a crash or a lost answer, or a stranger's: only the stored object knows.
        found = await world.look(names.POD, (trial.namespace, pod))
        if found is not None and owner_uid(found) != trial.uid:
            said = f"the pod's name {pod} is somebody else's: delete that pod"
            await _wait(world, (trial.namespace, trial.name), waiting.NAME_TAKEN, said, NAME_TAKEN)
            return False
        world.queue.add((names.TRIAL, (trial.namespace, trial.name)))
    except QuotaExceeded as full:
        said = f"the namespace's quota has no room: {full}"
        await _wait(world, (trial.namespace, trial.name), waiting.QUOTA, said, NO_ROOM)
        return False
    except Invalid as refusal:
        await _refused(world, (trial.namespace, trial.name), view, str(refusal))
        return False
    else:
        world.seen(names.POD, created)
    return True


async def _wait(world: World, name: Name, reason: str, sentence: str, after: float) -> None:
    """There can be no pod now: the attempt stays open without one, which costs the trial nothing."""
    world.queue.add((names.TRIAL, name), after)
    trial, raw = world.cache.trial(name), world.cache.raw(names.TRIAL, name)
    if trial is None or raw is None or trial.status.reason == reason:
        return
    waits = {"phase": "Waiting", "reason": reason, "message": sentence[:1024]}
    await world.put_status(raw, trial.status.model_copy(update=waits).to_object())


async def _refused(world: World, name: Name, view: View, sentence: str) -> None:
    """Admission refuses the pod: another try cannot help, the attempt ends with its sentence."""
    trial, raw = world.cache.trial(name), world.cache.raw(names.TRIAL, name)
    if trial is None or raw is None:
        return
    ending = Ending(endings.USER_ERROR, "PodRefused", sentence[:1024])
    closed = ledger.close(trial.status, ending, view.experiment.spec.failure_policy, world.now(), paused=False)
    await world.put_status(raw, closed.to_object())


async def _delete(world: World, trial: Trial, action: DeletePod) -> None:
    """Ask once: what the API server has granted need not be asked again until the watch tells of it."""
    if action.uid in world.deleted:
        return
    world.deleted.add(action.uid)
    try:
        await world.cluster.delete(
            names.POD,
            trial.namespace,
            action.name,
            uid=action.uid,
            version=action.version,
            grace_seconds=action.grace,
        )
    except ClusterError as refusal:
        world.deleted.discard(action.uid)
        await _not_deleted(world, trial, action, refusal)


async def _not_deleted(world: World, trial: Trial, action: DeletePod, refusal: ClusterError) -> None:
    """Take in why a pod could not be deleted: it is gone, or it has changed, or another has its name.

    :raises ClusterError: if it is for another reason.
    """
    if isinstance(refusal, NotFound):
        known = world.cache.raw(names.POD, (trial.namespace, action.name))
        if known is not None and known["metadata"]["uid"] == action.uid:
            world.vanished(names.POD, dict(known))
    elif isinstance(refusal, Conflict):
        # It has changed, or another has its name; only a look tells, and what is gone by the cache never comes back.
        await world.look(names.POD, (trial.namespace, action.name))
        world.queue.add((names.TRIAL, (trial.namespace, trial.name)))
    else:
        raise refusal
