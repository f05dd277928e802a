"""What ought to happen to one experiment: how many trials to start, when it is over, what its status says."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trialkeeper import contract
from trialkeeper.store.address import Bucket, bucket_of
from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import Condition, Verdict, find, set_condition
from trialkeeper_operator.api.experiment import Best, Experiment, ExperimentStatus, Objective
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import LostWork, Trial
from trialkeeper_operator.decide import fork, ledger, repetition, waiting
from trialkeeper_operator.decide.objective import reached, value, values
from trialkeeper_operator.decide.pods import Site


@dataclass(frozen=True)
class Plan:
    """`status` to store if it differs from the stored one; then as many new trials as `create` says."""

    status: ExperimentStatus
    create: int = 0


def over(status: ExperimentStatus) -> bool:
    """Whether the experiment has its verdict."""
    condition = find(status.conditions, names.SUCCEEDED)
    return condition is not None and condition.status != "Unknown"


def template_hash(experiment: Experiment) -> str:
    """Of the template as it was accepted; what CEL lets slip through is found by it."""
    text = json.dumps(experiment.spec.template.to_object(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan(
    experiment: Experiment,
    trials: Sequence[Trial],
    *,
    limit: int,
    now: float,
    held: waiting.Waiting | None = None,
    mendable: bool = True,
) -> Plan:
    """The next step of an experiment whose trials are `trials`, by index.

    `limit` is how many trials it can have: maxTrials, or fewer where the search knows no more points. `held`: why the
    next trial could not be made. `mendable`: somebody may mend what is wrong while the experiment waits for it.
    """
    status = _counted(experiment, trials)
    digest = template_hash(experiment)
    if status.template_hash not in (None, digest):
        return Plan(_refused(experiment, status, now))
    status = _accepted(experiment, status.model_copy(update={"template_hash": digest}), now)
    status = _roomed(experiment, status, limit, now)
    settled = find(status.conditions, names.SUCCEEDED)
    spent = status.active == 0 and status.trials >= limit
    if settled is not None and settled.status != "Unknown" and (settled.reason in names.STOPPING or spent):
        return Plan(status)
    again = repetition.repeated(trials, experiment.spec.failure_policy.max_repeated_errors)
    reason = _stopping(experiment, trials, settled)
    if reason is None and again is not None and not mendable:
        reason = names.REPEATED_ERROR
    if reason is None and status.trials >= limit and status.active == 0:
        reason = names.ALL_TRIALS_FINISHED
    status = _stalled(status, trials, held, again if reason in (None, names.REPEATED_ERROR) else None, now)
    if reason is None and experiment.spec.suspend:
        return Plan(_suspended(status, trials, now))
    status = _resumed(status, now)
    if reason is None:
        room = max(0, min(experiment.spec.parallelism - status.active, limit - status.trials))
        return Plan(_running(status, now, "Running", "trials are running"), 0 if again is not None else room)
    if status.active > 0:
        return Plan(_running(status, now, reason, names.STOPPING[reason]))
    return Plan(_finished(experiment, trials, status, reason, now))


def _stopping(experiment: Experiment, trials: Sequence[Trial], settled: Condition | None) -> str | None:
    """Why the rest of the trials is not wanted any more; once said it stays said."""
    if settled is not None and settled.reason in names.STOPPING:
        return settled.reason
    failed = sum(t.status.phase == "Failed" for t in trials)
    allowed = experiment.spec.failure_policy.max_failed_trials
    if allowed is not None and failed > allowed:
        return names.TOO_MANY_FAILED_TRIALS
    if any(t.status.phase == "Failed" and t.status.reason == names.FAIL_EXPERIMENT for t in trials):
        return names.FAIL_EXPERIMENT
    if any(reached(experiment.spec.objectives, t.status) for t in trials):
        return names.TARGET_REACHED
    return None


def _counted(experiment: Experiment, trials: Sequence[Trial]) -> ExperimentStatus:
    counts: Counter[str] = Counter(t.status.phase for t in trials)
    lost = LostWork(
        iterations=sum(t.status.lost_work.iterations for t in trials),
        seconds=sum(t.status.lost_work.seconds for t in trials),
        restart_seconds=sum(t.status.lost_work.restart_seconds for t in trials),
    )
    trained = sum(t.status.trained_seconds for t in trials)
    finished = sum(counts[phase] for phase in ledger.FINAL)
    return experiment.status.model_copy(
        update={
            "observed_generation": experiment.generation,
            # Every index that was ever given out: a trial that somebody deleted is not made again, since its
            # part of the store belongs to it for ever.
            "trials": max([experiment.status.trials, *(t.spec.index + 1 for t in trials)]),
            "enqueued": fork.queued(experiment, trials),
            "active": len(trials) - finished,
            "finished": finished,
            "counts": dict(sorted(counts.items())),
            "best": best(experiment, trials),
            "disruptions": sum(t.status.disruptions for t in trials),
            "failures": sum(t.status.failures for t in trials),
            "lost_work": lost,
            "goodput": ledger.goodput(trained, lost),
        }
    )


def best(experiment: Experiment, trials: Sequence[Trial]) -> Best | None:
    """The trial with the best first objective; the lower index among equals."""
    objectives = experiment.spec.objectives
    sign = 1.0 if objectives[0].direction == "Minimize" else -1.0
    sound = (t for t in trials if t.status.phase != "Failed")
    measured = [(v, t) for t in sound if (v := value(objectives[0], t.status)) is not None]
    if not measured:
        return None
    number, trial = min(measured, key=lambda pair: (sign * pair[0], pair[1].spec.index))
    return Best(
        trial=trial.name,
        parameters=trial.spec.parameters,
        value=number,
        values=values(objectives, trial.status) if len(objectives) > 1 else None,
        iteration=trial.status.iteration,
        checkpoint=_place(experiment, trial),
    )


def _place(experiment: Experiment, trial: Trial) -> str | None:
    """Where a trial's newest checkpoint is in the store: its manifest's key, in full."""
    if trial.status.checkpoint is None:
        return None
    key = trial.status.checkpoint.key
    if contract.parse_inherited_key(key) is not None:
        return key
    return f"{contract.prefix(trial.namespace, experiment.name, experiment.uid, trial.spec.index)}/{key}"[:256]


def _with(
    status: ExperimentStatus, type_: str, verdict: Verdict, reason: str, message: str, now: float
) -> ExperimentStatus:
    condition = Condition(
        type=type_, status=verdict, reason=reason, message=message[:1024], last_transition_time=stamp(now)
    )
    return status.model_copy(update={"conditions": set_condition(status.conditions, condition)})


def _accepted(experiment: Experiment, status: ExperimentStatus, now: float) -> ExperimentStatus:
    status = status.model_copy(update={"start_time": status.start_time or stamp(now)})
    return _with(status, names.ACCEPTED, "True", "Valid", "the experiment is valid", now)


def kept(status: ExperimentStatus, refusal: waiting.Waiting | None, now: float) -> ExperimentStatus:
    """The status with what has become of its snapshot; nothing is said of one that was always kept."""
    if refusal is not None:
        return _with(status, names.SNAPSHOT_KEPT, "False", refusal.reason, refusal.message, now)
    if find(status.conditions, names.SNAPSHOT_KEPT) is None:
        return status
    return _with(status, names.SNAPSHOT_KEPT, "True", "Written", "the snapshot is kept", now)


def swept(experiment: Experiment, status: ExperimentStatus, site: Site | None, now: float) -> ExperimentStatus:
    """The status with who sweeps its store; nothing is said as long as nothing is wanted that only a sweep does."""
    spec, ways = experiment.spec, []
    place = shlex.quote(_place_of_store(experiment, site))
    if spec.checkpoint.budget is not None:
        ways.append(f"checkpoint.budget: trialkeeper sweep {place} --budget {spec.checkpoint.budget}")
    if spec.deletion_policy.checkpoints == "Delete":
        folder = contract.prefix(experiment.namespace, experiment.name, experiment.uid, 0).rpartition("/")[0]
        ways.append(f"deletionPolicy.checkpoints, afterwards: trialkeeper sweep {place} --delete {folder}")
    ours = site is not None and site.swept and spec.storage is None
    if not ways or ours:
        if find(status.conditions, names.SWEPT) is None:
            return status
        return _with(status, names.SWEPT, "True", "Operator" if ours else "NotWanted", "nobody has to do anything", now)
    message = f"the operator does not sweep this store, somebody must run, for {'; for '.join(ways)}"
    return _with(status, names.SWEPT, "False", "NotByOperator", message, now)


def _place_of_store(experiment: Experiment, site: Site | None) -> str:
    """What a sweep is to be told of where an experiment's store is."""
    storage = experiment.spec.storage
    if site is None:
        return f"runs/{experiment.name}"
    if storage is not None and storage.volume is not None:
        return storage.volume.path
    if storage is not None and storage.s3 is not None:
        return Bucket(storage.s3.bucket, endpoint=storage.s3.endpoint or "", region=storage.s3.region).url
    return replace(bucket_of(site.store), from_service=False).url if site.store.startswith("s3://") else "PLACE"


