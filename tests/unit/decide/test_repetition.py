"""The same error in several trials, before any has reported."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, trial
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide.repetition import repeated


def ended(index: int, class_: str, reason: str, message: str, *, reported: bool = False, **status: Any) -> Trial:
    record = {
        "attempt": 1,
        "class": class_,
        "reason": reason,
        "message": message,
        "startTime": stamp(NOW),
        "endTime": stamp(NOW),
    }
    record |= {"firstReportTime": stamp(NOW)} if reported else {}
    return Trial.from_object(trial(f"exp-{index}", index=index, history=[record], **status))


def raised(index: int, words: str = "lr=0.1", where: str = "train.py:7 main") -> Trial:
    return ended(index, "Failed", "Exception", f"ValueError: {words} (at {where})")


ALIKE = [raised(0), raised(1, "lr=0.2"), raised(2, "lr=(0.3)")]


def test_three_trials_that_ended_alike_are_one_error_whatever_their_parameters() -> None:
    found = repeated(ALIKE, 3)
    assert found is not None
    assert found.reason == "RepeatedError"
    assert found.message == (
        "3 trials ended alike before any had reported, exp-0 with: ValueError: lr=0.1 (at train.py:7 main)"
    )


def test_which_of_several_ranks_it_was_makes_no_other_error() -> None:
    trials = [
        ended(i, "Failed", "Exception", f"rank {i}: rank {i}: ValueError: lr=0.{i} (at train.py:7 main)")
        for i in range(3)
    ]
    assert repeated(trials, 3) is not None
    assert repeated([ended(i, "Failed", "ExitCode", f"rank {i}: exited with code 3") for i in range(3)], 3) is not None


@pytest.mark.parametrize(
    "trials",
    [
        ALIKE[:2],
        [*ALIKE[:2], raised(2, where="train.py:9 main")],
        [*ALIKE[:2], ended(2, "Failed", "Exception", "KeyError: lr (at train.py:7 main)")],
        [*ALIKE, ended(3, "Preempted", "Deleted", "m", reported=True)],
        [*ALIKE, ended(3, "Preempted", "Deleted", "m", iteration=4)],
        [ended(i, "Preempted", "Deleted", "the pod was deleted by somebody") for i in range(5)],
        [ended(i, "Failed", "OutOfMemory", "m") for i in range(5)],
        [ended(i, "UserError", "OutOfMemory", "m") for i in range(5)],
        [],
    ],
    ids=["two", "another line", "another type", "one reported", "one came far", "disruptions", "memory", "memory twice",
         "none"],
)  # fmt: skip
def test_anything_else_is_none(trials: list[Trial]) -> None:
    assert repeated(trials, 3) is None


def test_user_errors_of_one_reason_are_alike() -> None:
    found = repeated([ended(i, "UserError", "PodRefused", f"pods exp-{i}-a1 is forbidden") for i in range(3)], 3)
    assert found is not None
    assert "exp-0 with: pods exp-0-a1 is forbidden" in found.message


def test_exit_codes_are_alike_if_their_last_words_are() -> None:
    trials = [ended(i, "Failed", "ExitCode", "the trainer exited with code 1: no module") for i in range(2)]
    assert repeated(trials, 2) is not None
    assert repeated([*trials[:1], ended(1, "Failed", "ExitCode", "the trainer exited with code 1: no file")], 2) is None


def test_no_limit_is_no_limit() -> None:
    assert repeated(ALIKE, 0) is None
    assert repeated(ALIKE, 4) is None
