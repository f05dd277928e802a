"""Reconciling one experiment: count its trials, say where it stands, create the next ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment, ExperimentStatus
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.api.validate import InvalidObject
from trialkeeper_operator.decide import experiment as decide
from trialkeeper_operator.decide import fork, waiting
from trialkeeper_operator.decide.fork import Fork, NoBase, NotYet
from trialkeeper_operator.decide.pods import render
from trialkeeper_operator.decide.waiting import Waiting
from trialkeeper_operator.reconcile import restore, snapshot
from trialkeeper_operator.reconcile.admitted import admitted
from trialkeeper_operator.reconcile.ask import ask, limit
from trialkeeper_operator.reconcile.ports import AlreadyExists, Conflict, Invalid, Object, QuotaExceeded
from trialkeeper_operator.reconcile.refusing import refuse
from trialkeeper_operator.reconcile.world import Outcome, World, remaining
from trialkeeper_operator.search.check import checked
from trialkeeper_operator.state.cache import Name, owner_uid

REFUSED = 60.0  # seconds until refused pods are tried again: a service account may come, a policy may change
REHEARSAL = "00000000-0000-0000-0000-000000000000"  # the uid of a Trial that is not made
COUNTING = 1.0  # seconds between two writes of a status in which only counts differ, at least
HELD = 15.0  # seconds until a trial that could not be made is tried again

_COUNTS = frozenset(
    {"trials", "enqueued", "active", "finished", "counts", "best", "disruptions", "failures", "lost_work", "goodput"}
)


async def reconcile(world: World, name: Name) -> Outcome:
    """One pass over an experiment; seconds until the next one is wanted, if the clock decides it."""
    raw = world.cache.raw(names.EXPERIMENT, name)
    if raw is None or raw["metadata"].get("deletionTimestamp"):
        return None
    refusal = _refusal(world, dict(raw))
    if refusal is not None:
        await refuse(world, dict(raw), names.INVALID, str(refusal))
        return None
    experiment = world.cache.experiment(name)
    if experiment is None:
        return None  # a status of ours that does not fit: another version of us wrote it
    if restore.pending(experiment):
        return await restore.carry_out(world, name)
    plan = _planned(world, experiment)
    if plan.create and plan.status.trials == 0 and world.site is not None:
        try:
            await _rehearse(world, experiment)
        except Invalid as refusal:
            await refuse(world, dict(raw), names.POD_REFUSED, f"its pods are refused: {refusal}")
            return REFUSED
    if plan.status != experiment.status and (decide.over(plan.status) or decide.over(experiment.status)):
        # A verdict is given for good, and taken back for good reasons: the cache may have missed what a trial
        # has become, the cluster has not.
        await _list_trials(world, experiment)
        plan = _planned(world, experiment)
    status = plan.status.to_object()
    refused: Waiting | None = None
    try:
        # The snapshot first: once an experiment is called over, nobody may come by again to write it.
        wait = await snapshot.keep(world, dict(raw), status, over=decide.over(plan.status))
    except snapshot.Behind as behind:
        found = await world.look(names.EXPERIMENT, name)
        if found is not None and found["metadata"]["uid"] == experiment.uid:
            await _list_trials(world, experiment)
            world.snapshots[experiment.uid] = behind.kept
        return 0.0
    except snapshot.NotKept as refusal:
        wait, refused = snapshot.RETRY, refusal.why
    plan = replace(plan, status=decide.kept(plan.status, refused, world.now()))
    left = _until_counted(world, experiment, plan.status)
    if left > 0:
        wait = left if wait is None else min(wait, left)
    elif plan.status != experiment.status:
        try:
            await world.put_status(raw, plan.status.to_object())
        except Conflict:
            await world.look(names.EXPERIMENT, name)
            return 0.0
        world.counted[experiment.uid] = world.now()
    first = plan.status.trials
    for index in range(first, first + plan.create):
        try:
            held = await _create(world, experiment, index)
        except NoBase as never:
            await _pass_over(world, name, str(never))
            return 0.0
        if held is not None:
            # Said by the next pass, which comes at once if it is news.
            news = world.held.get(experiment.uid) != held
            world.held[experiment.uid] = held
            return 0.0 if news else HELD
    world.held.pop(experiment.uid, None)
    return wait


def _refusal(world: World, raw: Object) -> InvalidObject | None:
    """Which rules an object breaks, those included that no CRD can say; one that is good is looked at once."""
    uid, generation = raw["metadata"].get("uid", ""), raw["metadata"].get("generation", 0)
    if world.accepted.get(uid) == generation:
        return None
    try:
        checked(raw)
    except InvalidObject as refusal:
        return refusal
    world.accepted[uid] = generation
    return None


async def _list_trials(world: World, experiment: Experiment) -> None:
    labels = {names.LABEL_EXPERIMENT: experiment.name}
    async for trial in world.cluster.list(names.TRIAL, experiment.namespace, labels):
        world.seen(names.TRIAL, trial)


def _until_counted(world: World, experiment: Experiment, new: ExperimentStatus) -> float:
    """Seconds for which a status waits that says nothing new but counts: they change all the time."""
    old = experiment.status
    if new == old or old.model_copy(update={field: getattr(new, field) for field in _COUNTS}) != new:
        return 0.0
    return remaining(world.counted.get(experiment.uid, 0.0), COUNTING, world.now())


def _planned(world: World, experiment: Experiment) -> decide.Plan:
    trials = world.cache.trials_of(experiment)
    held = world.held.get(experiment.uid)
    # On one machine nobody waits for anything: the run ends, and says why.
    mendable, most = world.site is not None, limit(experiment, trials)
    plan = decide.plan(experiment, trials, limit=most, now=world.now(), held=held, mendable=mendable)
    return replace(plan, status=decide.swept(experiment, plan.status, world.site, world.now()))


async def _create(world: World, experiment: Experiment, index: int) -> Waiting | None:
    """Create one trial, or say why that is not possible now."""
    trials = world.cache.trials_of(experiment)
    if len(trials) != index and fork.following(experiment, trials) is not None:
        # A trial that is not known here may be that very entry's.
        await _list_trials(world, experiment)
        trials = world.cache.trials_of(experiment)
    try:
        base = await _base(world, experiment, trials)
    except NotYet as to_come:
        return Waiting(waiting.BASE, f"the next entry of enqueue waits: {to_come}"[:1024])
    searches = world.searches.setdefault(experiment.uid, {})
    body = ask(experiment, trials, index, searches, base)
    try:
        created = await world.cluster.create(body)
    except AlreadyExists:
        # Ours from before a crash, or from another operator: its parameters stand.
        name = body["metadata"]["name"]
        found = await world.look(names.TRIAL, (experiment.namespace, name))
        if found is None or owner_uid(found) == experiment.uid:
            return None
        return Waiting(waiting.NAME_TAKEN, f"the trial's name {name} is somebody else's: delete that Trial"[:1024])
    except QuotaExceeded as full:
        return Waiting(waiting.QUOTA, f"the namespace's quota has no room for another trial: {full}"[:1024])
    except Invalid as refusal:
        return Waiting(waiting.REFUSED, f"the next trial is refused: {refusal}"[:1024])
    world.seen(names.TRIAL, created)
    return None


async def _base(world: World, experiment: Experiment, trials: Sequence[Trial]) -> Fork | None:
    """What the next trial begins from, None if that is the start.

    :raises NoBase: if the entry of `enqueue` whose turn it is names something that will never be there.
    :raises NotYet: if it names something that is still to come.
    """
    turn = fork.following(experiment, trials)
    if turn is None or turn[1].base is None:
        return None
    base, namespace = turn[1].base, experiment.namespace
    if world.cache.trial((namespace, base.trial)) is None:
        await world.look(names.TRIAL, (namespace, base.trial))
    donor = world.cache.trial((namespace, base.trial))
    theirs = world.cache.experiment((namespace, donor.spec.experiment)) if donor else None
    if donor is not None and theirs is not None and theirs.uid != donor.spec.experiment_uid:
        theirs = None
    return fork.fork(experiment, base, donor, theirs)


async def _pass_over(world: World, name: Name, why: str) -> None:
    """Store that the entry of `enqueue` whose turn it is cannot become a trial: it keeps nothing else waiting."""
    raw, experiment = world.cache.raw(names.EXPERIMENT, name), world.cache.experiment(name)
    turn = fork.following(experiment, world.cache.trials_of(experiment)) if experiment else None
    if raw is None or experiment is None or turn is None:
        return
    status = decide.passed_over(experiment.status, turn[0], why, world.now())
    try:
        await world.put_status(raw, status.to_object())
    except Conflict:
        await world.look(names.EXPERIMENT, name)


async def _rehearse(world: World, experiment: Experiment) -> None:
    """Ask whether the first trial's pod would be let in, before any Trial is made that could only fail.

    :raises Invalid: if it would not.
    """
    body = ask(experiment, [], 0, world.searches.setdefault(experiment.uid, {}))
    body["metadata"]["uid"] = REHEARSAL
    pod = render(experiment, Trial.from_object(body), 1, world.site)
    try:
        await admitted(world, experiment.uid, pod, dry_run=True)
    except (AlreadyExists, QuotaExceeded):
        return  # it is there already, or waits for its turn
