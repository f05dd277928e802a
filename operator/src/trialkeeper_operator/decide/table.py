"""The endings table: what evidence comes to which class, with its reason and a sentence for people.

Its order is the order of judgement below our own intent and the user's rules. Evidence of a disruption comes before
exit codes, since a drained pod may end with any of them. docs/endings.md says the same for people.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from trialkeeper import contract
from trialkeeper_operator.decide.evidence import Evidence

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
STORAGE_LIMIT = "StorageLimit"
MEMORY = frozenset({contract.REASON_OOM, STORAGE_LIMIT})  # reasons that come back as long as nobody gives more

KILLED = 137
TERMINATED = 143
_NODE_REASONS = frozenset({"Terminated", "Shutdown", "NodeShutdown", "Preempting", "NodeLost"})
_UNFIT = frozenset({"AppArmor", "SysctlForbidden"})  # no node would take such a pod
_START_ERRORS = frozenset({"StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError"})
_MI = 2**20

# What the reasons of disruption conditions mean, in words for people.
_DISRUPTIONS = {
    "EvictionByEvictionAPI": "the pod was evicted, as by a drain or a scale-down",
    "DeletionByTaintManager": "the node got a taint that the pod does not tolerate",
    "DeletionByDeviceTaintManager": "a device of the pod got a taint that the pod does not tolerate",
    "PreemptionByScheduler": "the scheduler gave the pod's place to one of higher priority",
    "DeletionByPodGC": "the pod's node is gone",
    "TerminationByKubelet": "the node ended the pod",
    "WorkloadEvicted": "Kueue took the pod's place in its queue",
}


Row = tuple[str, Callable[[Evidence], bool], Callable[[Evidence], Verdict]]


def _words(e: Evidence, fallback: str) -> str:
    return (e.said.text if e.said and e.said.text else "") or fallback


def _tail(text: str) -> str:
    """The last line of a log's tail that says something, for one sentence."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _colon(*parts: str) -> str:
    return ": ".join(part for part in parts if part)


_UNREPORTED = "and never reported a metric: call trialkeeper.report() in the trainer"


def complete(e: Evidence) -> Verdict:
    """What a complete marker comes to, before any row is asked."""
    if not e.reported:
        return SUCCEEDED, "NoObjective", f"the trainer ran to its end {_UNREPORTED}"
    return SUCCEEDED, e.said_reason or "Completed", _words(e, "the trainer ran to its end")


def _disrupted(e: Evidence) -> Verdict:
    condition = e.disruption or {}
    reason = str(condition.get("reason") or "Disrupted")
    said = str(condition.get("message") or "")
    return PREEMPTED, reason, _colon(_DISRUPTIONS.get(reason, f"the pod was disrupted ({reason})"), said)


def _init(e: Evidence) -> Verdict:
    name, ended = e.init or ("", {})
    code, tail = ended.get("exitCode"), _tail(str(ended.get("message") or ""))
    return FAILED, "Init", _colon(f"the init container {name} exited with code {code}", tail)


def _out_of_memory(e: Evidence) -> Verdict:
    limit = e.memory_limit
    if not limit:
        said = "the container was killed for lack of memory on its node: set resources.requests.memory"
        return FAILED, contract.REASON_OOM, f"{said}, or use a smaller batch"
    said = f"the container was killed for lack of memory at its limit of {_size(limit)}"
    advice = f"raise resources.limits.memory to {_size(limit * 3 // 2)}, or use a smaller batch"
    return FAILED, contract.REASON_OOM, f"{said}: {advice}"


