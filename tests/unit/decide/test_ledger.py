"""The attempt ledger: what each ending counts, when the next attempt comes, what was lost, told once."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, pod
from trialkeeper.contract import CheckpointRef, Message, Resumed
from trialkeeper_operator.api.experiment import FailurePolicy
from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.api.trial import TrialStatus
from trialkeeper_operator.decide import ledger
from trialkeeper_operator.decide.endings import Class, Ending

POLICY = FailurePolicy(max_failures=2, max_disruptions=5, max_without_progress=2, backoff_seconds=10)


def opened(status: TrialStatus | None = None, now: float = NOW) -> TrialStatus:
    status = ledger.open_attempt(status or TrialStatus())
    return ledger.record_pod(status, pod(status.attempt), now)


def closed(status: TrialStatus, class_: Class, reason: str = "R", at: float = NOW + 60, **said: Any) -> TrialStatus:
    message = Message(attempt=status.attempt, **said) if said else None
    ending = Ending(class_, reason, "why", exit_code=1, time=stamp(at), said=message)
    return ledger.close(status, ending, POLICY, at, paused=False)


def began(attempt: int, base: tuple[int, int], at: float, lost: int = 0, **more: Any) -> Message:
    resumed = Resumed(base[0], base[1], more.pop("base_time", at), lost)
    return Message(attempt=attempt, time=at, started=at, iteration=base[1], resumed=resumed, **more)


@pytest.mark.parametrize(
    ("class_", "phase", "failures", "disruptions", "wait"),
    [
        ("Succeeded", "Succeeded", 0, 0, None),
        ("Stopped", "Stopped", 0, 0, None),
        ("UserError", "Failed", 0, 0, None),
        ("Failed", "Waiting", 1, 0, 10.0),
        ("Infrastructure", "Waiting", 0, 1, 20.0),
        ("Preempted", "Waiting", 0, 1, 0.0),
        ("Lost", "Waiting", 0, 1, 0.0),
    ],
)
def test_each_class_counts_in_its_own_budget(
    class_: Class, phase: str, failures: int, disruptions: int, wait: float | None
) -> None:
    status = closed(opened(), class_)
    assert (status.phase, status.failures, status.disruptions) == (phase, failures, disruptions)
    assert (status.closed, status.attempt, status.pod) == (1, 1, None)
    due = None if status.next_attempt_time is None else seconds(status.next_attempt_time) - (NOW + 60)
    assert due == (None if wait is None else pytest.approx(wait, abs=1e-3))


def test_an_attempt_has_run_from_its_first_report_on_whatever_its_clock_says() -> None:
    status = closed(opened(), "Preempted", at=NOW + 60, firstReport=NOW + 20)
    assert status.running_seconds == 40
    status = closed(opened(status, NOW + 100), "Preempted", at=NOW + 130)
    assert status.running_seconds == 40  # nothing was reported, so there was nothing to lose
    status = closed(opened(status, NOW + 200), "Preempted", at=NOW + 230, firstReport=1.0)
    assert status.running_seconds == 70
    status = closed(opened(status, NOW + 300), "Succeeded", at=NOW + 330, firstReport=NOW + 1e6)
    assert status.running_seconds == 70


def test_failures_back_off_and_end_in_failed_with_the_budget_in_the_sentence() -> None:
    status, waits = TrialStatus(), []
    for attempt in range(3):
        status = closed(opened(status), "Failed", at=NOW + attempt)
        if status.next_attempt_time:
            waits.append(round(seconds(status.next_attempt_time) - NOW - attempt))
    assert waits == [10, 20]
    assert status.phase == "Failed"
    assert status.message == "why (failed 3 times, failurePolicy.maxFailures is 2)"
    assert status.completion_time == stamp(NOW + 2)


def test_disruptions_end_in_failed_only_beyond_their_own_budget() -> None:
    status = TrialStatus()
    for n in range(6):
        status = opened(status, NOW + 1000 * n)
        status = ledger.heard(status, began(n + 1, (n, n), NOW + 1000 * n))
        status = closed(status, "Preempted", at=NOW + 1000 * n + 900)
        assert status.phase == ("Failed" if n == 5 else "Waiting")
    assert (status.disruptions, status.failures) == (6, 0)


def test_running_out_of_memory_twice_without_a_newer_checkpoint_is_final_with_advice() -> None:
    status = closed(opened(), "Failed", "OutOfMemory")
    assert status.phase == "Waiting"
    status = closed(opened(status), "Failed", "OutOfMemory")
    assert status.phase == "Failed"
    assert "raise the limit" in status.message


def test_attempts_from_the_same_base_use_up_the_progress_budget() -> None:
    """Attempts 2, 3 and 4 state the base of the one before; with a budget of 2 the 4th one's ending counts."""
    status, at, failures = TrialStatus(), NOW, []
    for n in range(1, 7):
        status = ledger.heard(opened(status, at), began(n, (0, 0), at, firstReport=at + 1))
        status = closed(status, "Preempted", at=at + 3600)
        failures.append(status.failures)
        at += 4000
    assert failures == [0, 0, 0, 1, 2, 3]
    assert status.disruptions == 3
    assert status.phase == "Failed"
    assert "maxFailures" in status.message


