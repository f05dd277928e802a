"""Every name that others may see: kinds, labels, annotations, reasons, and how children are called."""

from __future__ import annotations

import re
from typing import Any

GROUP = "trialkeeper.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

EXPERIMENT = "Experiment"
TRIAL = "Trial"
POD = "Pod"
CONFIG_MAP = "ConfigMap"
SERVICE = "Service"
NODE = "Node"

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "trialkeeper"
LABEL_EXPERIMENT = f"{GROUP}/experiment"
LABEL_TRIAL = f"{GROUP}/trial"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_RANK = f"{GROUP}/rank"  # of a pod among those of its attempt, if they are several
QUEUE_LABELS = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")  # of an Experiment, that its pods get
ANNOTATION_TRAINER = f"{GROUP}/trainer-container"

EXPERIMENT_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
EXPERIMENT_NAME_LIMIT = 40  # a pod's name adds index, attempt and rank, and ends at 63

LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"  # how a container may be called

OBJECT_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"  # of objects of other kinds
OBJECT_NAME_LIMIT = 253
BUCKET = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
ENDPOINT = r"^https?://[^/?#@ ]+$"
FOLDER = r"^/[^:]*$"
QUANTITY = r"^[1-9][0-9]{0,14}([.][0-9]{1,3})?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"  # of bytes, as Kubernetes writes it

TRIALS_LIMIT = 10_000  # trials of an experiment
NODES_LIMIT = 1000  # pods of an attempt

# Condition types.
ACCEPTED = "Accepted"
STALLED = "Stalled"
SUCCEEDED = "Succeeded"
SUSPENDED = "Suspended"  # there only if it once was
SNAPSHOT_KEPT = "SnapshotKept"  # there only if it once could not be kept
ENQUEUED = "Enqueued"  # there only if an entry of spec.enqueue once had no room, or nothing to begin from
SWEPT = "Swept"  # there only if something is wanted that the operator has no keys for

# Reasons of Accepted=False.
INVALID = "Invalid"
TEMPLATE_CHANGED = "TemplateChanged"
NOT_RESTORED = "NotRestored"
POD_REFUSED = "PodRefused"

# Reasons of Enqueued=False.
BASE_MISSING = "BaseMissing"
NO_ROOM = "NoRoom"

# Reasons of an experiment's Succeeded condition. Those of STOPPING end its trials.
ALL_TRIALS_FINISHED = "AllTrialsFinished"
NO_TRIAL_SUCCEEDED = "NoTrialSucceeded"
TARGET_REACHED = "TargetReached"
TOO_MANY_FAILED_TRIALS = "TooManyFailedTrials"
REPEATED_ERROR = "RepeatedError"  # also a reason of Stalled
FAIL_EXPERIMENT = "FailExperiment"  # also the reason of the ending that a rule of failurePolicy is about
STOPPING = {
    TARGET_REACHED: "a trial has reached the objective's target",
    TOO_MANY_FAILED_TRIALS: "more trials failed than failurePolicy.maxFailedTrials allows",
    REPEATED_ERROR: "several trials ended alike before any had reported",
    FAIL_EXPERIMENT: "an attempt has ended in a way that a rule of failurePolicy ends the experiment for",
}


def trial_name(experiment: str, index: int) -> str:
    """The Trial of one index."""
    return f"{experiment}-{index}"


def pod_name(trial: str, attempt: int, rank: int | None = None) -> str:
    """The pod of one attempt, or of one of its ranks. Two of the same cannot exist, since they would have one name."""
    return f"{trial}-a{attempt}" if rank is None else f"{trial}-a{attempt}-r{rank}"


def pod_names(trial: str, attempt: int, nodes: int) -> list[str]:
    """The pods of one attempt by rank."""
    return [pod_name(trial, attempt, rank if nodes > 1 else None) for rank in range(nodes)]


def owner(kind: str, name: str, uid: str) -> dict[str, Any]:
    """The ownerReference of a child to its controller."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def is_experiment_name(name: str) -> bool:
    """Whether a name can be an Experiment's, its length aside."""
    return re.fullmatch(EXPERIMENT_NAME, name) is not None
