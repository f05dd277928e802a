"""Several pods of one attempt as launchers, schedulers and each other know them: variables, names, labels.

torchrun reads its arguments from PET_ variables, so that the same command serves any number of pods; what it starts
gets RANK and WORLD_SIZE of its own. Without a launcher each pod is one rank, and the variables say which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trialkeeper import ranks as sdk
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide.scratch import at, size_of

PORT = 29500  # torchrun's own default

# Pods of one group are admitted, or scheduled, together: Kueue, coscheduling of the scheduler plugins, and their
# predecessor's labels, which Koordinator reads.
KUEUE_GROUP = "kueue.x-k8s.io/pod-group-name"
KUEUE_COUNT = "kueue.x-k8s.io/pod-group-total-count"
KUEUE_RETRIABLE = "kueue.x-k8s.io/retriable-in-group"
COSCHEDULING_GROUP = "scheduling.x-k8s.io/pod-group"
LIGHT_GROUP = "pod-group.scheduling.sigs.k8s.io/name"
LIGHT_COUNT = "pod-group.scheduling.sigs.k8s.io/min-available"


def group(trial: str, attempt: int) -> str:
    """The name by which schedulers know the pods of one attempt."""
    return names.pod_name(trial, attempt)


def labels(trial: str, attempt: int, rank: int, nodes: int) -> dict[str, str]:
    """Labels of a pod that is one of several."""
    name = group(trial, attempt)
    return {
        names.LABEL_RANK: str(rank),
        KUEUE_GROUP: name,
        COSCHEDULING_GROUP: name,
        LIGHT_GROUP: name,
        LIGHT_COUNT: str(nodes),
    }


def notes(nodes: int) -> dict[str, str]:
    """Annotations of a pod that is one of several. A pod that fails is never replaced in its group."""
    return {KUEUE_COUNT: str(nodes), KUEUE_RETRIABLE: "false"}


def place(spec: dict[str, Any], trial: str, attempt: int, rank: int) -> None:
    """Give a pod its name among the others: `HOST.TRIAL` in its namespace."""
    spec["hostname"], spec["subdomain"] = names.pod_name(trial, attempt, rank), trial


def variables(trial: str, attempt: int, rank: int, nodes: int, container: Mapping[str, Any]) -> dict[str, str]:
    """What a launcher, or a trainer without one, has to know of the others."""
    master = f"{names.pod_name(trial, attempt, 0)}.{trial}"
    gpus = _gpus(container)
    return {
        "PET_NNODES": str(nodes),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": str(PORT),
        **({"PET_NPROC_PER_NODE": str(gpus)} if gpus else {}),
        sdk.MASTER: master,
        "MASTER_PORT": str(PORT),
        sdk.RANK: str(rank),
        sdk.WORLD_SIZE: str(nodes),
    }


def _gpus(container: Mapping[str, Any]) -> int:
    """GPUs that a container asks for, of whichever vendor."""
    asked = at(container, "resources", "limits")
    found = asked.items() if isinstance(asked, dict) else ()
    return sum(size_of(count) or 0 for name, count in found if isinstance(name, str) and name.endswith("/gpu"))


def service(experiment: Experiment, trial: Trial) -> dict[str, Any]:
    """The headless Service of a trial: each of its pods has a name, from before it is ready until it is gone."""
    return {
        "apiVersion": "v1",
        "kind": names.SERVICE,
        "metadata": {
            "name": trial.name,
            "namespace": trial.namespace,
            "labels": {
                names.LABEL_MANAGED_BY: names.MANAGED_BY,
                names.LABEL_EXPERIMENT: experiment.name,
                names.LABEL_TRIAL: trial.name,
            },
            "ownerReferences": [names.owner(names.TRIAL, trial.name, trial.uid)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_TRIAL: trial.name},
        },
    }