def test_short_attempts_are_forgiven_for_a_while() -> None:
    policy = FailurePolicy(max_failures=0, max_disruptions=1000, max_without_progress=2, backoff_seconds=0)
    status, at, n = TrialStatus(), NOW, 0
    while status.phase != "Failed":
        n += 1
        status = ledger.heard(opened(status, at), began(n, (0, 0), at, firstReport=at + 1, saveInterval=300.0))
        ending = Ending("Preempted", "R", "why", time=stamp(at + 30))
        status = ledger.close(status, ending, policy, at + 30, paused=False)
        at += 100
    assert (status.without_progress, n) == (0, 31)


def test_a_newer_base_resets_the_progress_budget() -> None:
    status = opened()
    status = ledger.heard(status, began(1, (0, 0), NOW, firstReport=NOW + 1))
    status = opened(closed(status, "Preempted", at=NOW + 3600), NOW + 3600)
    status = ledger.heard(status, began(2, (0, 0), NOW + 3601, firstReport=NOW + 3602))
    assert status.without_progress == 1
    status = opened(closed(status, "Preempted", at=NOW + 7200), NOW + 7200)
    status = ledger.heard(status, began(3, (2, 12), NOW + 7201))
    assert (status.without_progress, status.base.iteration if status.base else None) == (0, 12)


def test_lost_work_is_booked_once_however_often_it_is_heard() -> None:
    status = ledger.heard(opened(), began(1, (0, 0), NOW + 1, firstReport=NOW + 10))
    status = closed(status, "Preempted", at=NOW + 100)
    status = opened(status, NOW + 101)
    message = began(2, (1, 12), NOW + 105, lost=5, base_time=NOW + 70, firstReport=NOW + 115)
    once = ledger.heard(status, message)
    assert once.lost_work.iterations == 5
    assert once.lost_work.seconds == pytest.approx(30)  # from the base's report to the death
    assert once.lost_work.restart_seconds == pytest.approx(15)  # from the death to the first new report
    assert (once.history[0].to_iteration, once.history[0].lost_iterations) == (17, 5)
    assert ledger.heard(once, message) == once


def test_an_attempt_that_never_reports_is_restart_time_and_nothing_else() -> None:
    status = ledger.heard(opened(), began(1, (0, 0), NOW + 1, firstReport=NOW + 10))
    status = closed(status, "Preempted", at=NOW + 100)
    status = closed(opened(status, NOW + 101), "Preempted", at=NOW + 130)
    status = opened(status, NOW + 131)
    status = ledger.heard(status, began(3, (1, 12), NOW + 135, lost=5, base_time=NOW + 70, firstReport=NOW + 140))
    assert status.lost_work.restart_seconds == pytest.approx(40)
    assert status.lost_work.iterations == 5
    assert status.lost_work.seconds == pytest.approx(30)


def test_another_attempts_or_another_pods_words_are_not_heard() -> None:
    status = opened()
    for message in (
        Message(attempt=2, iteration=9, firstReport=NOW),
        Message(attempt=1, podUid="somebody else", iteration=9, firstReport=NOW),
    ):
        assert ledger.heard(status, message) == status


def test_history_keeps_the_newest_ten() -> None:
    status = TrialStatus()
    policy = FailurePolicy(max_failures=100, backoff_seconds=0)
    for n in range(13):
        ending = Ending("Failed", "R", "why", time=stamp(NOW + n))
        status = ledger.close(opened(status, NOW + n), ending, policy, NOW + n, paused=False)
    assert [h.attempt for h in status.history] == list(range(4, 14))
    assert status.failures == 13


def test_a_checkpoint_that_was_heard_is_in_the_status() -> None:
    ref = CheckpointRef(1, 4, "manifests/a000001-i000000000004.json", NOW + 5)
    status = ledger.heard(opened(), Message(attempt=1, iteration=4, firstReport=NOW, checkpoint=ref))
    assert status.checkpoint is not None
    assert (status.checkpoint.iteration, status.checkpoint.key) == (4, ref.key)
