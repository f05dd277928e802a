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
    world.services.setdefault(experiment.uid, {})[trial.uid] = found["metadata"]["uid"]
    return None


async def remove(world: World, experiment: Experiment, trial: Trial) -> None:
    """Delete a trial's Service if there is one."""
    if experiment.uid not in world.services_listed:
        await _list(world, experiment)
    uid = world.services[experiment.uid].get(trial.uid)
    if uid is None:
        return
    try:
        await world.cluster.delete(names.SERVICE, trial.namespace, trial.name, uid=uid)
    except NotFound:
        pass
    except Conflict:
        stored = await world.cluster.get(names.SERVICE, trial.namespace, trial.name)
        if stored is not None and stored["metadata"]["uid"] == uid:
            raise Unavailable(f"the Service {trial.name} cannot be deleted yet") from None
    world.services[experiment.uid].pop(trial.uid, None)


async def _list(world: World, experiment: Experiment) -> None:
    """Learn of the experiment's Services from before this operator, also of trials that it has not been told of yet."""
    labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_EXPERIMENT: experiment.name}
    listed = [s async for s in world.cluster.list(names.SERVICE, experiment.namespace, labels)]
    known = world.services.setdefault(experiment.uid, {})
    for found in listed:
        owner = owner_uid(found)
        if owner is not None:
            known.setdefault(owner, found["metadata"]["uid"])
    world.services_listed.add(experiment.uid)
