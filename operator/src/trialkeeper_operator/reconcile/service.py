"""The headless Services of trials of several pods: made before the pods, gone when the trial is over.

They are not watched. Which there are is listed once for an experiment, so that a trial that is over costs nothing.
"""

from __future__ import annotations

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide import waiting
from trialkeeper_operator.decide.waiting import Waiting
from trialkeeper_operator.reconcile.ports import (
    AlreadyExists,
    Conflict,
    Invalid,
    NotFound,
    Object,
    QuotaExceeded,
    Unavailable,
)
from trialkeeper_operator.reconcile.world import World
from trialkeeper_operator.state.cache import owner_uid


async def ensure(world: World, experiment: Experiment, trial: Trial, body: Object) -> Waiting | None:
    """Have a trial's Service made, or say why that is not possible now."""
    try:
        found = await world.cluster.create(body)
    except AlreadyExists:
        stored = await world.cluster.get(names.SERVICE, trial.namespace, trial.name)
        if stored is None:
            raise Unavailable(f"the Service {trial.name} went while it was looked at") from None
        if owner_uid(stored) != trial.uid:
            return Waiting(waiting.NAME_TAKEN, f"the Service {trial.name} is somebody else's: delete that Service")
        found = stored
    except QuotaExceeded as full:
        return Waiting(waiting.QUOTA, f"the namespace's quota has no room for the trial's Service: {full}"[:1024])
    except Invalid as refused:
        return Waiting(waiting.SERVICE, f"the trial's Service is refused: {refused}"[:1024])
    world.services.setdefault(experiment.uid, {})[trial.name] = found["metadata"]["uid"]
    return None


async def remove(world: World, experiment: Experiment, trial: str) -> None:
    """Delete a trial's Service if there is one."""
    if experiment.uid not in world.services_listed:
        await _list(world, experiment)
    uid = world.services[experiment.uid].get(trial)
    if uid is None:
        return
    try:
        await world.cluster.delete(names.SERVICE, experiment.namespace, trial, uid=uid)
    except NotFound:
        pass
    except Conflict:
        stored = await world.cluster.get(names.SERVICE, experiment.namespace, trial)
        if stored is not None and stored["metadata"]["uid"] == uid:
            raise Unavailable(f"the Service {trial} cannot be deleted yet") from None
    world.services[experiment.uid].pop(trial, None)


async def _list(world: World, experiment: Experiment) -> None:
    """Learn of the experiment's Services from before this operator; what has been made meanwhile is known."""
    labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_EXPERIMENT: experiment.name}
    listed = [s async for s in world.cluster.list(names.SERVICE, experiment.namespace, labels)]
    ours, known = {t.uid for t in world.cache.trials_of(experiment)}, world.services.setdefault(experiment.uid, {})
    for found in listed:
        if owner_uid(found) in ours:
            known.setdefault(found["metadata"]["name"], found["metadata"]["uid"])
    world.services_listed.add(experiment.uid)
