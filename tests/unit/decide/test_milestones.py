"""Events: at most three an attempt, each once, none for mere progress."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from builders import NOW
from trialkeeper_operator.api.experiment import ExperimentStatus
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import TrialStatus
from trialkeeper_operator.decide.milestones import of_experiment, of_trial


def status(**fields: Any) -> TrialStatus:
    return TrialStatus.model_validate(fields)


def pod(attempt: int, **more: Any) -> dict[str, Any]:
    return {"name": f"exp-0-a{attempt}", "uid": f"u{attempt}", "startTime": stamp(NOW), **more}


def record(attempt: int, class_: str, reason: str) -> dict[str, Any]:
    times = {"startTime": stamp(NOW), "endTime": stamp(NOW), "toIteration": 7}
    return {"attempt": attempt, "class": class_, "reason": reason, "message": "it went", **times}


def test_a_trials_story_in_events() -> None:
    lost = [record(1, "Preempted", "PreemptionByScheduler")]
    through = [*lost, record(2, "Succeeded", "Completed")]
    story = [
        status(),
        status(attempt=1),
        status(attempt=1, phase="Running", pod=pod(1)),
        status(attempt=1, phase="Running", pod=pod(1, fromIteration=0), iteration=5),
        status(attempt=1, phase="Running", pod=pod(1, fromIteration=0), iteration=7),
        status(attempt=1, closed=1, phase="Waiting", history=lost, nextAttemptTime=stamp(NOW)),
        status(attempt=2, closed=1, phase="Pending", history=lost),
        status(attempt=2, closed=1, phase="Running", history=lost, pod=pod(2)),
        status(attempt=2, closed=1, phase="Running", history=lost, pod=pod(2, fromIteration=7)),
        status(attempt=2, closed=2, phase="Succeeded", history=through),
    ]
    told = [m for old, new in itertools.pairwise(story) for m in of_trial(old, new)]
    assert [(m.reason, m.type) for m in told] == [
        ("Started", "Normal"),
        ("Preempted", "Normal"),
        ("Resumed", "Normal"),
        ("Succeeded", "Normal"),
    ]
    assert told[2].message == "attempt 2 resumed from iteration 7 after PreemptionByScheduler"


def test_a_held_up_pod_is_told_once() -> None:
    held = {"attempt": 1, "phase": "Waiting", "reason": "ImageNotPulled", "message": "no such image", "pod": pod(1)}
    before = status(attempt=1, phase="Running", pod=pod(1))
    (told,) = of_trial(before, status(**held))
    assert (told.type, told.reason, told.message) == ("Warning", "ImageNotPulled", "no such image")
    assert of_trial(status(**held), status(**held, iteration=0)) == []


def test_an_experiment_tells_its_best_trial_and_its_verdict() -> None:
    def said(best: str, value: float, verdict: str) -> ExperimentStatus:
        condition = {"type": "Succeeded", "status": verdict, "reason": "r", "message": "8 of 8"}
        fields = {"best": {"trial": best, "value": value}}
        return ExperimentStatus.model_validate(
            {**fields, "conditions": [{**condition, "lastTransitionTime": stamp(NOW)}]}
        )

    one, better, other = said("e-1", 0.5, "Unknown"), said("e-1", 0.4, "Unknown"), said("e-2", 0.3, "Unknown")
    assert of_experiment(one, better) == []
    assert [m.reason for m in of_experiment(better, other)] == ["BestChanged"]
    assert [(m.reason, m.message) for m in of_experiment(other, said("e-2", 0.3, "True"))] == [("Finished", "8 of 8")]


@pytest.mark.parametrize(
    ("begins", "reason", "words"),
    [
        (12, "Resumed", "attempt 1 goes on from iteration 12 of the snapshot"),
        (0, "CheckpointMissing", "the checkpoint of iteration 12 is not in the store: attempt 1 begins at iteration 0"),
    ],
)
def test_a_restored_trial_says_whether_its_checkpoint_was_there(begins: int, reason: str, words: str) -> None:
    known = {"attempt": 3, "iteration": 12, "key": "k", "time": stamp(NOW)}
    before = status(attempt=1, phase="Running", pod=pod(1), checkpoint=known)
    assert of_trial(status(checkpoint=known), before) == []
    after = status(attempt=1, phase="Running", pod=pod(1, fromIteration=begins), checkpoint=known)
    (told,) = of_trial(before, after)
    assert (told.reason, told.message) == (reason, words)
    assert of_trial(status(checkpoint=known), after) == [told]


def test_a_retry_is_told_and_one_that_a_snapshot_knew_is_not() -> None:
    again = status(attempt=2, closed=2, phase="Waiting", retried={"number": 1, "attempt": 2})
    (told,) = of_trial(status(attempt=2, closed=2, phase="Failed"), again)
    assert (told.reason, told.message) == ("Retried", "somebody asked for another try: attempt 3 begins from the start")
    assert of_trial(status(), again) == []


def test_suspended_is_told_when_all_pods_are_gone_and_again_when_it_goes_on() -> None:
    def said(verdict: str, reason: str) -> ExperimentStatus:
        condition = {"type": "Suspended", "status": verdict, "reason": reason, "lastTransitionTime": stamp(NOW)}
        return ExperimentStatus.model_validate({"conditions": [condition]})

    story = [ExperimentStatus(), said("False", "Suspending"), said("True", "Suspended"), said("False", "Resumed")]
    told = [m.reason for old, new in itertools.pairwise(story) for m in of_experiment(old, new)]
    assert told == ["Suspended", "Resumed"]
