"""What goes wrong and when: drawn by a seed, so that the same seed does the same things in the same order again.

Hits end one pod. Outages take a part of the cluster away for a while, one at a time, and each is over by itself: two at
once could leave nobody who makes progress. Which pod or node it is follows from a number and what is there by then.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

HITS = ("delete", "force", "evict", "sigkill")
# Seconds that each takes, at least and at most; 0: what is killed is started again by the cluster.
OUTAGES = {
    "kubelet-killed": (2, 10),
    "kubelet-frozen": (5, 25),
    "node-lost": (60, 75),  # longer than the grace for nodes and the toleration of pods together
    "operator-killed": (0, 0),
    "operator-frozen": (5, 40),
    "apiserver-killed": (1, 8),
    "apiserver-frozen": (5, 15),
    "store-killed": (0, 0),
    "store-frozen": (5, 30),
}
DEAF = ("apiserver-killed", "apiserver-frozen")  # nothing can be asked of the cluster meanwhile
BETWEEN_HITS, BETWEEN_OUTAGES = (8, 16), (8, 20)  # seconds
FIRST = 10.0  # seconds that everything is left alone
AFTER = 5.0  # seconds after an API server's outage in which nothing is asked of it


@dataclass(frozen=True)
class Act:
    """What is done `at` seconds after the beginning; `pick`, below 1, says to whom of those that are there."""

    at: float
    what: str
    lasts: float = 0.0
    pick: float = 0.0


@dataclass(frozen=True)
class Done:
    """An act as it came to pass, in seconds since the epoch; `to` is a pod, a node or a program."""

    what: str
    to: str
    begin: float
    end: float
    missed: bool = False  # there was nobody to do it to

    @property
    def hit(self) -> bool:
        return self.what in HITS


def deaf(act: Act | None) -> bool:
    """Whether nothing can be asked of the API server while this lasts."""
    return act is not None and act.what in DEAF


def draw(seed: int, seconds: float) -> list[Act]:
    """Everything that happens in so many seconds, in the order of time."""
    rng = random.Random(f"{seed}/chaos")
    outages = list(_outages(rng, seconds))
    return sorted([*outages, *_hits(rng, seconds, outages)], key=lambda act: act.at)


def _outages(rng: random.Random, seconds: float) -> Iterator[Act]:
    """Every kind once before one comes twice, so that the restart back-off of a container has time to end."""
    now, left = FIRST, list[str]()
    while True:
        left = left or rng.sample(list(OUTAGES), len(OUTAGES))
        what = left.pop()
        lasts = rng.uniform(*OUTAGES[what])
        if now + lasts > seconds:
            return
        yield Act(now, what, lasts, rng.random())
        now += lasts + rng.uniform(*BETWEEN_OUTAGES)


def _hits(rng: random.Random, seconds: float, outages: list[Act]) -> Iterator[Act]:
    deaf = [(o.at, o.at + o.lasts + AFTER) for o in outages if o.what in DEAF]
    now = FIRST
    while (now := now + rng.uniform(*BETWEEN_HITS)) < seconds:
        what, pick = rng.choice(HITS), rng.random()
        yield Act(now, "sigkill" if any(begin <= now <= end for begin, end in deaf) else what, 0.0, pick)
