"""TPE by Optuna, behind one function. The study in the cache is rebuilt from the log at any time.

The sampler is made anew for each ask, seeded by seed and index, so that a suggestion does not depend on how
many were asked before. Conditional parameters make groups that Optuna samples apart. Optuna sees places, not
values: the position of a discrete value, a number from 0 to 1 for a continuous one. So neither 1 and true nor
extreme bounds can confuse it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from trialkeeper_operator.api.parameters import Parameter
from trialkeeper_operator.search.question import Asked, Question
from trialkeeper_operator.search.space import (
    Parameters,
    Space,
    active,
    at,
    choose,
    count,
    is_log,
    misfit,
    nth,
    position,
    where,
)

_DIRECTIONS = {"Minimize": StudyDirection.MINIMIZE, "Maximize": StudyDirection.MAXIMIZE}
FINE = 100_000  # values of a discrete parameter; with more it is sampled like a continuous one
HUGE = 1e60  # of an objective's value: what is beyond is worst or best either way, and volumes stay finite


def _distribution(parameter: Parameter) -> BaseDistribution:
    """What Optuna samples for a parameter."""
    number = count(parameter)
    if parameter.choice is not None and number is not None:
        return CategoricalDistribution(tuple(range(number)))
    if number is None or number > FINE or is_log(parameter):
        return FloatDistribution(0.0, 1.0)
    return IntDistribution(0, number - 1)


def _inward(parameter: Parameter, value: Any) -> float:
    """The place of a value, as its distribution has it."""
    if isinstance(_distribution(parameter), FloatDistribution):
        return where(parameter, value)
    return position(parameter, value)


def _sampled(trial: optuna.Trial, parameter: Parameter) -> Any:
    """A value at a place that Optuna samples."""
    distribution = _distribution(parameter)
    if isinstance(distribution, CategoricalDistribution):
        place = trial.suggest_categorical(parameter.name, distribution.choices)
        assert isinstance(place, int)
        return nth(parameter, place)
    if isinstance(distribution, IntDistribution):
        return nth(parameter, trial.suggest_int(parameter.name, distribution.low, distribution.high))
    return at(parameter, trial.suggest_float(parameter.name, 0.0, 1.0))


def _results(asked: Asked, objectives: int) -> list[float] | None:
    """What a complete trial has told, None if it cannot be learnt from."""
    values = asked.values or ()
    if not asked.told or len(values) != objectives:
        return None
    return [min(max(float(v), -HUGE), HUGE) for v in values]


class _Mirror:
    """A study that has the log's trials in the log's order, extended as the log grows."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.study = optuna.create_study(directions=[_DIRECTIONS[d] for d in space.directions])
        self._searched = [p for p in space.parameters if p.fixed is None]
        self._taken: list[Asked] = []
        self._numbers: list[int] = []  # the study's number of each taken trial
        self._count = 0  # of the study's trials

    def follow(self, log: Sequence[Asked]) -> bool:
        """Take in what is new in the log; False if the log is not a continuation of what was taken."""
        if len(log) < len(self._taken):
            return False
        for place, (old, new) in enumerate(zip(self._taken, log, strict=False)):
            if old == new:
                continue
            if old.state != "running" or (old.index, old.parameters) != (new.index, new.parameters):
                return False
            if new.state != "running":
                self._end(self._numbers[place], _results(new, len(self.space.directions)))
            self._taken[place] = new
        for asked in log[len(self._taken) :]:
            self.study.add_trial(self._frozen(asked))
            self._taken.append(asked)
            self._numbers.append(self._next_number())
        return True

    def sample(self, sampler: optuna.samplers.BaseSampler) -> Parameters:
        """A point by a sampler. The log says what becomes of it: what was only sampled must not weigh."""
        self.study.sampler = sampler
        number = self._next_number()
        trial = self.study.ask()
        try:
            return choose(self.space, lambda p: _sampled(trial, p))
        finally:
            self._end(number, None)

    def _next_number(self) -> int:
        self._count += 1
        return self._count - 1

    def _end(self, number: int, values: list[float] | None) -> None:
        if values is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, values)

    def _frozen(self, asked: Asked) -> optuna.trial.FrozenTrial:
        """A trial of the study; whatever of its parameters does not fit, since people may write Trials, is left out."""
        known = asked.parameters
        inside = {
            p.name: _inward(p, known[p.name])
            for p in self._searched
            if p.name in known and active(p, known) and not misfit(p, known[p.name])
        }
        values = _results(asked, len(self.space.directions))
        ended = TrialState.FAIL if values is None else TrialState.COMPLETE
        return create_trial(
            state=TrialState.RUNNING if asked.state == "running" else ended,
            values=values,
            params=inside,
            distributions={p.name: _distribution(p) for p in self._searched if p.name in inside},
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's notes on new studies and experimental arguments; its users' settings are put back."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def ask(question: Question) -> Parameters:
    """The parameters that TPE suggests; at least one result must be in the log."""
    digest = hashlib.sha256(f"{question.seed}/{question.index}/tpe".encode()).digest()
    with _quiet():
        mirror: _Mirror | None = question.cache.get("tpe")
        if mirror is None or mirror.space != question.space or not mirror.follow(question.log):
            mirror = question.cache["tpe"] = _Mirror(question.space)
            mirror.follow(question.log)
        return mirror.sample(
            optuna.samplers.TPESampler(
                seed=int.from_bytes(digest[:4], "big"),
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=1,
                n_ei_candidates=int(question.settings.get("candidates", 24)),
            )
        )
