"""What is heard becomes Events and counts, and never stops who tells it."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any

import hypothesis
from hypothesis import strategies as st

from builders import NOW, trial
from trialkeeper_operator.api import names
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.serve.metrics import Metrics
from trialkeeper_operator.serve.telling import Telling


def heard(*changes: tuple[dict[str, Any], dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """(Events, exposition) after some changes of one trial's status."""

    class Posted(Memory):
        async def create(self, body: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
            events.append(body)
            return body

    events: list[dict[str, Any]] = []
    metrics = Metrics()

    async def story() -> None:
        telling = Telling(Posted(now=lambda: NOW), metrics, lambda: NOW)
        for old, new in changes:
            telling.stored(old, new)
        task = asyncio.create_task(telling.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(story())
    return events, metrics.text().decode()


def with_status(**status: Any) -> dict[str, Any]:
    return trial(**status)


POD = {"name": "exp-0-a1", "uid": "u", "startTime": stamp(NOW)}
ENDED = {
    "attempt": 1, "class": "Preempted", "reason": "Deleted", "message": "m",
    "startTime": stamp(NOW), "endTime": stamp(NOW),
}  # fmt: skip


def test_an_event_is_about_the_trial_and_has_a_name_of_its_own_words() -> None:
    change = (with_status(attempt=1), with_status(attempt=1, phase="Running", pod=POD))
    (one, same), _ = heard(change, change)
    assert (one["reason"], one["involvedObject"]["kind"], one["involvedObject"]["name"]) == (
        "Started",
        "Trial",
        "exp-0",
    )
    assert one["metadata"]["name"] == same["metadata"]["name"]


def test_attempts_are_counted_by_class() -> None:
    _, text = heard((with_status(attempt=1), with_status(attempt=1, closed=1, phase="Waiting", history=[ENDED])))
    assert 'trialkeeper_attempts_total{class="Preempted"} 1.0' in text


def test_work_is_counted_with_what_is_done_again_and_not_what_a_trial_was_taken_over_with() -> None:
    """Goodput is (work - lost) / (work + restarts)."""
    steps = [0.0, 60.0, 90.0, 70.0, 100.0]  # 20 s were lost at the fourth
    story = [with_status(attempt=1, trainedSeconds=trained) for trained in steps]
    _, text = heard(*itertools.pairwise(story))
    assert "trialkeeper_work_seconds_total 120.0" in text
    _, text = heard((with_status(), with_status(phase="Pending", trainedSeconds=80.0)))
    assert "trialkeeper_work_seconds_total 0.0" in text


def test_a_status_that_somebody_has_written_by_hand_stops_nobody() -> None:
    broken = {**trial(), "status": {"attempt": "many"}}
    assert heard((broken, broken))[0] == []


TIMES = {"startTime": stamp(NOW), "endTime": stamp(NOW)}
CHECKPOINT = {"attempt": 1, "iteration": 5, "key": "k", "time": stamp(NOW)}


@st.composite
def statuses(draw: st.DrawFn) -> dict[str, Any]:
    """Any status of a trial, whether or not an operator would come to it."""
    attempt = draw(st.integers(1, 3))
    closed = draw(st.integers(attempt - 1, attempt))
    record = {**TIMES, "attempt": closed, "class": draw(st.sampled_from(["Preempted", "Failed", "Succeeded"]))}
    begun = draw(st.sampled_from([{}, {"fromIteration": 0}, {"fromIteration": 5}]))
    pod = {"name": f"exp-0-a{attempt}", "uid": f"u{attempt}", "startTime": stamp(NOW), **begun}
    return {
        "attempt": attempt,
        "closed": closed,
        "phase": draw(st.sampled_from(["Pending", "Waiting", "Running", "Succeeded", "Failed"])),
        "reason": draw(st.sampled_from(["", "Unschedulable", "SlowStart", "ImageNotPulled", "QuotaExceeded"])),
        "message": draw(st.sampled_from(["", "one", "two"])),
        "history": [{**record, "message": draw(st.sampled_from(["a", "b"]))}] if closed else [],
        **({"pod": pod} if draw(st.booleans()) else {}),
        **({"checkpoint": CHECKPOINT} if draw(st.booleans()) else {}),
    }


@hypothesis.given(st.lists(statuses(), min_size=2, max_size=30))
def test_an_attempt_has_three_events_at_most_whatever_happens(story: list[dict[str, Any]]) -> None:
    told, _ = heard(*((with_status(**a), with_status(**b)) for a, b in itertools.pairwise(story)))
    kept = {event["metadata"]["name"]: event["metadata"]["labels"][names.LABEL_ATTEMPT] for event in told}
    assert max(Counter(kept.values()).values(), default=0) <= 3


def test_what_holds_up_an_attempt_is_told_once_and_its_end_all_the_same() -> None:
    def held(reason: str) -> dict[str, Any]:
        return with_status(attempt=1, phase="Waiting", reason=reason, message=reason, pod=POD)

    running = with_status(attempt=1, phase="Running", pod=POD)
    ended = with_status(attempt=1, closed=1, phase="Waiting", history=[ENDED])
    story = [with_status(attempt=1), running, held("Unschedulable"), running, held("SlowStart"), running, ended]
    told, _ = heard(*itertools.pairwise(story))
    posted: dict[str, str] = {}
    for event in told:
        posted.setdefault(event["metadata"]["name"], event["reason"])
    assert list(posted.values()) == ["Started", "Unschedulable", "Preempted"]
