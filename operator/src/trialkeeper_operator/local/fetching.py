"""A snapshot made of a store alone: what trainers have left there, as the ConfigMap that a new experiment goes on from.

For the day on which the cluster is gone, with its Experiments, Trials and snapshots. The records of attempts say whose
they are, their last words say which trials are over; all others go on from their newest whole checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trialkeeper import contract
from trialkeeper.results.finding import find
from trialkeeper.results.reading import Results, StoredCheckpoint, Trial
from trialkeeper_operator.api import names
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.state import snapshot

Object = dict[str, Any]

_OVER = {"Succeeded": "Completed", "Stopped": "Stopped", "Failed": "UserError"}  # and why, if nobody has said so


class NotRebuilt(LookupError):
    """Raised when a store does not say enough of an experiment; the message says what is missing."""


@dataclass(frozen=True)
class Fetched:
    """A snapshot's ConfigMap, and what is in it. `unknown`: indices of trials that have left nothing to go on from."""

    config_map: Object
    experiment: str
    namespace: str
    trials: int
    finished: int
    unknown: tuple[int, ...]


def fetch(where: str) -> Fetched:
    """The snapshot of the one experiment at a place: a bucket's URL, or a folder that is a copy of it.

    :raises NotRebuilt: if its keys are not those of an experiment.
    :raises trialkeeper.results.known.NotThere: if there are no trials, or those of several experiments.
    :raises trialkeeper.results.known.BadPlace: if the place cannot be understood.
    :raises OSError: if it cannot be read.
    """
    with Results(replace(find(where), know=lambda: None)) as results:  # not what a run's journal knows beside it
        results.load()
        trials = [trial for trial in results.trials if trial.prefix.rpartition("/")[2].isdigit()]
        namespace, folder = _place(trials)
        experiment = results.experiment
        uid = folder.removeprefix(f"{experiment}-")
        if uid == folder or not names.is_experiment_name(experiment):
            raise NotRebuilt(f"{where}: {folder[:80]} is no experiment's folder: <experiment>-<short uid> is one")
        made = [row for row in map(_row, trials) if row is not None]
        spec = {"objectives": [asdict(objective) for objective in results.objectives]}
    of = {"metadata": {"name": experiment, "namespace": namespace, "uid": uid}, "spec": spec}
    known = {row["spec"]["index"] for row in made}
    return Fetched(
        snapshot.config_map(of, snapshot.encode(of, made)),
        experiment,
        namespace,
        trials=len(made),
        finished=sum(row["status"]["phase"] in _OVER for row in made),
        unknown=tuple(i for i in range(max(known, default=0)) if i not in known),
    )


def _place(trials: Sequence[Trial]) -> tuple[str, str]:
    """(namespace, the experiment's folder) of trials' prefixes."""
    steps = trials[0].prefix.split("/") if trials else []
    if len(steps) < 3:
        raise NotRebuilt("there is no namespace in the trials' keys: name the bucket, or a folder further up")
    return steps[-3], steps[-2]


def _row(trial: Trial) -> Object | None:
    """Spec and status of a trial; None if its records do not say what it was to try."""
    record = trial.record
    if not isinstance(record.get("parameters"), dict) or not trial.attempts:
        return None
    last, phase = trial.attempts[-1], trial.state
    spec: Object = {"index": trial.index, "parameters": record["parameters"]}
    if type(record.get("seed")) is int:
        spec["seed"] = record["seed"]
    began = trial.attempts[0].began
    status: Object = {
        "phase": phase if phase in _OVER else "Pending",
        "attempt": last.number,
        "closed": last.number if phase in _OVER else last.number - 1,
        "lostWork": {"iterations": sum(attempt.lost_iterations for attempt in trial.attempts)},
        **({"startTime": stamp(began)} if began else {}),
    }
    checkpoint = trial.newest_checkpoint()
    if checkpoint is not None:
        key = _key(trial, checkpoint)
        status["checkpoint"] = {
            "attempt": checkpoint.attempt,
            "iteration": checkpoint.iteration,
            "key": key,
            "time": stamp(checkpoint.created),
        }
        if contract.parse_inherited_key(key):
            spec["base"] = [key]
    words = last.ended
    if phase in _OVER and words is not None:
        status |= {
            "reason": words.reason or _OVER[phase],
            "iteration": words.iteration,
            "trainedSeconds": words.trainedSeconds,
            "completionTime": stamp(words.time),
            "metrics": {name: asdict(metric) for name, metric in words.metrics.items()},
        }
    else:
        status["iteration"] = max(trial.reached(None)[0], checkpoint.iteration if checkpoint else 0)
    return {"spec": spec, "status": status}


def _key(trial: Trial, checkpoint: StoredCheckpoint) -> str:
    """A checkpoint's key as a status has it: with the prefix in front if that is another trial's."""
    if checkpoint.prefix == trial.prefix:
        return checkpoint.key
    donor = "/".join(checkpoint.prefix.split("/")[-3:])
    return contract.inherited_key(donor, checkpoint.attempt, checkpoint.iteration)
