"""Rendering: the pod of one attempt, from the experiment's template and nothing else.

What we inject wins over the template: the trainer's variables, labels and the owner. Nothing of the
template is interpreted here except the trainer container's name.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from trialkeeper import contract
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial


def settings(experiment: Experiment) -> dict[str, Any]:
    """What the trainer judges by itself, as the SDK reads it from its environment."""
    spec = experiment.spec.to_object()
    return {
        "objectives": spec["objectives"],
        "onNonFinite": experiment.spec.on_non_finite,
        "stop": spec.get("stop", {}),
        "checkpoint": spec.get("checkpoint", {}),
    }


def environment(experiment: Experiment, trial: Trial, attempt: int) -> dict[str, str]:
    """The variables of one attempt; every value is text."""
    parameters = trial.spec.parameters
    compact = (",", ":")
    values = {
        contract.ENV_NAMESPACE: trial.namespace,
        contract.ENV_EXPERIMENT: experiment.name,
        contract.ENV_TRIAL: trial.name,
        contract.ENV_INDEX: str(trial.spec.index),
        contract.ENV_ATTEMPT: str(attempt),
        contract.ENV_SEED: str(trial.spec.seed),
        contract.ENV_PARAMS: json.dumps(parameters, separators=compact),
        contract.ENV_SETTINGS: json.dumps(settings(experiment), separators=compact),
        contract.ENV_PREFIX: contract.prefix(trial.namespace, experiment.name, experiment.uid, trial.spec.index),
    }
    # Trials are objects that others may write, too: no trainer is sent into another namespace's prefix.
    bases = [key for key in trial.spec.base or () if key.startswith(f"{trial.namespace}/")]
    values |= {contract.ENV_BASE: ",".join(bases)} if bases else {}
    for name, value in parameters.items():
        text = value if isinstance(value, str) else json.dumps(value)
        values[contract.ENV_PARAM_PREFIX + name.upper()] = text
    return values


def render(experiment: Experiment, trial: Trial, attempt: int) -> dict[str, Any]:
    """The pod of `attempt`, ready to be created."""
    template = copy.deepcopy(experiment.spec.template.to_object())
    meta, spec = template.get("metadata") or {}, template["spec"]
    grace = spec.setdefault("terminationGracePeriodSeconds", experiment.spec.timeouts.grace_seconds)
    spec["restartPolicy"] = "Never"
    container = next(c for c in spec["containers"] if c["name"] == experiment.spec.container_name)
    injected = environment(experiment, trial, attempt) | {contract.ENV_GRACE_SECONDS: str(grace)}
    own = [e for e in container.get("env") or [] if e.get("name") not in injected | {contract.ENV_POD_UID: ""}]
    container["env"] = [
        {"name": contract.ENV_POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        *({"name": name, "value": value} for name, value in injected.items()),
        *own,  # last, since $(VAR) in them may refer to ours
    ]
    container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": names.pod_name(trial.name, attempt),
            "namespace": trial.namespace,
            "labels": dict(meta.get("labels") or {})
            | {
                names.LABEL_MANAGED_BY: names.MANAGED_BY,
                names.LABEL_EXPERIMENT: experiment.name,
                names.LABEL_TRIAL: trial.name,
                names.LABEL_ATTEMPT: str(attempt),
            },
            "annotations": dict(meta.get("annotations") or {})
            | {names.ANNOTATION_TRAINER: experiment.spec.container_name},
            "ownerReferences": [names.owner(names.TRIAL, trial.name, trial.uid)],
        },
        "spec": spec,
    }
