"""Restoring: a new experiment takes over the trials of a snapshot before it does anything of its own.

Every step may be done twice, by two operators, and be cut short anywhere. That all trials are there is stored
in the experiment's status; until then no other one is made and no snapshot is written, so that the one to go on
from stays what it was, also if it has the name that the new one will get. No trial runs before the experiment is
accepted, which is stored after its own first snapshot: what runs is in a snapshot that knows where it began.
"""

from __future__ import annotations

from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import holds
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.decide import evidence
from trialkeeper_operator.decide import restore as decide
from trialkeeper_operator.decide.restore import Donor, RestoreRefused, Row
from trialkeeper_operator.reconcile.ask import body, space_of
from trialkeeper_operator.reconcile.ports import AlreadyExists, Conflict, Invalid, Object
from trialkeeper_operator.reconcile.refusing import refuse
from trialkeeper_operator.reconcile.world import Outcome, World
from trialkeeper_operator.search.space import fits
from trialkeeper_operator.state import snapshot
from trialkeeper_operator.state.cache import Name, owner_uid

RETRY = 30.0  # seconds until a snapshot that cannot be used, or a name that somebody else has, is tried again

LOOK = 2.0  # seconds between two looks at trainers on their way out
PAST_GRACE = 30.0  # seconds after its deletionTimestamp, which contains its grace, that a pod is waited for
UNDELETED = 60.0  # seconds that the collector is given to delete the pods of an experiment that is gone


def pending(experiment: Experiment) -> bool:
    """Whether the experiment still has trials to take over."""
    return experiment.spec.restore_from is not None and experiment.status.restored is None


def may_run(experiment: Experiment) -> bool:
    """Whether the trials that there are may be run: those taken over not before they are all there."""
    if experiment.spec.restore_from is None:
        return True
    return holds(experiment.status.conditions, names.ACCEPTED) and not pending(experiment)


async def _saving(world: World, experiment: Experiment, donor: Donor) -> bool:
    """Whether trainers of the donor, which is gone, are still on their way out: what they save now will be needed.

    One that is past its grace is not waited for, nor one that nobody deletes: it may be on a node that is lost.
    """
    old = await world.cluster.get(names.EXPERIMENT, donor.namespace, donor.name)
    if old is not None and old["metadata"]["uid"] == donor.uid and not old["metadata"].get("deletionTimestamp"):
        return False
    patient = world.now() < seconds(experiment.created) + UNDELETED
    async for pod in world.cluster.list(names.POD, donor.namespace, {names.LABEL_EXPERIMENT: donor.name}):
        deleted, annotations = pod["metadata"].get("deletionTimestamp"), pod["metadata"].get("annotations") or {}
        waited = world.now() < seconds(deleted) + PAST_GRACE if deleted else patient
        if waited and not evidence.ended(pod, annotations.get(names.ANNOTATION_TRAINER, "")):
            return True
    return False


def read(experiment: Experiment, config_map: Object | None, now: float) -> tuple[Donor, list[Row]]:
    """What an experiment with restoreFrom goes on from.

    :raises RestoreRefused: if its ConfigMap is missing, or holds no snapshot that it can go on from.
    """
    source = experiment.spec.restore_from
    assert source is not None
    named = f"spec.restoreFrom: ConfigMap {source.config_map}"
    if config_map is None:
        where = f"in namespace {experiment.namespace}"
        raise RestoreRefused(f"{named} does not exist {where}: apply the snapshot, or name another one")
    try:
        found, trials = snapshot.decode(snapshot.data_of(config_map))
        donor = decide.donor_of(experiment, found)
        rows = decide.rows(experiment, donor, trials, source=source.config_map, now=now)
        space = space_of(experiment)
        for row in rows:
            if wrong := fits(space, row.spec.parameters):
                raise RestoreRefused(f"trial {row.spec.index} does not fit spec.parameters: {'; '.join(wrong)[:300]}")
    except (snapshot.SnapshotInvalid, RestoreRefused) as refusal:
        raise RestoreRefused(f"{named}: {refusal}") from refusal
    return donor, rows


async def carry_out(world: World, name: Name) -> Outcome:
    """Take over what is not there yet; seconds until the next try is wanted."""
    raw = await world.look(names.EXPERIMENT, name)
    experiment = world.cache.experiment(name)
    if raw is None or experiment is None or experiment.deleting:
        return None
    if not pending(experiment):
        return 0.0  # another operator is through, and may even have gone on
    source = experiment.spec.restore_from
    assert source is not None
    try:
        stored = await world.cluster.get(names.CONFIG_MAP, experiment.namespace, source.config_map)
        donor, rows = read(experiment, stored, world.now())
        for row in rows:
            if not await _take_over(world, experiment, row):
                return RETRY
        if await _saving(world, experiment, donor):
            return LOOK
    except RestoreRefused as refusal:
        await refuse(world, raw, names.NOT_RESTORED, str(refusal))
        return RETRY
    status = experiment.status.model_copy(update={"restored": decide.restored(donor, rows)})
    try:
        await world.put_status(raw, status.to_object())
    except Conflict:
        await world.look(names.EXPERIMENT, name)
    return 0.0


async def _take_over(world: World, experiment: Experiment, row: Row) -> bool:
    """Create one trial and record its status; False if its name is a stranger's.

    :raises RestoreRefused: if admission refuses it.
    """
    name = (experiment.namespace, names.trial_name(experiment.name, row.spec.index))
    while True:
        raw = world.cache.raw(names.TRIAL, name)
        if raw is None or owner_uid(raw) != experiment.uid:
            raw = await _created(world, experiment, row, name)
            if raw is None:
                return False
        if raw.get("status"):
            return True
        try:
            await world.put_status(raw, row.status.to_object())
        except Conflict:
            await world.look(names.TRIAL, name)


async def _created(world: World, experiment: Experiment, row: Row, name: Name) -> Object | None:
    """The trial as it is stored, None if the name is a stranger's."""
    spec, kept = row.spec, row.spec.to_object()
    made = body(experiment, spec.index, spec.parameters, spec.note or "", spec.name)
    taken: dict[str, Any] = {
        field: kept[field] for field in ("seed", "base", "enqueued", "fork", "desired", "retries") if field in kept
    }
    try:
        created = await world.cluster.create({**made, "spec": {**made["spec"], **taken}})
    except AlreadyExists:
        found = await world.look(names.TRIAL, name)
        return found if found is not None and owner_uid(found) == experiment.uid else None
    except Invalid as refusal:
        raise RestoreRefused(f"trial {spec.index} is refused: {refusal}") from refusal
    world.seen(names.TRIAL, created)
    return created