def passed_over(status: ExperimentStatus, position: int, why: str, now: float) -> ExperimentStatus:
    """The status once an entry of `enqueue` has had its turn and could not become a trial."""
    update = {"enqueued": position + 1, "passed_over": status.passed_over + 1}
    message = f"enqueue[{position}] is passed over: {why}"
    return _with(status.model_copy(update=update), names.ENQUEUED, "False", names.BASE_MISSING, message, now)


def _roomed(experiment: Experiment, status: ExperimentStatus, limit: int, now: float) -> ExperimentStatus:
    """The status with whether the limit of trials leaves room for all entries of `enqueue`."""
    left, said = len(experiment.spec.enqueue or ()) - status.enqueued, find(status.conditions, names.ENQUEUED)
    if left > 0 and status.trials >= limit:
        message = f"enqueue has {left} more than maxTrials leaves room for: raise it"
        return _with(status, names.ENQUEUED, "False", names.NO_ROOM, message, now)
    if said is None or (said.status, said.reason) != ("False", names.NO_ROOM):
        return status
    return _with(status, names.ENQUEUED, "True", "Room", "every entry of enqueue is a trial, or will be", now)


def _refused(experiment: Experiment, status: ExperimentStatus, now: float) -> ExperimentStatus:
    message = "spec.template was changed after it had been accepted: restore it, or create a new experiment"
    return _with(status, names.ACCEPTED, "False", names.TEMPLATE_CHANGED, message, now)


