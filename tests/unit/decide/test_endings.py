"""The endings table: every row with a pod that shows it, and the order of judgement between rows."""

from __future__ import annotations

from typing import Any

import pytest

from builders import pod
from trialkeeper.contract import Message
from trialkeeper_operator.decide.endings import classify

DRAIN = ("DisruptionTarget", "EvictionByEvictionAPI")


def said(end: str, **fields: Any) -> Message:
    return Message(end=end, attempt=1, **{"iteration": 3, **fields})


def judged(of: dict[str, Any] | None, **known: Any) -> tuple[str, str] | None:
    facts: dict[str, Any] = {
        "container": "trainer",
        "attempt": 1,
        "intent": None,
        "report": None,
        "reported": False,
    } | known
    ending = classify(of, **facts)
    return (ending.class_, ending.reason) if ending else None


ROWS: dict[str, tuple[dict[str, Any], tuple[str, str] | None]] = {
    "a running pod has not ended": (pod(), None),
    "a pod that is being deleted but still runs has not ended": (pod(deleted=True, condition=DRAIN), None),
    "complete": (pod(exit_code=0, message=said("complete")), ("Succeeded", "Completed")),
    "complete, but never reported": (
        pod(exit_code=0, message=said("complete", iteration=0)),
        ("Succeeded", "NoObjective"),
    ),
    "complete by a stop rule": (
        pod(exit_code=0, message=said("complete", reason="MaxIterations")),
        ("Succeeded", "MaxIterations"),
    ),
    "complete, then drained": (
        pod(exit_code=143, message=said("complete"), deleted=True, condition=DRAIN),
        ("Succeeded", "Completed"),
    ),
    "complete, then killed": (pod(exit_code=137, message=said("complete")), ("Succeeded", "Completed")),
    "complete, but exit code 3": (pod(exit_code=3, message=said("complete")), ("Failed", "ExitCode")),
    "exit 0 while drained, without a marker": (
        pod(exit_code=0, deleted=True, condition=DRAIN),
        ("Preempted", "EvictionByEvictionAPI"),
    ),
    "exit 0 after SIGTERM, still running by its own words": (
        pod(exit_code=0, message=said("running"), deleted=True),
        ("Preempted", "Deleted"),
    ),
    "exit 0, still running by its own words": (pod(exit_code=0, message=said("running")), ("Failed", "Incomplete")),
    "exit 0 of a plain container": (pod(exit_code=0), ("Succeeded", "NoObjective")),
    "exit 0 of a plain container with metrics": (
        pod(exit_code=0, message='{"metrics": {"loss": 0.5}}'),
        ("Succeeded", "Completed"),
    ),
    "exit 1": (pod(exit_code=1), ("Failed", "ExitCode")),
    "exception": (
        pod(exit_code=1, message=said("error", reason="Exception", text="ValueError: no")),
        ("Failed", "Exception"),
    ),
    "store out of reach": (
        pod(exit_code=1, message=said("error", reason="StoreUnreachable", text="Unreachable: no answer")),
        ("Infrastructure", "StoreUnreachable"),
    ),
    "exception while drained": (
        pod(exit_code=1, message=said("error", reason="Exception"), condition=DRAIN),
        ("Preempted", "EvictionByEvictionAPI"),
    ),
    "segmentation fault": (pod(exit_code=139), ("Failed", "Signal")),
    "out of memory by the kernel": (pod(exit_code=137, reason="OOMKilled"), ("Failed", "OutOfMemory")),
    "out of memory, but drained": (
        pod(exit_code=137, reason="OOMKilled", condition=DRAIN),
        ("Preempted", "EvictionByEvictionAPI"),
    ),
    "out of GPU memory": (
        pod(exit_code=1, message=said("error", reason="OutOfMemory")),
        ("Failed", "OutOfMemory"),
    ),
    "GPU lost": (
        pod(exit_code=1, message=said("error", reason="DeviceFailure")),
        ("Infrastructure", "DeviceFailure"),
    ),
    "killed, nobody says why": (pod(exit_code=137), ("Infrastructure", "Killed")),
    "SIGTERM, saved and left": (pod(exit_code=143, message=said("preempted")), ("Preempted", "Rescheduled")),
    "SIGTERM of a plain container that nobody deleted": (pod(exit_code=143), ("Failed", "Signal")),
    "exit 75": (pod(exit_code=75), ("Preempted", "Rescheduled")),
    "exit 78": (pod(exit_code=78), ("UserError", "UserError")),
    "user error by marker": (
        pod(exit_code=1, message=said("userError", reason="WorldSizeChanged")),
        ("UserError", "WorldSizeChanged"),
    ),
    "non-finite objective": (pod(exit_code=0, message=said("stopped", reason="NonFinite")), ("Stopped", "NonFinite")),
    "fenced": (pod(exit_code=75, message=said("fenced")), ("Lost", "Fenced")),
    "scheduler preemption": (
        pod(exit_code=137, deleted=True, condition=("DisruptionTarget", "PreemptionByScheduler")),
        ("Preempted", "PreemptionByScheduler"),
    ),
    "Kueue": (
        pod(exit_code=143, deleted=True, condition=("TerminationTarget", "WorkloadEvictedDueToPreempted")),
        ("Preempted", "WorkloadEvictedDueToPreempted"),
    ),
    "plain delete": (pod(exit_code=143, deleted=True), ("Preempted", "Deleted")),
    "node shutdown": (pod(exit_code=143, pod_reason="Terminated"), ("Preempted", "Terminated")),
    "node pressure": (
        pod(phase="Failed", pod_reason="Evicted", condition=("DisruptionTarget", "TerminationByKubelet")),
        ("Preempted", "TerminationByKubelet"),
    ),
    "own storage limit": (pod(exit_code=137, pod_reason="Evicted"), ("Failed", "StorageLimit")),
    "deadline": (pod(exit_code=143, pod_reason="DeadlineExceeded"), ("UserError", "DeadlineExceeded")),
    "rejected by the kubelet": (pod(phase="Failed", pod_reason="OutOfcpu"), ("Infrastructure", "OutOfcpu")),
    "command not found": (pod(exit_code=128, reason="StartError"), ("UserError", "CannotStart")),
    "command not found by a shell": (pod(exit_code=127), ("UserError", "CannotStart")),
    "exit 127 of a trainer that had run": (pod(exit_code=127, message=said("running")), ("Failed", "ExitCode")),
    "container vanished": (
        pod(exit_code=137, reason="ContainerStatusUnknown"),
        ("Infrastructure", "ContainerStatusUnknown"),
    ),
    "garbage as termination message": (pod(exit_code=1, message='{"v":1,"end":[]}'), ("Failed", "ExitCode")),
    "another attempt's complete marker": (
        pod(exit_code=0, message=Message(end="complete", attempt=9)),
        ("Succeeded", "NoObjective"),
    ),
}


