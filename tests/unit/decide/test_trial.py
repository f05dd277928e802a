"""The plan of one trial: the attempt protocol step by step, with whatever may be stale or missing."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, experiment, pod, trial
from trialkeeper.contract import Message, Resumed
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide import watching
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.decide.trial import plan
from trialkeeper_operator.decide.view import ConfirmAbsence, CreatePod, DeletePod, Plan, View

STARTED = {
    "attempt": 1,
    "closed": 0,
    "phase": "Running",
    "pod": {"name": "exp-0-a1", "uid": "pod-1", "startTime": stamp(NOW)},
}


def planned(
    status: dict[str, Any],
    *pods: dict[str, Any],
    spec: dict[str, Any] | None = None,
    now: float = NOW + 10,
    conditions: list[dict[str, Any]] | None = None,
    **known: Any,
) -> Plan:
    owner = experiment(**known.pop("experiment", {}))
    owner["status"] = {"conditions": conditions or []}
    view = View(
        Experiment.from_object(owner),
        Trial.from_object(trial(spec=spec, **status)),
        {p["metadata"]["name"]: p for p in pods},
        **known,
    )
    return plan(view, now)


def test_a_new_trial_opens_its_first_attempt_and_then_creates_the_pod() -> None:
    found = planned({})
    assert found.status is not None
    assert (found.status.attempt, found.status.closed, found.status.phase) == (1, 0, "Pending")
    (create,) = found.actions
    assert isinstance(create, CreatePod)
    assert create.body["metadata"]["name"] == "exp-0-a1"


def test_an_opened_attempt_without_a_pod_gets_one_and_no_second_number() -> None:
    found = planned({"attempt": 1, "closed": 0})
    assert found.status is None
    assert [type(a) for a in found.actions] == [CreatePod]


def test_a_pod_that_is_there_is_recorded_by_its_uid() -> None:
    found = planned({"attempt": 1, "closed": 0}, pod())
    assert found.status is not None
    assert found.status.pod is not None
    assert (found.status.pod.uid, found.status.phase, found.actions) == ("pod-1", "Running", ())


def test_a_recorded_pod_that_the_cache_does_not_know_is_looked_for() -> None:
    found = planned(STARTED)
    assert found == Plan(actions=(ConfirmAbsence("exp-0-a1"),))


def test_a_pod_that_is_gone_for_sure_is_lost_and_the_next_attempt_comes_at_once() -> None:
    found = planned(STARTED, gone=True)
    assert found.status is not None
    last = found.status.history[-1]
    assert (last.class_, found.status.closed, found.status.disruptions, found.status.phase) == ("Lost", 1, 1, "Waiting")
    assert found.actions == ()


def test_a_namesake_with_another_uid_proves_that_ours_is_gone() -> None:
    found = planned(STARTED, pod(uid="another"))
    assert found.status is not None
    assert (found.status.closed, found.status.history[-1].class_) == (1, "Lost")


def test_an_ended_pod_is_judged_counted_and_written_at_once() -> None:
    found = planned(STARTED, pod(exit_code=3))
    assert found.status is not None
    assert (found.status.closed, found.status.failures, found.status.reason) == (1, 1, "ExitCode")


def test_the_next_attempt_waits_for_its_time_and_clears_the_old_pod() -> None:
    status = {"attempt": 1, "closed": 1, "phase": "Waiting", "nextAttemptTime": stamp(NOW + 30)}
    found = planned(status, pod(exit_code=3))
    assert found.status is None
    assert found.after == pytest.approx(20)
    assert found.actions == (DeletePod("exp-0-a1", "pod-1"),)
    later = planned(status, pod(exit_code=3), now=NOW + 31)
    assert later.status is not None
    assert later.status.attempt == 2
    assert [type(a) for a in later.actions] == [DeletePod, CreatePod]


def test_a_time_that_no_back_off_reaches_was_a_clocks_mistake_and_is_not_waited_for() -> None:
    status = {"attempt": 1, "closed": 1, "phase": "Waiting", "nextAttemptTime": stamp(NOW + 86_400)}
    found = planned(status)
    assert found.status is not None
    assert found.status.attempt == 2


def test_the_next_attempt_waits_for_a_pod_that_still_runs() -> None:
    status = {"attempt": 1, "closed": 1, "phase": "Waiting"}
    found = planned(status, pod())
    assert found.status is None
    assert [type(a) for a in found.actions] == [DeletePod]
    history = [{"attempt": 1, "class": "Lost", "startTime": stamp(NOW), "endTime": stamp(NOW)}]
    after_lost = planned({**status, "history": history}, pod())
    assert after_lost.status is not None
    assert after_lost.status.attempt == 2


@pytest.mark.parametrize(
    ("spec", "conditions", "action", "reason"),
    [
        ({"desired": "Stop"}, [], "Stop", "Desired"),
        ({"desired": "Pause"}, [], "Pause", "Desired"),
        ({}, [("Succeeded", "TargetReached")], "Stop", "ExperimentEnded"),
        ({}, [("Succeeded", "TooManyFailedTrials")], "Stop", "ExperimentEnded"),
    ],
)
def test_an_intent_is_recorded_before_the_pod_is_deleted(
    spec: dict[str, Any], conditions: list[tuple[str, str]], action: str, reason: str
) -> None:
    said = [{"type": t, "status": "Unknown", "reason": r, "lastTransitionTime": stamp(NOW)} for t, r in conditions]
    found = planned(STARTED, pod(), spec=spec, conditions=said)
    assert found.status is not None
    assert found.status.intent is not None
    assert (found.status.intent.action, found.status.intent.reason) == (action, reason)
    assert found.actions == (DeletePod("exp-0-a1", "pod-1", version="9"),)


def test_a_paused_trial_rests_and_goes_on_when_it_may() -> None:
    intent = {"action": "Pause", "reason": "Desired", "message": "m"}
    closed = planned({**STARTED, "intent": intent}, pod(exit_code=143, deleted=True), spec={"desired": "Pause"}).status
    assert closed is not None
    assert (closed.phase, closed.failures, closed.disruptions) == ("Paused", 0, 0)
    resting = {**closed.to_object()}
    assert planned(resting, spec={"desired": "Pause"}).actions == ()
    again = planned(resting)
    assert again.status is not None
    assert again.status.attempt == 2


def test_a_suspended_experiment_ends_pods_by_its_own_intent_and_opens_no_attempt() -> None:
    running = planned(STARTED, pod(), experiment={"suspend": True}).status
    assert running is not None
    assert running.intent is not None
    assert (running.intent.action, running.intent.reason) == ("Pause", "Suspended")
    resting = planned({"attempt": 1, "closed": 1, "phase": "Waiting"}, experiment={"suspend": True})
    assert resting.status is not None
    assert (resting.status.phase, resting.status.reason, resting.actions) == ("Paused", "Suspended", ())
    both = planned(STARTED, pod(), spec={"desired": "Stop"}, experiment={"suspend": True}).status
    assert both is not None
    assert both.intent is not None
    assert both.intent.action == "Stop"


OVER: dict[str, Any] = {"attempt": 2, "closed": 2, "phase": "Failed", "failures": 1, "completionTime": stamp(NOW)}
ENDED = [{"type": "Succeeded", "status": "True", "reason": "TargetReached", "lastTransitionTime": stamp(NOW)}]


@pytest.mark.parametrize(
    ("spec", "status", "conditions", "again"),
    [
        ({}, {}, [], False),
        ({"retries": 1}, {}, [], True),
        ({"retries": 1}, {"phase": "Stopped"}, [], True),
        ({"retries": 1}, {"phase": "Succeeded"}, [], False),
        ({"retries": 1}, {"retried": {"number": 1}}, [], False),
        ({"retries": 2}, {"retried": {"number": 1}}, [], True),
        ({"retries": 1, "desired": "Stop"}, {}, [], False),
        ({"retries": 1}, {}, ENDED, False),
    ],
)
def test_each_step_of_retries_gives_one_more_try(
    spec: dict[str, Any], status: dict[str, Any], conditions: list[dict[str, Any]], again: bool
) -> None:
    found = planned({**OVER, **status}, spec=spec, conditions=conditions).status
    assert (found is not None) == again
    if found is None:
        return
    assert found.retried is not None
    used = status.get("retried", {}).get("number", 0)
    assert (found.phase, found.reason, found.retried.number, found.retried.failures) == (
        "Waiting",
        "Retried",
        used + 1,
        1,
    )
    (condition,) = found.conditions
    assert (condition.status, condition.last_transition_time) == ("Unknown", stamp(NOW + 10))
    opened = planned(found.to_object(), spec=spec).status
    assert opened is not None
    assert (opened.attempt, opened.completion_time) == (3, None)


def test_a_trial_that_never_began_is_stopped_without_a_pod() -> None:
    found = planned({}, spec={"desired": "Stop"})
    assert found.status is not None
    assert (found.status.phase, found.status.attempt, found.actions) == ("Stopped", 0, ())


def test_while_the_experiment_is_stalled_by_one_error_no_further_attempt_is_opened() -> None:
    stalled = {"type": "Stalled", "status": "True", "reason": "RepeatedError", "lastTransitionTime": stamp(NOW)}
    waiting = {"attempt": 1, "closed": 1, "phase": "Waiting"}
    assert planned(waiting, conditions=[stalled]) == Plan()
    assert planned(waiting, conditions=[stalled], spec={"desired": "Stop"}).status is not None
    assert planned(waiting, conditions=[stalled | {"reason": "Unschedulable"}]).status is not None


def test_a_finished_trial_is_left_alone_and_its_pod_cleared() -> None:
    done = {"attempt": 1, "closed": 1, "phase": "Succeeded"}
    assert planned(done, pod(exit_code=0)) == Plan(actions=(DeletePod("exp-0-a1", "pod-1"),))
    assert planned(done, spec={"desired": "Stop"}) == Plan()


def test_the_last_pod_of_a_failed_trial_is_kept_for_its_log() -> None:
    history = [{"attempt": 1, "class": "Failed", "startTime": stamp(NOW), "endTime": stamp(NOW)}]
    assert planned({"attempt": 1, "closed": 1, "phase": "Failed", "history": history}, pod(exit_code=1)) == Plan()


@pytest.mark.parametrize(
    ("timeouts", "report", "reported_at", "now", "reason"),
    [
        ({"firstReportSeconds": 60}, None, None, 50, None),
        ({"firstReportSeconds": 60}, None, None, 61, "NoReport"),
        ({"firstReportSeconds": 60}, Message(attempt=1, firstReport=NOW + 5), NOW + 5, 90, None),
        ({"progressSeconds": 60}, Message(attempt=1, firstReport=NOW + 5), NOW + 5, 64, None),
        ({"progressSeconds": 60}, Message(attempt=1, firstReport=NOW + 5), NOW + 5, 66, "NoProgress"),
        ({"progressSeconds": 60}, None, None, 900, None),
        ({}, None, None, 1e6, None),
    ],
)
def test_watchdogs(
    timeouts: dict[str, Any], report: Message | None, reported_at: float | None, now: float, reason: str | None
) -> None:
    found = planned(
        STARTED, pod(), now=NOW + now, report=report, report_time=reported_at, experiment={"timeouts": timeouts}
    )
    intent = found.status.intent if found.status else None
    assert (intent.reason if intent else None) == reason
    assert bool(found.actions) == (reason is not None)
    if reason:
        assert intent is not None
        killed = planned({**STARTED, "intent": intent.to_object()}, pod(exit_code=137, deleted=True)).status
        assert killed is not None
        assert (killed.history[-1].class_, killed.history[-1].reason, killed.failures) == ("Failed", reason, 1)


@pytest.mark.parametrize(("watched", "reason"), [(0, "NoProgress"), (500, "NoProgress"), (880, None)])
def test_a_trainer_that_has_reported_is_watched_by_an_operator_that_has_not_heard_it(
    watched: float, reason: str | None
) -> None:
    """One that came up `watched` seconds after the trainer, and has heard nothing at 900."""
    status = {**STARTED, "pod": {**STARTED["pod"], "firstReportTime": stamp(NOW + 5)}}  # type: ignore[dict-item]
    spec = {"timeouts": {"progressSeconds": 60}}
    old = Message(attempt=0, firstReport=NOW)
    for report, heard in ((None, None), (old, NOW + 899)):
        found = planned(
            status, pod(), now=NOW + 900, watched=NOW + watched, report=report, report_time=heard, experiment=spec
        )
        intent = found.status.intent if found.status else None
        assert (intent.reason if intent else None) == reason
    assert reason or found.after == pytest.approx(40)


def test_the_pod_has_what_the_trainer_needs_and_ours_wins() -> None:
    container = {
        "name": "t",
        "image": "i",
        "env": [{"name": "TRIALKEEPER_ATTEMPT", "value": "99"}, {"name": "A", "value": "$(TRIALKEEPER_SEED)"}],
    }
    template = {"metadata": {"labels": {"team": "x"}}, "spec": {"containers": [container], "nodeSelector": {"a": "b"}}}
    (create,) = planned({}, experiment={"template": template}).actions
    assert isinstance(create, CreatePod)
    spec, env = create.body["spec"], {e["name"]: e.get("value") for e in create.body["spec"]["containers"][0]["env"]}
    assert (env["TRIALKEEPER_ATTEMPT"], env["TRIALKEEPER_SEED"], env["TRIALKEEPER_PARAM_LR"]) == ("1", "5", "0.01")
    assert env["TRIALKEEPER_PREFIX"] == "default/exp-exp-uid/00000"
    assert list(env)[-1] == "A"
    assert (spec["restartPolicy"], spec["nodeSelector"], spec["terminationGracePeriodSeconds"]) == (
        "Never",
        {"a": "b"},
        30,
    )
    assert create.body["metadata"]["labels"]["team"] == "x"
    assert create.body["metadata"]["ownerReferences"][0]["uid"] == "trial-uid"


SITE = Site(store="s3://bucket")


@pytest.mark.parametrize(
    ("known", "now", "reason"),
    [
        ({"site": SITE, "silent": {"exp-0-a1"}}, NOW + 10, "NodeLost"),
        ({"site": SITE, "silent": ()}, NOW + 10, None),
        ({"site": SITE, "silent": ()}, NOW + 89, None),
        ({"site": SITE, "silent": ()}, NOW + 91, "NodeLost"),
        ({"site": None, "silent": ()}, NOW + 1000, None),
    ],
    ids=["a silent node", "a node that answers", "within the wait", "after the wait", "on this machine"],
)
def test_a_pod_on_its_way_out_is_lost_with_its_node(known: dict[str, Any], now: float, reason: str | None) -> None:
    leaving = pod(deleted=True)
    leaving["metadata"]["deletionTimestamp"] = stamp(NOW + 30)
    leaving["spec"]["nodeName"] = "node1"
    found = planned(STARTED, leaving, now=now, **known)
    if reason is None:
        assert found.after == 5.0
        assert found.status is None or found.status.closed == 0
        return
    assert found.status is not None
    (record,) = found.status.history
    assert (record.class_, record.reason, record.node, found.status.disruptions) == ("Lost", reason, "node1", 1)


def test_a_pod_that_never_ends_is_deleted_once_and_keeps_no_attempt_waiting() -> None:
    zombie = pod(deleted=True)
    record = {"attempt": 1, "class": "Lost", "startTime": stamp(NOW), "endTime": stamp(NOW)}
    found = planned({"attempt": 1, "closed": 1, "phase": "Waiting", "history": [record]}, zombie, site=SITE)
    assert [type(a) for a in found.actions] == [CreatePod]


def test_a_pod_that_we_ended_and_whose_node_is_lost_holds_up_no_further_attempt() -> None:
    """A trainer that hangs because its node is gone has failed by our own timeout; its pod stays for ever."""
    hung = {"attempt": 1, "class": "Failed", "reason": "NoProgress", "startTime": stamp(NOW), "endTime": stamp(NOW)}
    status = {"attempt": 1, "closed": 1, "phase": "Waiting", "history": [hung]}
    left = pod(deleted=True)
    left["spec"]["nodeName"] = "node1"
    assert planned(status, left, site=SITE, now=NOW + 45).status is None
    for known in ({"now": NOW + 45, "silent": {"exp-0-a1"}}, {"now": NOW + 101}):
        found = planned(status, left, site=SITE, **known)
        assert found.status is not None
        assert found.status.attempt == 2


SAVED = Message(attempt=1, podUid="pod-1", firstReport=NOW + 5, iteration=3, resumed=Resumed(0, 0, NOW, 0))
REPORTING = {
    "attempt": 1,
    "closed": 0,
    "phase": "Running",
    "pod": {"name": "exp-0-a1", "uid": "pod-1", "startTime": stamp(NOW), "firstReportTime": stamp(NOW + 5)},
}


def hanging(**known: Any) -> Plan:
    """A trainer that has not reported for 65 of 60 seconds."""
    running = known.pop("pod", None) or pod()
    running["status"]["containerStatuses"] = [{"name": "trainer", "state": {"running": {"startedAt": stamp(NOW)}}}]
    limits = {"timeouts": {"progressSeconds": 60, "graceSeconds": 110}}
    heard: dict[str, Any] = {"report": SAVED, "report_time": NOW + 30}
    return planned(REPORTING, running, now=NOW + 95, experiment=limits, site=SITE, **heard, **known)


def test_a_trainer_that_hangs_is_ended() -> None:
    found = hanging()
    assert found.status is not None
    assert found.status.intent is not None
    assert found.status.intent.reason == "NoProgress"
    assert [type(a) for a in found.actions] == [DeletePod]


def test_a_trainer_on_its_way_out_does_not_hang() -> None:
    evicted = pod(condition=("DisruptionTarget", "EvictionByEvictionAPI"))
    evicted["metadata"]["deletionTimestamp"] = stamp(NOW + 150)
    found = hanging(pod=evicted)
    assert found.status is not None
    assert (found.status.intent, found.actions, found.after) == (None, (), watching.LEAVING)


def test_a_trainer_that_is_silent_with_its_node_does_not_hang() -> None:
    found = hanging(silent={"exp-0-a1"})
    assert found.status is not None
    assert (found.status.intent, found.actions, found.after) == (None, (), watching.LEAVING)


@pytest.mark.parametrize(("phase", "kept"), [("Failed", True), ("Running", False)])
def test_a_failed_trials_pod_is_kept_for_its_log_unless_something_runs_in_it(phase: str, kept: bool) -> None:
    left = pod(exit_code=1)
    left["status"]["phase"] = phase
    record = {"attempt": 1, "class": "Failed", "reason": "ExitCode", "startTime": stamp(NOW), "endTime": stamp(NOW)}
    found = planned({"attempt": 1, "closed": 1, "phase": "Failed", "history": [record]}, left)
    assert [a.name for a in found.actions if isinstance(a, DeletePod)] == ([] if kept else ["exp-0-a1"])
