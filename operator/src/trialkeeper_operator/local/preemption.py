"""Which trials lose their node, when, and how: drawn by a seed, for `--preempt` and the drill."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from trialkeeper_operator.local.kubelet import How

_COUNTS = ("epochs", "iterations", "max_iterations", "num_epochs", "n_epochs", "steps", "max_epochs")


def expected_iterations(spec: Mapping[str, Any]) -> int | None:
    """How many iterations a trial will have, as far as its experiment tells."""
    stop = (spec.get("stop") or {}).get("maxIterations")
    if isinstance(stop, int):
        return stop
    for parameter in spec.get("parameters") or ():
        fixed = parameter.get("fixed")
        if parameter.get("name") in _COUNTS and isinstance(fixed, int) and not isinstance(fixed, bool):
            return fixed
    return None


def draw(trials: int, kills: int, seed: int, iterations: int | None) -> dict[int, list[tuple[int, How]]]:
    """For each trial that is hit: (iteration, how) of its kills, the next one first.

    Half have notice and half have not; every trial is hit once before one is hit twice. The iteration is
    drawn between 30 % and 80 % of the expected ones, between 2 and 6 if nobody knows how many there are.
    """
    rng = random.Random(f"{seed}/preempt")
    low, high = (max(1, int(0.3 * iterations)), max(1, int(0.8 * iterations))) if iterations else (2, 6)
    hows: list[How] = ["SIGTERM", "SIGKILL"]
    order: list[int] = []
    while len(order) < kills:
        order += rng.sample(range(trials), trials)
    plan: dict[int, list[tuple[int, How]]] = {}
    for number, index in enumerate(order[:kills]):
        plan.setdefault(index, []).append((rng.randint(low, high), hows[number % 2]))
    return {index: sorted(times) for index, times in plan.items()}


class Preempter:
    """Says when a kill is due. It counts once it has ended an attempt: a trial that is through before its kill has
    done anything passes it on to one that is not over.
    """

    def __init__(self, plan: Mapping[int, list[tuple[int, How]]], trials: int) -> None:
        self._plan = {index: list(times) for index, times in plan.items()}
        self._open = set(range(trials))
        self._hit: set[tuple[int, int]] = set()  # (index, attempt) that has had its kill
        self._sent: dict[int, tuple[int, How]] = {}  # kills whose attempt has not ended yet
        self.done = 0  # kills that ended an attempt

    def due(self, index: int, attempt: int, iteration: int) -> How | None:
        """How to hit this attempt now, if it is to be hit; an attempt is hit once."""
        times = self._plan.get(index)
        if not times or (index, attempt) in self._hit or iteration < times[0][0]:
            return None
        self._hit.add((index, attempt))
        return times[0][1]

    def hit(self, index: int) -> None:
        """The kill that was due is on its way."""
        self._sent[index] = self._plan[index].pop(0)

    def ended(self, index: int, *, by_us: bool) -> None:
        """An attempt has ended, by a kill of ours or by itself; then the kill that was on its way is due again."""
        sent = self._sent.pop(index, None)
        if by_us:  # by an earlier runner's, if none of this one's was on its way
            self.done += 1
            self._forgive(index, 0 if sent else 1)
        elif sent is not None:
            self._plan.setdefault(index, []).insert(0, sent)

    def missed(self, index: int, attempt: int) -> None:
        """The kill that was due found nobody; it stays due."""
        self._hit.discard((index, attempt))

    def remember(self, index: int, hits: int) -> None:
        """A trial has had so many kills from an earlier runner: they are not due again."""
        self.done += hits
        self._forgive(index, hits)

    def _forgive(self, index: int, hits: int) -> None:
        """Take kills that have been out of the plan: this trial's, or one that had been passed on to it."""
        for _ in range(min(hits, self.left)):
            giver = index if self._plan.get(index) else next(i for i, times in self._plan.items() if times)
            self._plan[giver].pop(0)

    def over(self, index: int) -> None:
        """A trial has ended: what it has not had goes to another."""
        self._open.discard(index)
        left = self._plan.pop(index, [])
        if left and self._open:
            heir = min(self._open, key=lambda i: (len(self._plan.get(i, ())), i))
            self._plan[heir] = sorted([*self._plan.get(heir, []), *left])

    @property
    def left(self) -> int:
        """Kills that are not on their way yet."""
        return sum(map(len, self._plan.values()))