@pytest.mark.parametrize(("of", "expected"), ROWS.values(), ids=ROWS.keys())
def test_a_pod_in_this_state_is_judged_so(of: dict[str, Any], expected: tuple[str, str] | None) -> None:
    assert judged(of) == expected


STOP = ("Stopped", "Desired", "spec.desired is Stop")


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (pod(exit_code=143, deleted=True), ("Stopped", "Desired")),
        (pod(exit_code=137, deleted=True, condition=DRAIN), ("Stopped", "Desired")),
        (pod(exit_code=0, deleted=True, message=said("preempted")), ("Stopped", "Desired")),
        (pod(exit_code=0, deleted=True, message=said("complete")), ("Succeeded", "Completed")),
    ],
)
def test_our_own_intent_comes_before_the_evidence_and_after_completion(
    of: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert judged(of, intent=STOP) == expected


def test_a_pod_that_is_gone_and_was_never_seen_ending_is_lost() -> None:
    assert judged(None, gone=True) == ("Lost", "PodGone")
    assert judged(pod(), gone=True) == ("Lost", "PodGone")


def test_a_gone_pods_last_state_tells_why() -> None:
    assert judged(pod(deleted=True), gone=True) == ("Preempted", "Deleted")
    assert judged(pod(condition=DRAIN, deleted=True), gone=True) == ("Preempted", "EvictionByEvictionAPI")
    assert judged(pod(exit_code=1), gone=True) == ("Failed", "ExitCode")


def test_a_reported_completion_survives_the_pod() -> None:
    assert judged(None, gone=True, report=said("complete")) == ("Succeeded", "Completed")
    assert judged(None, gone=True, report=said("running")) == ("Lost", "PodGone")
    assert judged(None, gone=True, report=Message(end="complete", attempt=2)) == ("Lost", "PodGone")


def test_a_sidecar_that_outlives_the_trainer_does_not_delay_the_judgement() -> None:
    one = pod(exit_code=1)
    one["status"]["phase"] = "Running"
    one["status"]["containerStatuses"].insert(0, {"name": "sidecar", "state": {"running": {}}})
    assert judged(one) == ("Failed", "ExitCode")


def test_an_exit_code_comes_with_the_last_line_of_the_log() -> None:
    ending = classify(
        pod(exit_code=1, message="Traceback ...\nModuleNotFoundError: No module named 'torch'\n"),
        container="trainer",
        attempt=1,
        intent=None,
        report=None,
        reported=False,
    )
    assert ending is not None
    assert ending.message == "the trainer exited with code 1: ModuleNotFoundError: No module named 'torch'"


@pytest.mark.parametrize("garbage", [None, [], "x", 7, {"containerStatuses": 3}, {"conditions": {"a": 1}}])
def test_garbage_in_a_pods_status_raises_nothing(garbage: Any) -> None:
    one = pod() | {"status": garbage}
    assert judged(one) is None
    assert judged(one, gone=True) == ("Lost", "PodGone")
