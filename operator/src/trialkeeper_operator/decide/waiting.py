"""What a pod that has not started waits for, in words that somebody can act on.

A pod that merely starts is not waiting. The kubelet says `ErrImagePull` and `ImagePullBackOff` in turns for one
trouble; here it has one name, so that a status does not change with every try.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trialkeeper import contract
from trialkeeper_operator.api.times import seconds

UNSCHEDULABLE = "Unschedulable"
IMAGE = "ImageNotPulled"
CONFIG = "ContainerConfig"
QUOTA = "QuotaExceeded"
NAME_TAKEN = "NameTaken"
REFUSED = "TrialRefused"
STORE = contract.REASON_STORE  # the next attempt waits for a store that did not answer the last one
STARTING = "SlowStart"
PATIENCE = 60.0  # seconds that a pod may take to start before that is worth saying
REASONS = frozenset({STORE, STARTING, UNSCHEDULABLE, IMAGE, CONFIG, QUOTA, NAME_TAKEN})

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"})
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
    return _unscheduled(status) or _container(pod, status) or _slow(pod, now)


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
    said = f"pod {meta.get('name', '')} has not started for a minute: kubectl describe pod says why (a missing mount?)"
    return Waiting(STARTING, said)


def _unscheduled(status: Mapping[str, Any]) -> Waiting | None:
    for condition in status.get("conditions") or ():
        if (
            isinstance(condition, dict)
            and condition.get("type") == "PodScheduled"
            and condition.get("status") == "False"
        ):
            said = str(condition.get("message") or condition.get("reason") or "")
            return Waiting(UNSCHEDULABLE, f"no node takes the pod: {said}"[:1024])
    return None


def _container(pod: Mapping[str, Any], status: Mapping[str, Any]) -> Waiting | None:
    for entry in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        state = entry.get("state") if isinstance(entry, dict) else None
        held = state.get("waiting") if isinstance(state, dict) else None
        if not isinstance(held, dict):
            continue
        reason, said = held.get("reason"), str(held.get("message") or held.get("reason") or "")
        if reason in _IMAGE:
            return Waiting(IMAGE, f"the image {entry.get('image', '')} cannot be pulled: {said}"[:1024])
        if reason in _CONFIG:
            return Waiting(CONFIG, f"container {entry.get('name', '')} cannot be made: {said}"[:1024])
    return None