def _stalled(
    status: ExperimentStatus,
    trials: Sequence[Trial],
    held: waiting.Waiting | None,
    again: waiting.Waiting | None,
    now: float,
) -> ExperimentStatus:
    """Stalled while every active trial waits for something that somebody has to mend; absent until it first was.

    Also if trials end alike, `again` and again: attempts that run are waited for, since one may report yet.
    """
    if again is not None:
        return _with(status, names.STALLED, "True", again.reason, again.message, now)
    active = [t for t in trials if t.status.phase not in ledger.FINAL]
    stuck = [t for t in active if t.status.phase == "Waiting" and t.status.reason in waiting.REASONS]
    if stuck:
        first = stuck[0].status
        held = waiting.Waiting(first.reason, f"{stuck[0].name}: {first.message}")
    if held is not None and len(stuck) == len(active):
        return _with(status, names.STALLED, "True", held.reason, held.message, now)
    if find(status.conditions, names.STALLED) is None:
        return status
    return _with(status, names.STALLED, "False", "Going", "a trial makes progress, or none is active", now)


def _suspended(status: ExperimentStatus, trials: Sequence[Trial], now: float) -> ExperimentStatus:
    """Suspended once no attempt is open any more; until then trainers save and leave."""
    left = sum(t.status.attempt > t.status.closed for t in trials)
    phase = "Suspending" if left else names.SUSPENDED
    status = status.model_copy(update={"phase": phase, "completion_time": None})
    status = _with(status, names.SUCCEEDED, "Unknown", names.SUSPENDED, "spec.suspend is true", now)
    if left:
        message = f"trials that save and leave: {left}"
        return _with(status, names.SUSPENDED, "False", phase, message, now)
    message = "no pod runs; with spec.suspend false every trial goes on from its newest checkpoint"
    return _with(status, names.SUSPENDED, "True", phase, message, now)


