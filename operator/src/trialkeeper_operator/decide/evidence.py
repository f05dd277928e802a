"""What there is to judge an attempt's end by: its pod as the kubelet and others left it, and the trainer's last words.

All of it is others' and may be garbage: whatever does not have the right shape is not there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trialkeeper import contract
from trialkeeper.contract import Message, MetricSummary
from trialkeeper_operator.decide.scratch import at, size_of

Pod = Mapping[str, Any]

_REJECTION = "Pod was rejected"  # the kubelet's words for whatever it does not admit
_DISRUPTION_CONDITIONS = ("DisruptionTarget", "TerminationTarget")


@dataclass(frozen=True)
class Evidence:
    """What the rows of the table look at."""

    pod: Pod | None
    container: str  # the trainer's
    exit_code: int | None
    container_reason: str
    text: str  # the termination message as found: a marker, a plain container's words, or the log's tail
    said: Message | None
    reported: bool  # whether this trial has reported anything so far
    silent: str = ""  # why nobody can end the pod, in one sentence
    metrics: Mapping[str, MetricSummary] = field(default_factory=dict)

    @property
    def end(self) -> str:
        return self.said.end if self.said else ""

    @property
    def said_reason(self) -> str:
        return self.said.reason if self.said else ""

    @property
    def phase(self) -> str:
        return _text(status_of(self.pod), "phase")

    @property
    def reason(self) -> str:
        """The pod's own reason; empty as a rule."""
        return _text(status_of(self.pod), "reason")

    @property
    def message(self) -> str:
        return _text(status_of(self.pod), "message").strip()

    @property
    def deleted(self) -> bool:
        return bool(self.pod and self.pod.get("metadata", {}).get("deletionTimestamp"))

    @property
    def memory_limit(self) -> int | None:
        """Bytes of memory that the trainer's container may use, None if nothing says so."""
        spec = (self.pod or {}).get("spec")
        containers = _objects(spec.get("containers") if isinstance(spec, dict) else None)
        trainer = next((c for c in containers if c.get("name") == self.container), {})
        return size_of(at(trainer, "resources", "limits", "memory"))

    @property
    def rejected(self) -> bool:
        """Whether a kubelet has refused to admit the pod: before any of its containers began, as a rule.

        A kubelet that is restarted admits anew what it runs, and ends what it refuses then.
        """
        if self.phase != "Failed":
            return False
        return self.message.startswith(_REJECTION) or (self.exit_code is None and not self._begun)

    @property
    def _begun(self) -> bool:
        return any(True for kind in ("running", "terminated") for _ in states(self.pod, kind))

    @property
    def init(self) -> tuple[str, Mapping[str, Any]] | None:
        """Name and terminated state of the init container that failed before the trainer could begin."""
        if self.exit_code is not None or self.phase != "Failed":
            return None
        failed = (e for e in entries(self.pod, "initContainerStatuses") if _exit_code(_ended(e)) not in (0, None))
        return next(((_text(e, "name"), _ended(e)) for e in failed), None)

    @property
    def disruption(self) -> Mapping[str, Any] | None:
        conditions = (c for c in conditions_of(self.pod) if c.get("type") in _DISRUPTION_CONDITIONS)
        return next((c for c in conditions if c.get("status") == "True"), None)


def status_of(pod: Pod | None) -> Mapping[str, Any]:
    """The status of a pod, empty if it has none."""
    status = (pod or {}).get("status")
    return status if isinstance(status, dict) else {}


def conditions_of(pod: Pod | None) -> Iterator[Mapping[str, Any]]:
    """The conditions of a pod."""
    return _objects(status_of(pod).get("conditions"))


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in (value if isinstance(value, list) else ()) if isinstance(entry, dict))


def entries(pod: Pod | None, *lists: str) -> Iterator[Mapping[str, Any]]:
    """What a pod's status says of its containers, in these of its lists; init containers first if none is named."""
    for name in lists or ("initContainerStatuses", "containerStatuses"):
        yield from _objects(status_of(pod).get(name))


