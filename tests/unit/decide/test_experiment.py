"""The plan of one experiment: how many trials, when it is over, what it says."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, experiment, trial
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide.experiment import Plan, plan, swept
from trialkeeper_operator.decide.pods import Site


def a_trial(index: int, phase: str = "Running", loss: float | None = None, **status: Any) -> Trial:
    metrics = {} if loss is None else {"loss": {"last": loss, "min": loss, "max": loss}}
    return Trial.from_object(trial(f"exp-{index}", index=index, phase=phase, metrics=metrics, **status))


def planned(*trials: Trial, limit: int = 4, status: Any = None, **spec: Any) -> Plan:
    return plan(Experiment.from_object(experiment(**spec) | {"status": status or {}}), trials, limit=limit, now=NOW)


def verdict(found: Plan) -> tuple[str, str]:
    condition = next(c for c in found.status.conditions if c.type == "Succeeded")
    return condition.status, condition.reason


@pytest.mark.parametrize(
    ("phases", "create"),
    [([], 2), (["Running"], 1), (["Running", "Waiting"], 0), (["Succeeded", "Running"], 1), (["Failed", "Stopped"], 2),
     (["Succeeded"] * 3, 1), (["Paused", "Running"], 0)],
)  # fmt: skip
def test_as_many_trials_are_created_as_may_run(phases: list[str], create: int) -> None:
    found = planned(*(a_trial(i, p) for i, p in enumerate(phases)))
    assert found.create == create
    assert verdict(found) == ("Unknown", "Running")


def test_it_succeeds_when_all_trials_are_over_and_one_succeeded() -> None:
    found = planned(
        a_trial(0, "Succeeded", 0.5), a_trial(1, "Failed"), a_trial(2, "Succeeded", 0.25), a_trial(3, "Stopped")
    )
    assert (verdict(found), found.create, found.status.phase) == (("True", "AllTrialsFinished"), 0, "Succeeded")
    assert found.status.counts == {"Failed": 1, "Stopped": 1, "Succeeded": 2}
    assert found.status.best is not None
    assert (found.status.best.trial, found.status.best.value) == ("exp-2", 0.25)


def test_it_fails_when_no_trial_succeeded_and_says_what_the_last_one_said() -> None:
    found = planned(*(a_trial(i, "Failed", message="no such module") for i in range(4)))
    assert verdict(found) == ("False", "NoTrialSucceeded")
    assert "exp-3: no such module" in next(c.message for c in found.status.conditions if c.type == "Succeeded")


def test_too_many_failed_trials_end_it() -> None:
    policy = {"maxFailedTrials": 1}
    trials = [a_trial(0, "Failed"), a_trial(1, "Failed"), a_trial(2)]
    stopping = planned(*trials, failurePolicy=policy)
    assert (verdict(stopping), stopping.create) == (("Unknown", "TooManyFailedTrials"), 0)
    over = planned(*trials[:2], a_trial(2, "Stopped"), failurePolicy=policy, status=stopping.status.to_object())
    assert verdict(over) == ("False", "TooManyFailedTrials")


def test_a_rule_may_end_it_for_one_attempt_and_says_which() -> None:
    fatal = a_trial(0, "Failed", reason="FailExperiment", message="the trainer exited with code 42")
    stopping = planned(fatal, a_trial(1))
    assert (verdict(stopping), stopping.create) == (("Unknown", "FailExperiment"), 0)
    over = planned(fatal, a_trial(1, "Stopped"), status=stopping.status.to_object())
    assert verdict(over) == ("False", "FailExperiment")
    said = next(c.message for c in over.status.conditions if c.type == "Succeeded")
    assert said == "exp-0: the trainer exited with code 42"


def alike(index: int, phase: str = "Waiting", **status: Any) -> Trial:
    record = {"attempt": 1, "class": "Failed", "reason": "ExitCode", "message": "no module"}
    times = {"startTime": stamp(NOW), "endTime": stamp(NOW)}
    return a_trial(index, phase, history=[record | times], message="no module", **status)


def test_the_same_error_in_three_trials_stalls_it_until_one_reports() -> None:
    stalled = planned(*(alike(i) for i in range(3)), limit=9, parallelism=5)
    condition = next(c for c in stalled.status.conditions if c.type == "Stalled")
    assert (condition.status, condition.reason, stalled.create) == ("True", "RepeatedError", 0)
    assert "exp-0 with: no module" in condition.message
    assert (verdict(stalled), stalled.status.phase) == (("Unknown", "Running"), "Stalled")
    known = stalled.status.to_object()
    better = planned(*(alike(i) for i in range(3)), a_trial(3, loss=0.5), limit=9, parallelism=5, status=known)
    condition = next(c for c in better.status.conditions if c.type == "Stalled")
    assert (condition.status, better.create) == ("False", 1)


def test_the_same_error_in_all_trials_that_there_may_be_is_the_end() -> None:
    over = planned(*(alike(i, "Failed") for i in range(4)))
    assert verdict(over) == ("False", "NoTrialSucceeded")
    assert not [c for c in over.status.conditions if c.type == "Stalled"]


def test_where_nobody_mends_anything_the_same_error_ends_it() -> None:
    owner = Experiment.from_object(experiment())
    stopping = plan(owner, [alike(i) for i in range(3)], limit=9, now=NOW, mendable=False)
    assert verdict(stopping) == ("Unknown", "RepeatedError")
    known = Experiment.from_object(experiment() | {"status": stopping.status.to_object()})
    over = plan(known, [alike(i, "Stopped") for i in range(3)], limit=9, now=NOW, mendable=False)
    assert verdict(over) == ("False", "RepeatedError")
    assert "exp-0 with: no module" in next(c.message for c in over.status.conditions if c.type == "Succeeded")


def test_a_reached_target_ends_it_once_the_others_have_stopped() -> None:
    objectives = [{"metric": "loss", "target": 0.1}]
    stopping = planned(a_trial(0, "Succeeded", 0.05), a_trial(1), objectives=objectives)
    assert (verdict(stopping), stopping.create, stopping.status.phase) == (("Unknown", "TargetReached"), 0, "Stopping")
    over = planned(
        a_trial(0, "Succeeded", 0.05), a_trial(1, "Stopped"), objectives=objectives, status=stopping.status.to_object()
    )
    assert verdict(over) == ("True", "TargetReached")
    said = next(c.message for c in over.status.conditions if c.type == "Succeeded")
    assert said == "exp-0 has reached the target: loss is 0.05; 1 of 2 trials succeeded"


def test_more_trials_wake_a_finished_experiment() -> None:
    done = planned(*(a_trial(i, "Succeeded", 0.1) for i in range(4)))
    more = planned(*(a_trial(i, "Succeeded", 0.1) for i in range(4)), limit=6, status=done.status.to_object())
    assert (verdict(more), more.create) == (("Unknown", "Running"), 2)


def test_a_retried_trial_wakes_a_finished_experiment() -> None:
    done = planned(*(a_trial(i, "Failed") for i in range(4)))
    again = planned(a_trial(0, "Waiting"), *(a_trial(i, "Failed") for i in range(1, 4)), status=done.status.to_object())
    assert (verdict(done), verdict(again)) == (("False", "NoTrialSucceeded"), ("Unknown", "Running"))
    assert (again.status.completion_time, again.create) == (None, 0)


def suspended(found: Plan) -> tuple[str, str] | None:
    return next(((c.status, c.reason) for c in found.status.conditions if c.type == "Suspended"), None)


def test_it_is_suspended_once_no_attempt_is_open_and_says_nothing_of_it_before() -> None:
    open_, rests = a_trial(0, "Running", attempt=1), a_trial(0, "Paused", attempt=1, closed=1)
    assert suspended(planned(open_)) is None
    leaving = planned(open_, suspend=True)
    assert (leaving.create, leaving.status.phase, suspended(leaving)) == (0, "Suspending", ("False", "Suspending"))
    gone = planned(rests, suspend=True, status=leaving.status.to_object())
    assert (gone.create, gone.status.phase, suspended(gone)) == (0, "Suspended", ("True", "Suspended"))
    assert verdict(gone) == ("Unknown", "Suspended")
    again = planned(rests, status=gone.status.to_object())
    assert (again.create, again.status.phase, suspended(again)) == (1, "Running", ("False", "Resumed"))


def test_one_whose_trials_are_all_over_is_over_also_if_it_is_suspended() -> None:
    found = planned(*(a_trial(i, "Succeeded", 0.1) for i in range(4)), suspend=True)
    assert verdict(found) == ("True", "AllTrialsFinished")


def test_a_deleted_trial_is_not_created_again() -> None:
    first = planned(*(a_trial(i, "Succeeded") for i in range(3)))
    found = planned(a_trial(0, "Succeeded"), a_trial(2, "Succeeded"), status=first.status.to_object())
    assert found.create == 1


def test_best_respects_direction_and_whether_the_best_or_the_last_value_counts() -> None:
    metrics = {"acc": {"last": 0.7, "min": 0.1, "max": 0.9}}
    others = {"acc": {"last": 0.8, "min": 0.1, "max": 0.85}}
    trials = [Trial.from_object(trial(f"exp-{i}", index=i, metrics=m)) for i, m in enumerate((metrics, others))]
    for value, best in (("Best", "exp-0"), ("Last", "exp-1")):
        found = planned(*trials, objectives=[{"metric": "acc", "direction": "Maximize", "value": value}])
        assert found.status.best is not None
        assert found.status.best.trial == best


def test_sums_and_goodput() -> None:
    lost = {"iterations": 3, "seconds": 10.0, "restartSeconds": 10.0}
    found = planned(a_trial(0, disruptions=2, lostWork=lost, trainedSeconds=80.0), a_trial(1, failures=1))
    assert (found.status.disruptions, found.status.failures, found.status.goodput) == (2, 1, 0.8)
    assert found.status.lost_work.iterations == 3


def test_a_changed_template_stops_everything() -> None:
    before = planned().status
    changed = {"spec": {"containers": [{"name": "t", "image": "other"}]}}
    found = planned(status=before.to_object(), template=changed)
    assert found.create == 0
    assert next(c.reason for c in found.status.conditions if c.type == "Accepted") == "TemplateChanged"


def stalled(found: Plan) -> tuple[str, str, str] | None:
    return next(((c.status, c.reason, c.message) for c in found.status.conditions if c.type == "Stalled"), None)


def test_it_is_stalled_while_every_active_trial_waits_for_somebody() -> None:
    waits: dict[str, Any] = {"reason": "ImageNotPulled", "message": "the image x cannot be pulled: not found"}
    found = planned(a_trial(0, "Waiting", **waits), a_trial(1, "Waiting", **waits), a_trial(2, "Succeeded", 0.5))
    assert stalled(found) == ("True", "ImageNotPulled", "exp-0: the image x cannot be pulled: not found")
    assert found.status.phase == "Stalled"
    later = planned(
        a_trial(0, "Waiting", **waits), a_trial(1), a_trial(2, "Succeeded", 0.5), status=found.status.to_object()
    )
    assert stalled(later) == ("False", "Going", "a trial makes progress, or none is active")
    assert later.status.phase == "Running"


def test_a_trial_that_only_waits_for_its_next_attempt_stalls_nothing() -> None:
    assert stalled(planned(a_trial(0, "Waiting", reason="ExitCode"))) is None


def test_the_best_trials_checkpoint_can_be_found_in_the_bucket() -> None:
    key = "manifests/a000002-i000000000007.json"
    saved = {"attempt": 2, "iteration": 7, "key": key, "time": stamp(NOW)}
    found = planned(a_trial(0, "Succeeded", 0.5, checkpoint=saved))
    assert found.status.best is not None
    assert found.status.best.checkpoint == f"default/exp-exp-uid/00000/{key}"
    inherited = f"default/old-0a1b2c3d/00000/{key}"
    found = planned(a_trial(0, "Succeeded", 0.5, checkpoint={**saved, "key": inherited}))
    assert found.status.best is not None
    assert found.status.best.checkpoint == inherited


BUCKET = {"s3": {"bucket": "team", "endpoint": "http://minio:9000"}}


@pytest.mark.parametrize(
    ("spec", "site", "way"),
    [
        (
            {"storage": BUCKET, "checkpoint": {"budget": "5Gi"}},
            Site(swept=True),
            "'s3://team?region=us-east-1&endpoint=http%3A%2F%2Fminio%3A9000' --budget 5Gi",
        ),
        (
            {"storage": {"volume": {"claimName": "c"}}, "deletionPolicy": {"checkpoints": "Delete"}},
            Site(swept=True),
            "/checkpoints --delete default/exp-exp-uid",
        ),
        (
            {"checkpoint": {"budget": "5Gi"}},
            Site("s3://theirs?credentials=report"),
            "'s3://theirs?region=us-east-1' --budget 5Gi",
        ),
        ({"checkpoint": {"budget": "5Gi"}}, None, "runs/exp --budget 5Gi"),
        ({"checkpoint": {"budget": "5Gi"}, "deletionPolicy": {"checkpoints": "Delete"}}, Site(swept=True), ""),
        ({"storage": BUCKET}, Site(), ""),
    ],
)
def test_who_must_sweep_a_store_that_the_operator_does_not(spec: dict[str, Any], site: Site | None, way: str) -> None:
    found = Experiment.from_object(experiment(**spec))
    status = swept(found, found.status, site, NOW)
    said = [c for c in status.conditions if c.type == "Swept"]
    assert [c.status for c in said] == (["False"] if way else [])
    assert not way or f"trialkeeper sweep {way}" in said[0].message
    again = swept(Experiment.from_object(experiment()), status, site, NOW)
    assert [c.status for c in again.conditions if c.type == "Swept"] == (["True"] if way else [])
