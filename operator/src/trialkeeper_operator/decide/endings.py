"""Why an attempt ended: one pure function over the pod, our own intent, and the trainer's last words.

The order of judgement matters more than any single row. A complete marker wins even over a disruption
(the trainer was through), our own recorded intent over whatever the kill looked like, and evidence of a
disruption over exit codes, since a drained pod may end with any of them. Exit 0 alone proves nothing:
the kubelet calls a deleted pod whose trainer left politely "Succeeded".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from trialkeeper import contract
from trialkeeper.contract import Message, MetricSummary

SUCCEEDED: Final = "Succeeded"
PREEMPTED: Final = "Preempted"
LOST: Final = "Lost"
INFRASTRUCTURE: Final = "Infrastructure"
FAILED: Final = "Failed"
USER_ERROR: Final = "UserError"
STOPPED: Final = "Stopped"
Class = Literal["Succeeded", "Preempted", "Lost", "Infrastructure", "Failed", "UserError", "Stopped"]
Verdict = tuple[Class, str, str]  # class, reason, sentence

DISRUPTED = frozenset({PREEMPTED, LOST, INFRASTRUCTURE})  # never the trial's fault, counted apart

_KILLED = 137
_TERMINATED = 143
_DISRUPTION_CONDITIONS = ("DisruptionTarget", "TerminationTarget")
_DISRUPTION_REASONS = frozenset({"Terminated", "Shutdown", "NodeShutdown", "Preempting", "NodeLost"})
_START_ERRORS = frozenset({"StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError"})


@dataclass(frozen=True)
class Ending:
    """Why an attempt ended. `message` is one sentence for people."""

    class_: Class
    reason: str
    message: str
    exit_code: int | None = None
    time: str | None = None  # RFC 3339, when the container finished, where the pod says so
    node: str | None = None
    said: Message | None = None  # the trainer's last words, if they are this attempt's


@dataclass(frozen=True)
class Evidence:
    """What the rows of the table look at."""

    pod: Mapping[str, Any] | None
    exit_code: int | None
    container_reason: str
    text: str  # the termination message as found: a marker, a plain container's words, or the log's tail
    said: Message | None
    reported: bool  # whether this trial has reported anything so far
    metrics: Mapping[str, MetricSummary] = field(default_factory=dict)

    @property
    def end(self) -> str:
        return self.said.end if self.said else ""

    @property
    def said_reason(self) -> str:
        return self.said.reason if self.said else ""

    @property
    def status_reason(self) -> str:
        return str(_status(self.pod).get("reason", "")) if self.pod else ""

    @property
    def deleted(self) -> bool:
        return bool(self.pod and self.pod.get("metadata", {}).get("deletionTimestamp"))

    @property
    def disruption(self) -> Mapping[str, Any] | None:
        conditions = _status(self.pod).get("conditions") if self.pod else None
        for condition in conditions if isinstance(conditions, list) else []:
            if (
                isinstance(condition, dict)
                and condition.get("type") in _DISRUPTION_CONDITIONS
                and condition.get("status") == "True"
            ):
                return condition
        return None


def _status(pod: Mapping[str, Any] | None) -> Mapping[str, Any]:
    status = (pod or {}).get("status")
    return status if isinstance(status, dict) else {}


def terminated(pod: Mapping[str, Any], container: str) -> Mapping[str, Any] | None:
    """The trainer container's `state.terminated`, or None while it has not ended.

    The trial is judged by this container and not by the pod's phase: a sidecar may outlive it.
    """
    statuses = _status(pod).get("containerStatuses")
    for entry in statuses if isinstance(statuses, list) else []:
        if isinstance(entry, dict) and entry.get("name") == container:
            state = entry.get("state")
            ended = state.get("terminated") if isinstance(state, dict) else None
            return ended if isinstance(ended, dict) else None
    return None


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
        if isinstance(number, (int, float)) and not isinstance(number, bool) and abs(number) < math.inf
    }


def gather(
    pod: Mapping[str, Any] | None, container: str, attempt: int, report: Message | None, *, reported: bool
) -> Evidence:
    """Collect the evidence of one attempt; what does not belong to it is left out.

    The termination message is untrusted, and so is the report: another attempt's words are no evidence.
    """
    state = (terminated(pod, container) if pod else None) or {}
    text = state.get("message")
    text = text if isinstance(text, str) else ""
    said = Message.decode(text) or (report if report and report.end != contract.END_RUNNING else None)
    if said and said.attempt != attempt:
        said = None
    code = state.get("exitCode")
    reason = state.get("reason")
    return Evidence(
        pod=pod,
        exit_code=code if isinstance(code, int) else None,
        container_reason=reason if isinstance(reason, str) else "",
        text=text,
        said=said,
        reported=reported or bool(said and (said.firstReport or said.iteration)),
        metrics={} if said else plain_metrics(text),
    )


def node_of(pod: Mapping[str, Any] | None) -> str | None:
    """The node that a pod is bound to."""
    spec = (pod or {}).get("spec")
    node = spec.get("nodeName") if isinstance(spec, dict) else None
    return node if isinstance(node, str) and 0 < len(node) <= 253 else None


def ended(pod: Mapping[str, Any], container: str) -> bool:
    """Whether the pod's part is over: its trainer has terminated, or the whole pod is terminal."""
    return terminated(pod, container) is not None or _status(pod).get("phase") in ("Succeeded", "Failed")