def states(pod: Pod | None, kind: str, *lists: str) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(entry, state) of each container that is waiting, running or terminated, as `kind` says."""
    for entry in entries(pod, *lists):
        state = entry.get("state")
        found = state.get(kind) if isinstance(state, dict) else None
        if isinstance(found, dict):
            yield entry, found


def _ended(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    state = entry.get("state")
    ended = state.get("terminated") if isinstance(state, dict) else None
    return ended if isinstance(ended, dict) else {}


def _text(of: Mapping[str, Any], key: str) -> str:
    value = of.get(key)
    return value if isinstance(value, str) else ""


def _exit_code(ended: Mapping[str, Any]) -> int | None:
    code = ended.get("exitCode")
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def exit_code(pod: Pod | None, container: str) -> int | None:
    """The exit code of a container or init container, None while it has not ended."""
    return next((_exit_code(_ended(e)) for e in entries(pod) if e.get("name") == container), None)


def terminated(pod: Pod | None, container: str) -> Mapping[str, Any] | None:
    """The trainer container's `state.terminated`, or None while it has not ended.

    The trial is judged by this container and not by the pod's phase: a sidecar may outlive it.
    """
    entry = next((e for e in entries(pod, "containerStatuses") if e.get("name") == container), {})
    return _ended(entry) or None


def begun(pod: Pod | None, container: str) -> bool:
    """Whether a pod's trainer has been started: what it needs to start is there."""
    entry = next((e for e in entries(pod, "containerStatuses") if e.get("name") == container), None)
    if entry is None:
        return status_of(pod).get("phase") == "Running"
    state = entry.get("state")
    return isinstance(state, dict) and ("running" in state or bool(_ended(entry)))


def is_terminal(pod: Pod) -> bool:
    """Whether a pod has ended for good: no container of it runs any more."""
    return status_of(pod).get("phase") in ("Succeeded", "Failed")


def ended(pod: Pod, container: str) -> bool:
    """Whether the pod's part is over, and all is there to judge it by.

    Its trainer has terminated, the whole pod is terminal, or it never begins. A kubelet that ends a pod says in one
    write that the containers have terminated, and in a later one the phase, the reason and the condition: that is
    waited for.
    """
    if is_terminal(pod) or _never_begins(pod):
        return True
    return terminated(pod, container) is not None and not any(_closing(c) for c in conditions_of(pod))


def _never_begins(pod: Pod) -> bool:
    """Whether a pod was deleted before it had a node: none can get it any more, though a finalizer may keep it."""
    waits = status_of(pod).get("phase") == "Pending" and node_of(pod) is None
    return waits and bool(pod.get("metadata", {}).get("deletionTimestamp"))


def _closing(condition: Mapping[str, Any]) -> bool:
    """Whether a condition says that the kubelet has made up its mind about the whole pod."""
    return condition.get("type") == "ContainersReady" and condition.get("reason") in ("PodFailed", "PodCompleted")


def node_of(pod: Pod | None) -> str | None:
    """The node that a pod is bound to."""
    spec = (pod or {}).get("spec")
    node = spec.get("nodeName") if isinstance(spec, dict) else None
    return node if isinstance(node, str) and 0 < len(node) <= 253 else None


def plain_metrics(text: str) -> dict[str, MetricSummary]:
    """What a container without the SDK may leave as termination message: `{"metrics": {"loss": 0.1}}`."""
    try:
        value = json.loads(text) if len(text) <= 4096 else None
    except (ValueError, RecursionError):
        return {}
    metrics = value.get("metrics") if isinstance(value, dict) else None
    if not isinstance(metrics, dict):
        return {}
    return {
        name[:256]: MetricSummary(float(number), float(number), float(number))
        for name, number in list(metrics.items())[:64]
        if isinstance(number, (int, float)) and not isinstance(number, bool) and abs(number) <= sys.float_info.max
    }


def gather(
    pod: Pod | None, container: str, attempt: int, report: Message | None, *, reported: bool, silent: str = ""
) -> Evidence:
    """Collect the evidence of one attempt; what does not belong to it is left out.

    The termination message is untrusted, and so is the report: another attempt's words are no evidence.
    """
    state = terminated(pod, container) or {}
    text = _text(state, "message")
    said = Message.decode(text) or (report if report and report.end != contract.END_RUNNING else None)
    if said and said.attempt != attempt:
        said = None
    return Evidence(
        pod=pod,
        container=container,
        exit_code=_exit_code(state),
        container_reason=_text(state, "reason"),
        text=text,
        said=said,
        reported=reported or bool(said and (said.firstReport or said.iteration)),
        silent=silent,
        metrics={} if said else plain_metrics(text),
    )
