"""The attempt ledger: what each ending counts, when the next attempt comes, what was lost, told once."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, pod
from trialkeeper.contract import CheckpointRef, Message, Resumed
from trialkeeper_operator.api.experiment import FailurePolicy
from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.api.trial import LostWork, TrialStatus
from trialkeeper_operator.decide import ledger
from trialkeeper_operator.decide.endings import Class, Ending

POLICY = FailurePolicy(max_failures=2, max_disruptions=5, max_without_progress=2, backoff_seconds=10)


def opened(status: TrialStatus | None = None, now: float = NOW) -> TrialStatus:
    status = ledger.open_attempt(status or TrialStatus())
    return ledger.record_pods(status, f"exp-0-a{status.attempt}", [pod(status.attempt)], now)


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


@pytest.mark.parametrize("reason", ["OutOfMemory", "StorageLimit"])
def test_too_little_of_something_twice_without_a_newer_checkpoint_is_a_user_error(reason: str) -> None:
    status = closed(opened(), "Failed", reason)
    assert (status.phase, status.failures) == ("Waiting", 1)
    status = closed(opened(status), "Failed", reason)
    assert (status.phase, status.failures, status.history[-1].class_) == ("Failed", 1, "UserError")
    assert status.message == status.history[-1].message == "why (twice in a row without a newer checkpoint)"


def test_too_little_of_something_twice_with_a_newer_checkpoint_is_two_failures() -> None:
    status = closed(opened(), "Failed", "OutOfMemory")
    saved = CheckpointRef(2, 4, "manifests/a000002-i000000000004.json", NOW + 5)
    status = closed(opened(status), "Failed", "OutOfMemory", iteration=4, firstReport=NOW, checkpoint=saved)
    assert (status.phase, status.failures) == ("Waiting", 2)


def test_too_little_of_something_after_a_newer_base_is_two_failures() -> None:
    """Attempt 1 saved, which nobody heard; attempt 2 states that it began from there."""
    status = closed(ledger.heard(opened(), began(1, (0, 0), NOW)), "Failed", "OutOfMemory")
    status = closed(ledger.heard(opened(status), began(2, (1, 8), NOW + 70)), "Failed", "OutOfMemory")
    assert (status.phase, status.failures) == ("Waiting", 2)


def test_a_diverged_trial_is_outside_all_budgets() -> None:
    status = closed(opened(), "Stopped", "NonFinite")
    assert (status.phase, status.failures, status.disruptions, status.without_progress) == ("Stopped", 0, 0, 0)
    assert status.next_attempt_time is None


def test_a_retry_renews_the_budgets_and_keeps_the_counters() -> None:
    status = TrialStatus()
    for attempt in range(3):
        status = closed(opened(status), "Failed", "OutOfMemory" if attempt else "R", at=NOW + attempt)
    assert status.phase == "Failed"
    status = ledger.retry(status, NOW + 1000)
    assert (status.phase, status.completion_time, status.next_attempt_time) == ("Waiting", None, None)
    status = closed(opened(status, NOW + 1001), "Failed", "OutOfMemory", at=NOW + 1060)
    assert (status.phase, status.failures) == ("Waiting", 3)
    assert seconds(status.next_attempt_time or "") == pytest.approx(NOW + 1070)  # as after the first failure
    for at in (1100, 1200):
        status = closed(opened(status, NOW + at), "Failed", at=NOW + at)
    assert (status.phase, status.failures) == ("Failed", 5)
    assert status.message == "why (failed 3 times, failurePolicy.maxFailures is 2)"


def test_a_rest_costs_nothing_however_long() -> None:
    """Paused by somebody, while it ran or while it waited: neither time nor a budget."""
    status = ledger.heard(opened(), began(1, (0, 0), NOW + 1, firstReport=NOW + 10))
    ending = Ending("Stopped", "Desired", "why", time=stamp(NOW + 3600))
    status = ledger.close(status, ending, POLICY, NOW + 3600, paused=True)
    assert status.phase == "Paused"
    status = opened(ledger.resumed(status, NOW + 90_000), NOW + 90_001)
    status = ledger.heard(status, began(2, (0, 0), NOW + 90_005, firstReport=NOW + 90_010))
    assert status.lost_work.restart_seconds == pytest.approx(10)
    assert (status.without_progress, status.short_attempts, status.failures, status.disruptions) == (0, 0, 0, 0)

    waiting = closed(status, "Preempted", at=NOW + 90_100)
    status = opened(ledger.resumed(waiting.model_copy(update={"phase": "Paused"}), NOW + 95_000), NOW + 95_001)
    status = closed(status, "Preempted", at=NOW + 95_020)  # it never reported
    assert status.lost_work.restart_seconds == pytest.approx(30)
    assert ledger.resumed(status, NOW + 99_000) == status  # it did not rest


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
    (first,) = once.history
    assert (first.to_iteration, first.lost_iterations) == (17, 5)
    assert [first.lost_seconds, first.restart_seconds] == pytest.approx([30, 15])
    assert ledger.heard(once, message) == once


def test_an_attempt_that_never_reports_is_restart_time_and_nothing_else() -> None:
    status = ledger.heard(opened(), began(1, (0, 0), NOW + 1, firstReport=NOW + 10))
    status = closed(status, "Preempted", at=NOW + 100)
    status = closed(opened(status, NOW + 101), "Preempted", at=NOW + 130)
    status = opened(status, NOW + 131)
    status = ledger.heard(status, began(3, (1, 12), NOW + 135, lost=5, base_time=NOW + 70, firstReport=NOW + 140))
    assert status.lost_work.restart_seconds == pytest.approx(40)
    assert [h.restart_seconds for h in status.history] == [pytest.approx(30), pytest.approx(10)]
    assert status.lost_work.iterations == 5
    assert status.lost_work.seconds == pytest.approx(30)


def test_goodput_is_the_part_of_the_time_that_was_progress() -> None:
    assert ledger.goodput(0.0, LostWork()) is None
    assert ledger.goodput(80.0, LostWork(iterations=3, seconds=10.0, restart_seconds=10.0)) == 0.8


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


def test_iterations_that_were_lost_stay_lost_whatever_a_later_attempt_knows() -> None:
    """One that could not read its store begins blindly, and knows of none."""
    status = closed(ledger.heard(opened(), began(1, (0, 0), NOW)), "Preempted", iteration=50)
    status = ledger.heard(opened(status), began(2, (1, 20), NOW + 70, lost=37, firstReport=NOW + 71))
    status = opened(closed(status, "Preempted", at=NOW + 90))
    found = ledger.heard(status, began(3, (0, 0), NOW + 100))
    assert (status.lost_work.iterations, found.lost_work.iterations) == (37, 37)
    assert [h.to_iteration for h in found.history] == [57, 20]
