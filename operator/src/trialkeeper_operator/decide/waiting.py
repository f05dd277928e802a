"""What a pod that has not started waits for, in words that somebody can act on.

A pod that merely starts is not waiting. The kubelet says `ErrImagePull` and `ImagePullBackOff` in turns for one
trouble; here it has one name, so that a status does not change with every try.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trialkeeper import contract
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.decide import evidence
from trialkeeper_operator.decide.scratch import at

UNSCHEDULABLE = "Unschedulable"
GATED = "Queued"  # the scheduler does not look at it yet
IMAGE = "ImageNotPulled"
IMAGE_NAME = "InvalidImageName"
CONFIG = "ContainerConfig"
QUOTA = "QuotaExceeded"
NAME_TAKEN = "NameTaken"
SERVICE = "ServiceRefused"  # for the pods of one trial, by a webhook or a policy
REFUSED = "TrialRefused"
BASE = "BaseNotThere"  # of a fork: its donor has not come to it yet
STORE = contract.REASON_STORE  # the next attempt waits for a store that did not answer the last one
STARTING = "SlowStart"
PATIENCE = 60.0  # seconds that a pod may take to start before that is worth saying
REASONS = frozenset({STORE, STARTING, UNSCHEDULABLE, GATED, IMAGE, IMAGE_NAME, CONFIG, QUOTA, NAME_TAKEN, SERVICE})

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "ImageInspectError"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


class Waiting(NamedTuple):
    """Why a pod does not start, or a trial. `message` is one sentence, with the own words of whoever refuses it."""

    reason: str
    message: str


def waiting(pod: Mapping[str, Any], now: float = 0.0) -> Waiting | None:
    """What keeps a pod from starting, or None; `now` (seconds since the epoch) tells a slow start from a quick one."""
    status = pod.get("status")
    if not isinstance(status, dict) or status.get("phase") not in (None, "Pending"):
        return None
    return _unscheduled(pod) or _container(pod) or _slow(pod, now)


def starting(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is on a node and has not started yet: it has to be looked at again, since time tells no events."""
    status = pod.get("status")
    return isinstance(status, dict) and status.get("phase") == "Pending"


def _slow(pod: Mapping[str, Any], now: float) -> Waiting | None:
    """A volume, a ConfigMap or a Secret that is mounted and missing shows in the pod's Events alone."""
    meta = pod.get("metadata") or {}
    try:
        late = now - seconds(meta["creationTimestamp"]) > PATIENCE
    except (KeyError, TypeError, ValueError):
        return None
    if not late:
        return None
    return Waiting(STARTING, f"pod {meta.get('name', '')} has not started for a minute: {_at_work(pod)}"[:1024])


def _at_work(pod: Mapping[str, Any]) -> str:
    for entry, _ in evidence.states(pod, "running", "initContainerStatuses"):
        return f"its init container {entry.get('name', '')} is at work"
    return "its image is being pulled" if pulling(pod) else "kubectl describe pod says why (a missing mount?)"


def pulling(pod: Mapping[str, Any]) -> bool:
    """Whether a pod that has not started has all but its images: the kubelet makes the sandbox after the mounts."""
    ready = (c.get("status") for c in evidence.conditions_of(pod) if c.get("type") == "PodReadyToStartContainers")
    return next(ready, None) == "True"


def _unscheduled(pod: Mapping[str, Any]) -> Waiting | None:
    for condition in evidence.conditions_of(pod):
        if (condition.get("type"), condition.get("status")) == ("PodScheduled", "False"):
            if condition.get("reason") == "SchedulingGated":
                return Waiting(GATED, f"the pod waits in a queue, behind {_gates(pod)}"[:1024])
            said = str(condition.get("message") or condition.get("reason") or "")
            return Waiting(UNSCHEDULABLE, f"no node takes the pod: {said}"[:1024])
    return None


def _gates(pod: Mapping[str, Any]) -> str:
    """Names of what holds a pod back from the scheduler: Kueue's is `kueue.x-k8s.io/admission`."""
    found = at(pod, "spec", "schedulingGates")
    names = [str(gate.get("name")) for gate in found if isinstance(gate, dict)] if isinstance(found, list) else []
    return f"the gate {', '.join(names)}" if names else "a scheduling gate"


def _container(pod: Mapping[str, Any]) -> Waiting | None:
    for entry, held in evidence.states(pod, "waiting"):
        reason, said = str(held.get("reason") or ""), str(held.get("message") or held.get("reason") or "")
        if reason == IMAGE_NAME:
            return Waiting(IMAGE_NAME, f"{entry.get('image', '')} is no image's name: {said}"[:1024])
        if reason in _IMAGE:
            return Waiting(IMAGE, f"the image {entry.get('image', '')} cannot be pulled: {said}"[:1024])
        if reason in _CONFIG:
            return Waiting(CONFIG, f"container {entry.get('name', '')} cannot be made: {said}"[:1024])
    return None
