"""Asking the search: the log of asks and tells as the Trials hold it, and the body of the next Trial."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial

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


def limit(experiment: Experiment) -> int:
    """How many trials an experiment can have."""
    return experiment.spec.max_trials or 1


def ask(experiment: Experiment, trials: Sequence[Trial], index: int, cache: dict[str, Any]) -> dict[str, Any]:
    """The body of the Trial of `index`."""
    return body(experiment, index, {"lr": 0.1}, "", None)
