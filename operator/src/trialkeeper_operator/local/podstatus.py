"""What a kubelet says about a pod: statuses as Kubernetes has them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.local.place import MESSAGE_LIMIT

Status = dict[str, Any]


def grace(pod: Mapping[str, Any]) -> float:
    """Seconds from SIGTERM to SIGKILL."""
    return float(pod["spec"].get("terminationGracePeriodSeconds", 30))


def disruption(reason: str, message: str) -> Status:
    """The evidence that it was not the pod's fault; the reason is the one a cluster would give."""
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}]}


def running(container: str, pid: int, started: float) -> Status:
    """A container that has begun."""
    entry = {
        "name": container,
        "containerID": f"process://{pid}",
        "state": {"running": {"startedAt": stamp(started)}},
    }
    return {"phase": "Running", "startTime": stamp(started), "containerStatuses": [entry]}


def ended(container: str, code: int, message: str, started: float, now: float, reason: str = "") -> Status:
    """A container that has ended with this exit code; `started` 0 if it never began. Times are seconds."""
    state: Status = {
        "exitCode": code,
        "reason": reason or ("Error" if code else "Completed"),
        "finishedAt": stamp(now),
    }
    state |= {"startedAt": stamp(started)} if started else {}
    state |= {"message": message[:MESSAGE_LIMIT]} if message else {}
    phase = "Failed" if code else "Succeeded"
    return {"phase": phase, "containerStatuses": [{"name": container, "state": {"terminated": state}}]}


def never_started(message: str) -> Status:
    """A pod that this machine had no room for: no container has ever been there."""
    return {"phase": "Failed", "reason": "NoRoom", "message": message}
