"""When a save function is called: pure, over what was set, what was measured, and what has just happened."""

from __future__ import annotations

import math
from dataclasses import dataclass

STALL_LIMIT = 0.02  # of run time is spent saving at most, under Auto


@dataclass(frozen=True)
class Policy:
    """`checkpoint` of the experiment. Both None is Auto; 0 is off. Seconds and iterations."""

    frequency: int | None = None
    interval: float | None = None
    at_end: bool = True


def auto_interval(cost: float, mtbf: float) -> float:
    """Seconds between saves that cost `cost` seconds each, when disruptions come every `mtbf` seconds.

    The first-order optimum sqrt(2 * mtbf * cost) of Young, "A first order approximation to the optimum
    checkpoint interval" (CACM 17/9, 1974), but never so often that saving takes more than 2 % of the time.
    """
    return max(math.sqrt(2 * mtbf * cost), cost / STALL_LIMIT)


def due(policy: Policy, *, iterations: int, seconds: float, cost: float | None, mtbf: float) -> bool:
    """Whether it is time to save, `iterations` and `seconds` after the last save.

    `cost`: what the last save took, None before the first one, which Auto takes at once to measure it.
    """
    if policy.frequency is None and policy.interval is None:
        return cost is None or seconds >= auto_interval(cost, mtbf)
    by_count = bool(policy.frequency) and iterations >= (policy.frequency or 0)
    by_clock = bool(policy.interval) and seconds >= (policy.interval or 0.0)
    return by_count or by_clock
