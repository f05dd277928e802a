"""When a save function is called: over what was set, what was measured, and what has just happened."""

from __future__ import annotations

import math
from dataclasses import dataclass

STALL_LIMIT = 0.02  # of run time is spent saving at most, under Auto
UPLOAD_MARGIN = 1.1  # uploads between two saves that Auto leaves time for


@dataclass(frozen=True)
class Policy:
    """`checkpoint` of the experiment. Both None is Auto; 0 is off. Seconds and iterations."""

    frequency: int | None = None
    interval: float | None = None
    at_end: bool = True


def auto_interval(cost: float, mtbf: float, upload: float = 0.0) -> float:
    """Seconds between saves that stop training for `cost` seconds each, when disruptions come every `mtbf` seconds.

    The first-order optimum sqrt(2 * mtbf * cost) of Young, "A first order approximation to the optimum
    checkpoint interval" (CACM 17/9, 1974), but never so often that saving takes more than 2 % of the time, nor
    that a save would find the one before it still under way: `upload` is how many seconds it takes to send one.
    The higher orders of Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps" (FGCS
    22/3, 2006), change the waste by a hundredth in either direction, less than what is not known of `mtbf`.
    """
    return max(math.sqrt(2 * mtbf * cost), cost / STALL_LIMIT, UPLOAD_MARGIN * upload)


def due(policy: Policy, *, iterations: int, seconds: float, cost: float | None, mtbf: float) -> bool:
    """Whether it is time to save, `iterations` and `seconds` after the last save.

    `cost`: what the last save took, None before the first one, which Auto takes at once to measure it.
    """
    if policy.frequency is None and policy.interval is None:
        return cost is None or seconds >= auto_interval(cost, mtbf)
    by_count = bool(policy.frequency) and iterations >= (policy.frequency or 0)
    by_clock = bool(policy.interval) and seconds >= (policy.interval or 0.0)
    return by_count or by_clock


class Schedule:
    """The saves of one attempt. Moments are on one monotonic clock, given by the caller; `mtbf` may be known better."""

    def __init__(self, policy: Policy, mtbf: float) -> None:
        self.policy = policy
        self.mtbf = mtbf
        self._cost: float | None = None
        self._tried_iteration, self._tried_at = 0, 0.0
        self._saved_at: float | None = None
        self.saved_iteration = 0

    def begin(self, iteration: int, moment: float) -> None:
        """Count from a base, where nothing needs to be saved."""
        self.saved_iteration = self._tried_iteration = iteration
        self._tried_at = moment

    def why(self, iteration: int, moment: float, *, stopped: bool, leaving: bool) -> str | None:
        """Why a save is due at an iteration, as its manifest will say; None if it is not."""
        if leaving:
            return "preempted"
        if stopped and self.policy.at_end:
            return "final"
        iterations, seconds = iteration - self._tried_iteration, moment - self._tried_at
        timely = due(self.policy, iterations=iterations, seconds=seconds, cost=self._cost, mtbf=self.mtbf)
        return "periodic" if timely else None

    def tried(self, iteration: int, start: float, end: float) -> None:
        """A save was tried. One that failed counts, so that a full disk does not make every iteration pay for it."""
        self._cost, self._tried_iteration, self._tried_at = end - start, iteration, end

    def saved(self, iteration: int, end: float) -> float:
        """A save has succeeded: the seconds since the one before it in this attempt, 0 if it was the first."""
        interval = 0.0 if self._saved_at is None else end - self._saved_at
        self.saved_iteration, self._saved_at = iteration, end
        return interval
