"""How often pods are disrupted: what was seen, added to what is believed before."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import TrialStatus
from trialkeeper_operator.decide.disruptions import mtbf

HOUR = 3600.0


def status(ran: float = 0.0, disruptions: int = 0, since: float | None = None) -> TrialStatus:
    pod: dict[str, Any] = {"name": "p", "uid": "u", "startTime": stamp(NOW)}
    pod |= {"firstReportTime": stamp(NOW + since)} if since is not None else {}
    return TrialStatus.model_validate({"runningSeconds": ran, "disruptions": disruptions, "pod": pod})


@pytest.mark.parametrize(
    ("trials", "hours"),
    [
        ([], 6.0),  # nothing is known: one in six hours
        ([status()], 6.0),  # a pod that has not reported has nothing to lose
        ([status(ran=2 * HOUR)], 8.0),
        ([status(ran=2 * HOUR, disruptions=1)], 4.0),
        ([status(since=0.0)], 7.0),  # still running, for an hour
        ([status(since=1800.0)], 6.5),
        ([status(since=-1e6), status(since=1e6)], 7.0),  # clocks that are wrong
        ([status(ran=30 * HOUR, disruptions=40), status(ran=28.5 * HOUR, disruptions=88)], 0.5),
    ],
)
def test_the_mean_time_between_disruptions(trials: list[TrialStatus], hours: float) -> None:
    assert mtbf(trials, NOW + HOUR) == pytest.approx(hours * HOUR)