def _resumed(status: ExperimentStatus, now: float) -> ExperimentStatus:
    """The status of one that is not suspended; nothing is said of one that never was."""
    if find(status.conditions, names.SUSPENDED) is None:
        return status
    return _with(status, names.SUSPENDED, "False", "Resumed", "spec.suspend is false", now)


def _running(status: ExperimentStatus, now: float, reason: str, message: str) -> ExperimentStatus:
    stalled = find(status.conditions, names.STALLED)
    going = "Stalled" if stalled is not None and stalled.status == "True" else "Running"
    phase = "Stopping" if reason in names.STOPPING else going
    status = status.model_copy(update={"phase": phase, "completion_time": None})
    return _with(status, names.SUCCEEDED, "Unknown", reason, message, now)


def _finished(
    experiment: Experiment, trials: Sequence[Trial], status: ExperimentStatus, reason: str, now: float
) -> ExperimentStatus:
    succeeded = status.counts.get("Succeeded", 0) if status.best is not None else 0
    verdict: Verdict
    if reason == names.TOO_MANY_FAILED_TRIALS:
        verdict, message = "False", f"{status.counts.get('Failed', 0)} trials failed, more than maxFailedTrials allows"
    elif reason == names.FAIL_EXPERIMENT:
        verdict, message = "False", _fatal(trials)
    elif reason == names.REPEATED_ERROR:
        stalled = find(status.conditions, names.STALLED)
        verdict, message = "False", stalled.message if stalled else names.STOPPING[reason]
    elif succeeded == 0 and reason != names.TARGET_REACHED and trials:
        verdict, reason = "False", names.NO_TRIAL_SUCCEEDED
        message = f"none of {len(trials)} trials came to a result; the last says: {_last_words(trials)}"
    else:
        verdict, message = "True", f"{succeeded} of {len(trials)} trials succeeded"
        if reason == names.TARGET_REACHED:
            message = f"{_aimed(experiment.spec.objectives, trials)}; {message}"
    status = status.model_copy(
        update={"phase": "Succeeded" if verdict == "True" else "Failed", "completion_time": stamp(now)}
    )
    return _with(status, names.SUCCEEDED, verdict, reason, message, now)


def _aimed(objectives: Sequence[Objective], trials: Sequence[Trial]) -> str:
    """Which trial has reached the target, and with what."""
    first = next((t for t in trials if reached(objectives, t.status)), None)
    if first is None:  # it was so when the experiment was ended
        return names.STOPPING[names.TARGET_REACHED]
    aimed = [(o, value(o, first.status)) for o in objectives if o.target is not None]
    return f"{first.name} has reached the target: " + ", ".join(f"{o.metric} is {found:g}" for o, found in aimed)


def _fatal(trials: Sequence[Trial]) -> str:
    fatal = next((t for t in trials if t.status.reason == names.FAIL_EXPERIMENT), None)
    return f"{fatal.name}: {fatal.status.message}" if fatal else names.STOPPING[names.FAIL_EXPERIMENT]


def _last_words(trials: Sequence[Trial]) -> str:
    return next((f"{t.name}: {t.status.message}" for t in reversed(trials) if t.status.message), "nothing")
