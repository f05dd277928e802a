"""How often pods are disrupted, as far as an experiment's own trials have seen."""

from __future__ import annotations

from collections.abc import Iterable

from trialkeeper.contract import PRIOR_MTBF_SECONDS
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.api.trial import PodRecord, TrialStatus


def exposed(pod: PodRecord | None, until: float) -> float:
    """Seconds that an attempt had something to lose: from its first report, or 0 without one.

    The report's time is the pod's own clock's; nothing before the pod counts, whatever that clock says.
    """
    if pod is None or pod.first_report_time is None:
        return 0.0
    return max(0.0, until - max(seconds(pod.first_report_time), seconds(pod.start_time)))


def mtbf(trials: Iterable[TrialStatus], now: float) -> float:
    """Mean seconds of training between two disruptions of a pod, over all attempts of an experiment's trials.

    The inverse of the mean of a Gamma posterior of the rate, for exponential gaps (Gelman et al., "Bayesian Data
    Analysis", 3rd edition, 2.6): what was seen is added to one disruption in `PRIOR_MTBF_SECONDS`. A disruption before
    the first report counts, too, so that pods that hardly begin are rather taken for more endangered than they are.
    """
    running, disruptions = 0.0, 0
    for status in trials:
        running += status.running_seconds + exposed(status.pod, now)
        disruptions += status.disruptions
    return (PRIOR_MTBF_SECONDS + running) / (1 + disruptions)
