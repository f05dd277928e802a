"""When a save function is called: over what was set, what was measured, and what has just happened."""

from __future__ import annotations

import math
from dataclasses import dataclass

STALL_LIMIT = 0.02  # of run time is spent saving at most, under Auto
UPLOAD_MARGIN = 1.1  # uploads between two saves that Auto leaves time for


WEIGHT = 0.5  # of the newest measurement in a moving mean


@dataclass(frozen=True)
class Policy:
    """`checkpoint` of the experiment. Frequency and interval both None is Auto; 0 is off. Seconds and iterations.

    `milestones` are iterations at which a save is always due. `on_busy`, when two saves are on their way already:
    `Latest` puts the new one in the waiting one's place, `Skip` does not save, `Wait` waits.
    """

    frequency: int | None = None
    interval: float | None = None
    at_end: bool = True
    on_busy: str = "Latest"
    milestones: frozenset[int] = frozenset()


def auto_interval(cost: float, mtbf: float, upload: float = 0.0) -> float:
    """Seconds between saves that stop training for `cost` seconds each, when disruptions come every `mtbf` seconds.

    The first-order optimum sqrt(2 * mtbf * cost) of Young, "A first order approximation to the optimum
    checkpoint interval" (CACM 17/9, 1974), but never so often that saving takes more than 2 % of the time, nor
    that a save would find the one before it still under way: `upload` is how many seconds it takes to send one.
    The higher orders of Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps" (FGCS
    22/3, 2006), change the waste by a hundredth in either direction, less than what is not known of `mtbf`.
    """
    return max(math.sqrt(2 * mtbf * cost), cost / STALL_LIMIT, UPLOAD_MARGIN * upload)


def due(
    policy: Policy, *, iterations: int, seconds: float, cost: float | None, mtbf: float, upload: float = 0.0
) -> bool:
    """Whether it is time to save, `iterations` and `seconds` after the last save.

    `cost`: what a save takes of the trainer's time, None before the first one, which Auto takes at once to measure
    it; `upload`: what it takes to be sent.
    """
    if policy.frequency is None and policy.interval is None:
        return cost is None or seconds >= auto_interval(cost, mtbf, upload)
    by_count = bool(policy.frequency) and iterations >= (policy.frequency or 0)
    by_clock = bool(policy.interval) and seconds >= (policy.interval or 0.0)
    return by_count or by_clock


class Schedule:
    """The saves of one attempt. Moments are on one monotonic clock, given by the caller; `mtbf` may be known better."""

    def __init__(self, policy: Policy, mtbf: float) -> None:
        self.policy = policy
        self.mtbf = mtbf
        self.cost: float | None = None  # seconds of the trainer's time that a save takes
        self.upload: float | None = None  # seconds that it takes to be sent
        self._tried_iteration, self._tried_at = 0, 0.0
        self._saved_at: float | None = None
        self.saved_iteration = 0  # of the newest checkpoint
        self.handed_iteration = 0  # of the newest save that is a checkpoint or on its way to be one

    def begin(self, iteration: int, moment: float) -> None:
        """Count from a base, where nothing needs to be saved."""
        self.saved_iteration = self.handed_iteration = self._tried_iteration = iteration
        self._tried_at = moment

    def why(self, iteration: int, moment: float, *, stopped: bool = False) -> str | None:
        """Why a save is due at an iteration, as its manifest will say; None if it is not."""
        if stopped and self.policy.at_end:
            return "final"
        if iteration in self.policy.milestones and iteration > self._tried_iteration:
            return "milestone"
        timely = due(
            self.policy,
            iterations=iteration - self._tried_iteration,
            seconds=moment - self._tried_at,
            cost=self.cost,
            mtbf=self.mtbf,
            upload=self.upload or 0.0,
        )
        return "periodic" if timely else None

    def tried(self, iteration: int, start: float, end: float) -> None:
        """A save was tried. One that failed counts, so that a full disk does not make every iteration pay for it."""
        self.cost = _mean(self.cost, end - start)
        self._tried_iteration, self._tried_at = iteration, end

    def handed(self, iteration: int) -> None:
        """A save is on its way."""
        self.handed_iteration = iteration

    def lost(self, iteration: int) -> None:
        """A save will never be a checkpoint."""
        if self.handed_iteration == iteration:
            self.handed_iteration = self.saved_iteration

    def saved(self, iteration: int, moment: float, upload: float) -> float:
        """A save, handed over at a moment, is a checkpoint: seconds since the one before it, 0 if it was the first."""
        interval = 0.0 if self._saved_at is None else moment - self._saved_at
        self.saved_iteration, self._saved_at = max(iteration, self.saved_iteration), moment
        self.upload = _mean(self.upload, upload)
        return interval


def _mean(before: float | None, new: float) -> float:
    return new if before is None else (1 - WEIGHT) * before + WEIGHT * new
