"""The order of judgement between rows, and what is no row: tests/endings has the table itself."""

from __future__ import annotations

from typing import Any

import pytest

from builders import pod
from trialkeeper.contract import Message
from trialkeeper_operator.api.experiment import FailureRule
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
    "exit 0 after SIGTERM, still running by its own words": (
        pod(exit_code=0, message=said("running"), deleted=True),
        ("Preempted", "Deleted"),
    ),
    "exit 0 of a plain container with metrics": (
        pod(exit_code=0, message='{"metrics": {"loss": 0.5}}'),
        ("Succeeded", "Completed"),
    ),
    "exit 0 of a plain container with a number that no metric can be": (
        pod(exit_code=0, message=f'{{"metrics": {{"loss": 1{"0" * 400}}}}}'),
        ("Succeeded", "NoObjective"),
    ),
    "user error by marker": (
        pod(exit_code=1, message=said("userError", reason="WorldSizeChanged")),
        ("UserError", "WorldSizeChanged"),
    ),
    "fenced": (pod(exit_code=75, message=said("fenced")), ("Lost", "Fenced")),
    "garbage as termination message": (pod(exit_code=1, message='{"v":1,"end":[]}'), ("Failed", "ExitCode")),
    "another attempt's complete marker": (
        pod(exit_code=0, message=Message(end="complete", attempt=9)),
        ("Succeeded", "NoObjective"),
    ),
    "a condition without a reason": (
        pod(exit_code=143, condition=("DisruptionTarget", "")),
        ("Preempted", "Disrupted"),
    ),
    "failed, and nobody says why": (pod(phase="Failed"), ("Infrastructure", "NotStarted")),
    "succeeded, and nobody says how": (pod(phase="Succeeded"), ("Infrastructure", "Unknown")),
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


def rule(action: str, codes: list[int] | None = None, operator: str = "In", **more: Any) -> FailureRule:
    about: dict[str, Any] = {"onExitCodes": {"operator": operator, "values": codes}} if codes else {}
    return FailureRule.model_validate({"action": action} | about | more)


ON_DRAIN = [{"type": "DisruptionTarget"}]
RULES: dict[str, tuple[FailureRule, dict[str, Any], tuple[str, str] | None]] = {
    "a code that is to be ignored": (rule("Ignore", [3]), pod(exit_code=3), ("Preempted", "ExitCode")),
    "another code": (rule("Ignore", [3]), pod(exit_code=4), ("Failed", "ExitCode")),
    "any code but one": (rule("FailTrial", [3], "NotIn"), pod(exit_code=4), ("UserError", "ExitCode")),
    "that one": (rule("FailTrial", [3], "NotIn"), pod(exit_code=3), ("Failed", "ExitCode")),
    "no code but one, and success": (rule("FailTrial", [3], "NotIn"), pod(exit_code=0), ("Succeeded", "NoObjective")),
    "a code that ends all": (rule("FailExperiment", [42]), pod(exit_code=42), ("UserError", "FailExperiment")),
    "a disruption that counts": (
        rule("Count", onPodConditions=ON_DRAIN),
        pod(exit_code=143, condition=DRAIN),
        ("Failed", "EvictionByEvictionAPI"),
    ),
    "a disruption that is ignored is one": (
        rule("Ignore", onPodConditions=ON_DRAIN),
        pod(exit_code=143, condition=DRAIN),
        ("Preempted", "EvictionByEvictionAPI"),
    ),
    "trouble of a node that is ignored waits all the same": (
        rule("Ignore", [137]),
        pod(exit_code=137),
        ("Infrastructure", "Killed"),
    ),
    "a condition that is False": (
        rule("Count", onPodConditions=[{"type": "DisruptionTarget", "status": "False"}]),
        pod(exit_code=143, condition=DRAIN),
        ("Preempted", "EvictionByEvictionAPI"),
    ),
    "a verdict that was obeyed": (
        rule("Count", onPodConditions=ON_DRAIN),
        pod(exit_code=0, condition=DRAIN, message=said("stopped", reason="NonFinite")),
        ("Stopped", "NonFinite"),
    ),
    "a complete trainer": (
        rule("Count", onPodConditions=ON_DRAIN),
        pod(exit_code=143, condition=DRAIN, message=said("complete")),
        ("Succeeded", "Completed"),
    ),
    "another container": (
        rule("FailTrial", onExitCodes={"containerName": "fetch", "operator": "In", "values": [3]}),
        pod(exit_code=3),
        ("Failed", "ExitCode"),
    ),
}


@pytest.mark.parametrize(("one", "of", "expected"), RULES.values(), ids=RULES.keys())
def test_the_users_rules_come_before_the_evidence(
    one: FailureRule, of: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert judged(of, rules=[one]) == expected


def test_a_rule_on_an_init_container_is_about_that_one() -> None:
    one = pod(phase="Failed")
    one["status"]["initContainerStatuses"] = [{"name": "fetch", "state": {"terminated": {"exitCode": 3}}}]
    about = rule("FailTrial", onExitCodes={"containerName": "fetch", "operator": "In", "values": [3]})
    assert judged(one, rules=[about]) == ("UserError", "Init")


def test_the_first_rule_that_holds_decides_and_is_named() -> None:
    rules = [rule("Count", [4]), rule("Ignore", [3]), rule("FailTrial", [3])]
    ending = classify(
        pod(exit_code=3), container="trainer", attempt=1, intent=None, report=None, reported=False, rules=rules
    )
    assert ending is not None
    assert (ending.class_, ending.message) == (
        "Preempted",
        "the trainer exited with code 3 (failurePolicy.rules[1]: Ignore)",
    )


def test_our_own_intent_comes_before_the_users_rules() -> None:
    assert judged(pod(exit_code=3, deleted=True), intent=STOP, rules=[rule("FailTrial", [3])]) == ("Stopped", "Desired")


@pytest.mark.parametrize("garbage", [None, [], "x", 7, {"containerStatuses": 3}, {"conditions": {"a": 1}}])
def test_garbage_in_a_pods_status_raises_nothing(garbage: Any) -> None:
    one = pod() | {"status": garbage}
    assert judged(one) is None
    assert judged(one, gone=True) == ("Lost", "PodGone")