def _size(count: int) -> str:
    """Bytes as Kubernetes writes them, rounded up to a full Mi."""
    mi = -(-count // _MI)
    return f"{mi // 1024}Gi" if mi % 1024 == 0 else f"{mi}Mi"


def _plain_success(e: Evidence) -> Verdict:
    if e.reported or e.metrics:
        return SUCCEEDED, "Completed", "the container exited with code 0"
    return SUCCEEDED, "NoObjective", f"the container exited with code 0 {_UNREPORTED}"


def _unstarted(e: Evidence) -> Verdict:
    said = f"the container's command could not be started (exit code {e.exit_code})"
    quoted = _tail(e.text)
    own = quoted if e.container_reason in _START_ERRORS else ""  # whole sentences; a shell's words are none
    return USER_ERROR, "CannotStart", own or _colon(said, quoted)


def _exit_code(e: Evidence) -> Verdict:
    code = e.exit_code if e.exit_code is not None else -1
    if code > 128:
        return FAILED, "Signal", _colon(f"the trainer was ended by signal {code - 128}", _quoted(e))
    return FAILED, "ExitCode", _colon(f"the trainer exited with code {code}", _quoted(e))


def _quoted(e: Evidence) -> str:
    return "" if e.said else _tail(e.text)


def _store_away(e: Evidence) -> bool:
    return e.end == contract.END_ERROR and e.said_reason == contract.REASON_STORE


TABLE: tuple[Row, ...] = (
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
    ("its node does not answer", lambda e: bool(e.silent), lambda e: (LOST, "NodeLost", e.silent)),
    ("disruption condition", lambda e: e.disruption is not None, _disrupted),
    (
        "deleted by somebody else",
        lambda e: e.deleted,
        lambda e: (PREEMPTED, "Deleted", "the pod was deleted by somebody"),
    ),
    (
        "no node would take it",
        lambda e: e.rejected and e.reason in _UNFIT,
        lambda e: (USER_ERROR, e.reason, _colon("the node refused the pod: mend spec.template", e.message)),
    ),
    (
        "rejected by the kubelet",
        lambda e: e.rejected,
        lambda e: (INFRASTRUCTURE, e.reason or "NotStarted", e.message or "the pod failed before it was started"),
    ),
    (
        "node shutdown or kubelet preemption",
        lambda e: e.reason in _NODE_REASONS,
        lambda e: (PREEMPTED, e.reason, _colon("the node ended the pod", e.message or e.reason)),
    ),
    (
        "own storage limit",
        lambda e: e.reason == "Evicted",
        lambda e: (FAILED, STORAGE_LIMIT, _colon("the pod exceeded its own storage limit, raise it", e.message)),
    ),
    (
        "deadline",
        lambda e: e.reason == "DeadlineExceeded",
        lambda e: (
            USER_ERROR,
            "DeadlineExceeded",
            "the pod ran into its activeDeadlineSeconds: raise it or use spec.stop.timeoutSeconds",
        ),
    ),
    ("init container failed", lambda e: e.init is not None, _init),
    (
        "command cannot be started",
        lambda e: e.container_reason in _START_ERRORS or (e.exit_code in (126, 127, 128) and not e.said),
        _unstarted,
    ),
    (
        "container vanished with its node",
        lambda e: e.container_reason == "ContainerStatusUnknown",
        lambda e: (INFRASTRUCTURE, "ContainerStatusUnknown", "the container vanished, as when its node is restarted"),
    ),
    ("out of memory, says the kernel", lambda e: e.container_reason == "OOMKilled", _out_of_memory),
    (
        "out of memory, says the trainer",
        lambda e: e.end == contract.END_ERROR and e.said_reason == contract.REASON_OOM,
        lambda e: (FAILED, contract.REASON_OOM, f"{_words(e, 'the trainer ran out of memory')}: use a smaller batch"),
    ),
    (
        "device failure, says the trainer",
        lambda e: e.end == contract.END_ERROR and e.said_reason == contract.REASON_DEVICE,
        lambda e: (INFRASTRUCTURE, contract.REASON_DEVICE, _words(e, "a device failed")),
    ),
    (
        "store out of reach, says the trainer",
        # A trainer that is through and leaves with a code of its own has more to say.
        lambda e: _store_away(e) and e.exit_code in (0, 1, KILLED, TERMINATED, None),
        lambda e: (INFRASTRUCTURE, contract.REASON_STORE, _words(e, "the store could not be reached")),
    ),
    (
        "user error by marker or exit code",
        lambda e: e.end == contract.END_USER_ERROR or e.exit_code == contract.EXIT_USER_ERROR,
        lambda e: (
            USER_ERROR,
            (e.said_reason if e.end == contract.END_USER_ERROR else "") or "UserError",
            _colon(_words(e, "the trainer exited with code 78: it says that another try cannot help"), _quoted(e)),
        ),
    ),
    (
        "saved and left",
        lambda e: e.end == contract.END_PREEMPTED or e.exit_code == contract.EXIT_RESCHEDULE,
        lambda e: (PREEMPTED, "Rescheduled", _words(e, "the trainer saved and asked for another attempt")),
    ),
    (
        "exception",
        lambda e: e.end == contract.END_ERROR and not _store_away(e),
        lambda e: (FAILED, e.said_reason or contract.REASON_EXCEPTION, _words(e, "the trainer raised an exception")),
    ),
    (
        "killed, nobody says why",
        lambda e: e.exit_code == KILLED,
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
    (
        "ended without a container's state",
        lambda e: bool(e.reason) or e.phase in ("Succeeded", "Failed"),
        lambda e: (INFRASTRUCTURE, e.reason or "Unknown", "the pod ended without a container state"),
    ),
    (
        "gone",
        lambda e: True,
        lambda e: (LOST, "PodGone", "the pod vanished before anybody saw how it ended"),
    ),
)
