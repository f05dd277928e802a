"""What is heard becomes Events and counts, and never stops who tells it."""

from __future__ import annotations

import asyncio
from typing import Any

from builders import NOW, trial
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


def test_a_status_that_somebody_has_written_by_hand_stops_nobody() -> None:
    broken = {**trial(), "status": {"attempt": "many"}}
    assert heard((broken, broken))[0] == []
