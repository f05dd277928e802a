"""What a trial has counted: iterations, time, and metrics over the visible history, and a raw line for each report."""

from __future__ import annotations

import json
import math
import operator
import os
import time
from collections.abc import Mapping, Sequence

from trialkeeper.contract import MetricSummary
from trialkeeper.environment import Environment
from trialkeeper.manifest import Progress
from trialkeeper.metrics import summarise, written
from trialkeeper.stop import Plateau

TOLD = 32  # metrics go into a message at most; a message has its limit


class Tally:
    """Counts on from a base. Times are seconds, `reported_at` since the epoch."""

    def __init__(self, env: Environment, plateau: Plateau | None, since: float) -> None:
        host = json.dumps(os.uname().nodename)
        self._tail = f',"trial_id":{json.dumps(env.trial)},"attempt":{env.attempt},"hostname":{host}'
        self._plateau = plateau
        self._since = since  # on the monotonic clock
        self.reports = 0
        self.iteration = 0
        self.trained = 0.0
        self.step: int | None = None
        self.summaries: dict[str, MetricSummary] = {}
        self.window: list[float] = []
        self.values: Mapping[str, float | int] = {}
        self.reported_at = 0.0

    def count_on(self, progress: Progress) -> None:
        """Begin where a checkpoint was."""
        self.iteration, self.step, self.trained = progress.iteration, progress.step, progress.trained_seconds
        self.summaries, self.window = dict(progress.summaries), list(progress.window)

    def judge_plateau(self, plateau: Plateau | None) -> None:
        """Keep the last values that another plateau rule needs; those of another metric begin anew."""
        if plateau is not None and (self._plateau is None or self._plateau.metric != plateau.metric):
            self.window = []
        self._plateau = plateau

    def leave_out(self) -> None:
        """What has passed since the last report was not training."""
        self._since = time.monotonic()

    def advance(self, step: int) -> None:
        """Take the trainer's own clock.

        :raises TypeError: if it is no whole number.
        :raises ValueError: if it went back.
        """
        try:
            number = operator.index(step)
        except TypeError:
            raise TypeError(f"step is {type(step).__name__} {step!r}: it must be a whole number") from None
        if self.step is not None and number < self.step:
            raise ValueError(f"step went back from {self.step} to {number}: it may stay or grow, also over a resume")
        self.step = number

    def count(self, values: Mapping[str, float | int]) -> bytes:
        """One iteration more: its line of the raw results, with the automatic metrics."""
        moment, self.reported_at = time.monotonic(), time.time()
        spent, self._since = moment - self._since, moment
        self.reports += 1
        self.iteration += 1
        self.trained += spent
        self.values = values
        summarise(self.summaries, values)
        plateau = self._plateau
        if plateau is not None and plateau.metric in values and math.isfinite(values[plateau.metric]):
            self.window.append(float(values[plateau.metric]))
            del self.window[: -plateau.results]
        step = "" if self.step is None else f',"step":{self.step}'
        finite = values if all(map(math.isfinite, values.values())) else {k: written(v) for k, v in values.items()}
        own = json.dumps(finite, separators=(",", ":"))[1:]
        return (
            f'{{"training_iteration":{self.iteration},"time_this_iter_s":{spent:.6f},"time_total_s":{self.trained:.6f},'
            f'"timestamp":{self.reported_at:.6f}{self._tail}{step}{"," if values else ""}{own}\n'
        ).encode()

    def progress(self) -> Progress:
        """What a checkpoint keeps."""
        return Progress(self.iteration, self.step, self.trained, self.summaries, tuple(self.window))

    def told(self, first: Sequence[str]) -> dict[str, MetricSummary]:
        """The summaries that fit into a message, those named `first` before all others."""
        found = {name: self.summaries[name] for name in first if name in self.summaries}
        for name, summary in self.summaries.items():
            if len(found) >= TOLD:
                break
            found.setdefault(name, summary)
        return found
