"""What a pod that has not started waits for, in words that somebody can act on.

A pod that merely starts is not waiting. The kubelet says `ErrImagePull` and `ImagePullBackOff` in turns for one
trouble; here it has one name, so that a status does not change with every try.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

UNSCHEDULABLE = "Unschedulable"
IMAGE = "ImageNotPulled"
CONFIG = "ContainerConfig"
QUOTA = "QuotaExceeded"
NAME_TAKEN = "NameTaken"
REFUSED = "TrialRefused"
REASONS = frozenset({UNSCHEDULABLE, IMAGE, CONFIG, QUOTA, NAME_TAKEN})

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


class Waiting(NamedTuple):
    """Why a pod does not start, or a trial. `message` is one sentence, with the own words of whoever refuses it."""

    reason: str
    message: str


def waiting(pod: Mapping[str, Any]) -> Waiting | None:
    """What keeps a pod from starting, or None."""
    status = pod.get("status")
    if not isinstance(status, dict) or status.get("phase") not in (None, "Pending"):
        return None
    return _unscheduled(status) or _container(pod, status)


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
