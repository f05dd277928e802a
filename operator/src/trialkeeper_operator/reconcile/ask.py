"""Asking the search: the log of asks and tells as the Trials hold it, and the body of the next Trial."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide import ledger
from trialkeeper_operator.decide.objective import values
from trialkeeper_operator.search.grid import size as grid_size
from trialkeeper_operator.search.question import Asked, Question
from trialkeeper_operator.search.space import Space
from trialkeeper_operator.search.suggest import suggest, with_given

SEEDS = 2**31


def trial_seed(seed: int, index: int) -> int:
    """The seed that a trial's trainer gets in every attempt."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big") % SEEDS


def body(experiment: Experiment, index: int, parameters: dict[str, Any], note: str, name: str | None) -> dict[str, Any]:
    """The Trial of one index, ready to be created; its name makes creating it twice creating it once."""
    spec: dict[str, Any] = {
        "experiment": experiment.name,
        "experimentUid": experiment.uid,
        "index": index,
        "parameters": parameters,
        "seed": trial_seed(experiment.spec.search.seed, index),
    }
    spec |= {"name": name} if name else {}
    spec |= {"note": note} if note else {}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.TRIAL,
        "metadata": {
            "name": names.trial_name(experiment.name, index),
            "namespace": experiment.namespace,
            "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_EXPERIMENT: experiment.name},
            "ownerReferences": [names.owner(names.EXPERIMENT, experiment.name, experiment.uid)],
        },
        "spec": spec,
    }


def space_of(experiment: Experiment) -> Space:
    """The experiment's parameters and directions."""
    spec = experiment.spec
    return Space(tuple(spec.parameters), tuple(o.direction for o in spec.objectives))


def limit(experiment: Experiment) -> int:
    """How many trials an experiment can have: maxTrials, on a grid at most its points and all of them by default."""
    spec = experiment.spec
    points = grid_size(space_of(experiment)) if spec.search.algorithm == "Grid" else None
    if points is None:
        return spec.max_trials or max(1, len(spec.enqueue or ()))
    return min(spec.max_trials or names.TRIALS_LIMIT, points)


def log_of(experiment: Experiment, trials: Sequence[Trial]) -> list[Asked]:
    """The trials as the search sees them, by index."""
    return [_asked(experiment, trial) for trial in trials]


def _asked(experiment: Experiment, trial: Trial) -> Asked:
    status, told = trial.status, None
    state: Literal["running", "complete", "failed"] = "running"
    if status.phase in ledger.FINAL:
        told = values(experiment.spec.objectives, status) if status.phase == "Succeeded" else None
        state = "failed" if told is None else "complete"
    return Asked(trial.spec.index, trial.spec.parameters, state, None if told is None else tuple(told))


def ask(experiment: Experiment, trials: Sequence[Trial], index: int, cache: dict[str, Any]) -> dict[str, Any]:
    """The body of the Trial of `index`, its parameters suggested by the search, or given by `enqueue`."""
    spec, space = experiment.spec, space_of(experiment)
    log = [a for a in log_of(experiment, trials) if a.index < index]
    question = Question(space, log, spec.search.seed, index, spec.search.settings, cache)
    suggestion = suggest(spec.search.algorithm, question)
    enqueued = (spec.enqueue or [])[index : index + 1]
    for given in enqueued:
        suggestion = with_given(space, given.parameters, suggestion)
    name = enqueued[0].name if enqueued else None
    return body(experiment, index, suggestion.parameters, suggestion.note, name)