Row = tuple[str, Callable[[Evidence], bool], Callable[[Evidence], Verdict]]


def _words(e: Evidence, fallback: str) -> str:
    return (e.said.text if e.said and e.said.text else "") or fallback


def _tail(text: str) -> str:
    """The last line of a log's tail that says something, for one sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


_UNREPORTED = "and never reported a metric: call trialkeeper.report() in the trainer"


def _complete(e: Evidence) -> Verdict:
    if not e.reported:
        return SUCCEEDED, "NoObjective", f"the trainer ran to its end {_UNREPORTED}"
    return SUCCEEDED, e.said_reason or "Completed", _words(e, "the trainer ran to its end")


def _disrupted(e: Evidence) -> Verdict:
    condition = e.disruption or {}
    reason = str(condition.get("reason") or "Disrupted")
    return PREEMPTED, reason, str(condition.get("message") or f"the pod was disrupted: {reason}")


def _marker_error(e: Evidence) -> Verdict:
    reason = e.said_reason or contract.REASON_EXCEPTION
    return FAILED, reason, _words(e, "the trainer raised an exception")


def _plain_success(e: Evidence) -> Verdict:
    if e.reported or e.metrics:
        return SUCCEEDED, "Completed", "the container exited with code 0"
    return SUCCEEDED, "NoObjective", f"the container exited with code 0 {_UNREPORTED}"


def _exit_code(e: Evidence) -> Verdict:
    code = e.exit_code if e.exit_code is not None else -1
    if code > 128:
        return FAILED, "Signal", f"the trainer was ended by signal {code - 128}" + _quoted(e)
    return FAILED, "ExitCode", f"the trainer exited with code {code}" + _quoted(e)


def _quoted(e: Evidence) -> str:
    tail = "" if e.said else _tail(e.text)
    return f": {tail}" if tail else ""


# Names are those of the tests' tables; order is the order of judgement below our own intent.
_TABLE: tuple[Row, ...] = (
    (
        "the SDK obeyed a verdict",
        lambda e: e.end in (contract.END_STOPPED, contract.END_PAUSED),
        lambda e: (STOPPED, e.said_reason or "Stopped", _words(e, "the trial was stopped")),
    ),
    (
        "fenced by a later attempt",
        lambda e: e.end == contract.END_FENCED,
        lambda e: (LOST, "Fenced", _words(e, "another attempt or another pod of this attempt had taken over")),
    ),
    ("disruption condition", lambda e: e.disruption is not None, _disrupted),
    (
        "deleted by somebody else",
        lambda e: e.deleted,
        lambda e: (PREEMPTED, "Deleted", "the pod was deleted by somebody"),
    ),
    (
        "node shutdown or kubelet preemption",
        lambda e: e.status_reason in _DISRUPTION_REASONS,
        lambda e: (PREEMPTED, e.status_reason, f"the node ended the pod: {e.status_reason}"),
    ),
    (
        "own storage limit",
        lambda e: e.status_reason == "Evicted",
        lambda e: (
            FAILED,
            "StorageLimit",
            f"the pod exceeded its own storage limit: {_status(e.pod).get('message', '')}"[:400],
        ),
    ),
    (
        "deadline",
        lambda e: e.status_reason == "DeadlineExceeded",
        lambda e: (
            USER_ERROR,
            "DeadlineExceeded",
            "the pod ran into its activeDeadlineSeconds: raise it or use spec.stop.timeoutSeconds",
        ),
    ),
    (
        "no container ever started",
        lambda e: e.exit_code is None and _status(e.pod).get("phase") == "Failed",
        lambda e: (
            INFRASTRUCTURE,
            e.status_reason or "NotStarted",
            str(_status(e.pod).get("message") or "the pod failed before its container started")[:400],
        ),
    ),
    (
        "command cannot be started",
        lambda e: e.container_reason in _START_ERRORS or (e.exit_code in (126, 127, 128) and not e.said),
        lambda e: (
            USER_ERROR,
            "CannotStart",
            _tail(e.text) or f"the container's command could not be started (exit code {e.exit_code})",
        ),
    ),
    (
        "container vanished with its node",
        lambda e: e.container_reason == "ContainerStatusUnknown",
        lambda e: (INFRASTRUCTURE, "ContainerStatusUnknown", "the container vanished with its node"),
    ),
    (
        "out of memory, says the kernel",
        lambda e: e.container_reason == "OOMKilled",
        lambda e: (FAILED, contract.REASON_OOM, "the container was killed for lack of memory: raise its memory limit"),
    ),
    (
        "out of memory, says the trainer",
        lambda e: e.end == contract.END_ERROR and e.said_reason == contract.REASON_OOM,
        lambda e: (FAILED, contract.REASON_OOM, _words(e, "the trainer ran out of memory")),
    ),
    (
        "device failure, says the trainer",
        lambda e: e.end == contract.END_ERROR and e.said_reason == contract.REASON_DEVICE,
        lambda e: (INFRASTRUCTURE, contract.REASON_DEVICE, _words(e, "a device failed")),
    ),
    (
        "store out of reach, says the trainer",
        lambda e: e.end == contract.END_ERROR and e.said_reason == contract.REASON_STORE,
        lambda e: (INFRASTRUCTURE, contract.REASON_STORE, _words(e, "the store could not be reached")),
    ),
    (
        "user error by marker or exit code",
        lambda e: e.end == contract.END_USER_ERROR or e.exit_code == contract.EXIT_USER_ERROR,
        lambda e: (
            USER_ERROR,
            (e.said.reason if e.said and e.end == contract.END_USER_ERROR else "") or "UserError",
            _words(e, "the trainer exited with code 78: it says that another try cannot help") + _quoted(e),
        ),
    ),
    (
        "saved and left",
        lambda e: e.end == contract.END_PREEMPTED or e.exit_code == contract.EXIT_RESCHEDULE,
        lambda e: (PREEMPTED, "Rescheduled", _words(e, "the trainer saved and asked for another attempt")),
    ),
    ("exception", lambda e: e.end == contract.END_ERROR, _marker_error),
    (
        "killed, nobody says why",
        lambda e: e.exit_code == _KILLED,
        lambda e: (INFRASTRUCTURE, "Killed", "the trainer was killed by SIGKILL and nobody says why"),
    ),
    ("exit code", lambda e: e.exit_code not in (0, None), _exit_code),
    (
        "exit 0 without the end",
        lambda e: e.end == contract.END_RUNNING and bool(e.said),
        lambda e: (
            FAILED,
            "Incomplete",
            (
                "the trainer exited with code 0 before its end (os._exit, or a parent that left it): "
                "let the program that calls trialkeeper run to its end"
            ),
        ),
    ),
    ("exit 0 of a plain container", lambda e: e.exit_code == 0, _plain_success),
)


def classify(
    pod: Mapping[str, Any] | None,
    *,
    container: str,
    attempt: int,
    intent: Verdict | None,
    report: Message | None,
    reported: bool,
    gone: bool = False,
) -> Ending | None:
    """Why attempt `attempt` ended, or None while its pod has not.

    `gone` means that a live read has confirmed the pod's absence; `pod` is then its last known state, or
    None. `intent` is (class, reason, message) of what we ourselves recorded before ending the pod.
    `reported`: the trial has reported in this or an earlier attempt.
    """
    if not gone and (pod is None or not ended(pod, container)):
        return None
    evidence = gather(pod, container, attempt, report, reported=reported)
    class_, reason, message = _judge(evidence, intent)
    state = (terminated(pod, container) if pod else None) or {}
    finished = state.get("finishedAt")
    return Ending(
        class_=class_,
        reason=contract.plain(reason[:64]),
        message=contract.plain(message[:1024]),
        exit_code=evidence.exit_code,
        time=finished if isinstance(finished, str) else None,
        node=node_of(pod),
        said=evidence.said or _plain(evidence, attempt),
    )


def _plain(evidence: Evidence, attempt: int) -> Message | None:
    return Message(attempt=attempt, metrics=evidence.metrics) if evidence.metrics else None


def _judge(e: Evidence, intent: Verdict | None) -> Verdict:
    if e.end == contract.END_COMPLETE and e.exit_code in (0, _KILLED, _TERMINATED, None):
        return _complete(e)
    if intent is not None:
        return intent
    for _, applies, verdict in _TABLE:
        if applies(e):
            return verdict(e)
    if e.status_reason or _status(e.pod).get("phase") in ("Succeeded", "Failed"):
        return INFRASTRUCTURE, e.status_reason or "Unknown", "the pod ended without a container state"
    return LOST, "PodGone", "the pod vanished before anybody saw how it ended"
