"""TPE by Optuna, behind one function. The study in the cache is rebuilt from the log at any time.

The sampler is made anew for each ask, seeded by seed and index, so that a suggestion does not depend on how
many were asked before. Conditional parameters make groups that Optuna samples apart.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from trialkeeper_operator.api.parameters import Parameter
from trialkeeper_operator.search.question import Asked, Question
from trialkeeper_operator.search.space import Parameters, Space, choose, same, stepped

_DIRECTIONS = {"Minimize": StudyDirection.MINIMIZE, "Maximize": StudyDirection.MAXIMIZE}
_STATES = {"running": TrialState.RUNNING, "complete": TrialState.COMPLETE, "failed": TrialState.FAIL}


def _distribution(parameter: Parameter) -> BaseDistribution:
    """What Optuna samples; choices are sampled by their position, since 1 and true are one to it."""
    if parameter.choice is not None:
        return CategoricalDistribution(tuple(range(len(parameter.choice.values))))
    if (i := parameter.int_) is not None:
        high = i.min + (i.max - i.min) // i.step * i.step
        return IntDistribution(i.min, high, log=i.scale == "Log" and i.step == 1, step=i.step)
    f = parameter.float_
    assert f is not None
    if f.step is not None:
        count = int((f.max - f.min) / f.step + 1e-9)
        return IntDistribution(0, count)
    return FloatDistribution(f.min, f.max, log=f.scale == "Log")


def _inward(parameter: Parameter, value: Any) -> Any:
    """A value as Optuna has it."""
    if parameter.choice is not None:
        return next((i for i, v in enumerate(parameter.choice.values) if same(v, value)), None)
    f = parameter.float_
    if f is not None and f.step is not None:
        return round((value - f.min) / f.step)
    return value


def _outward(parameter: Parameter, value: Any) -> Any:
    """A value of ours from one of Optuna's."""
    if parameter.choice is not None:
        return parameter.choice.values[value]
    f = parameter.float_
    if f is not None and f.step is not None:
        return stepped(f.min, f.step, int(value))
    return int(value) if parameter.int_ is not None else float(value)


class _Mirror:
    """A study that has the log's trials in the log's order, extended as the log grows."""

    def __init__(self, space: Space) -> None:
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self.study = optuna.create_study(directions=[_DIRECTIONS[d] for d in space.directions])
        finally:
            optuna.logging.set_verbosity(verbosity)
        self._searched = [p for p in space.parameters if p.fixed is None]
        self.distributions = {p.name: _distribution(p) for p in self._searched}
        self._taken: list[Asked] = []
        self._numbers: list[int] = []  # the study's number of each taken trial
        self._count = 0  # of the study's trials

    def follow(self, log: Sequence[Asked]) -> bool:
        """Take in what is new in the log; False if the log is not a continuation of what was taken."""
        if len(log) < len(self._taken):
            return False
        for number, (old, new) in enumerate(zip(self._taken, log, strict=False)):
            if old == new:
                continue
            if old.state != "running" or (old.index, old.parameters) != (new.index, new.parameters):
                return False
            self._tell(number, new)
        for asked in log[len(self._taken) :]:
            self.study.add_trial(self._frozen(asked))
            self._taken.append(asked)
            self._numbers.append(self._next_number())
        return True

    def _next_number(self) -> int:
        self._count += 1
        return self._count - 1

    def ask(self) -> optuna.Trial:
        """A trial to sample from; `forget` it afterwards."""
        self._next_number()
        return self.study.ask()

    def forget(self, trial: optuna.Trial) -> None:
        """The log says what became of a suggestion; what was only sampled must not weigh."""
        self.study.tell(trial, state=TrialState.FAIL)

    def _tell(self, place: int, asked: Asked) -> None:
        if asked.state == "complete" and asked.values is not None:
            self.study.tell(self._numbers[place], list(asked.values))
        else:
            self.study.tell(self._numbers[place], state=TrialState.FAIL)
        self._taken[place] = asked

    def _frozen(self, asked: Asked) -> optuna.trial.FrozenTrial:
        inside = {
            p.name: value
            for p in self._searched
            if p.name in asked.parameters and (value := _inward(p, asked.parameters[p.name])) is not None
        }
        complete = asked.state == "complete" and asked.values is not None
        return create_trial(
            state=_STATES[asked.state],
            values=list(asked.values or ()) if complete else None,
            params=inside,
            distributions={name: self.distributions[name] for name in inside},
        )


def ask(question: Question) -> Parameters:
    """The parameters that TPE suggests; at least one result must be in the log."""
    mirror: _Mirror | None = question.cache.get("tpe")
    if mirror is None or not mirror.follow(question.log):
        mirror = question.cache["tpe"] = _Mirror(question.space)
        mirror.follow(question.log)
    digest = hashlib.sha256(f"{question.seed}/{question.index}/tpe".encode()).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=int.from_bytes(digest[:4], "big"),
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=1,
            n_ei_candidates=int(question.settings.get("candidates", 24)),
        )
        mirror.study.sampler = sampler
        trial = mirror.ask()
        parameters = choose(question.space, lambda p: _outward(p, _sampled(trial, p, mirror.distributions[p.name])))
        mirror.forget(trial)
    return parameters


def _sampled(trial: optuna.Trial, parameter: Parameter, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(parameter.name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        step, log = distribution.step, distribution.log
        return trial.suggest_int(parameter.name, distribution.low, distribution.high, step=step, log=log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(parameter.name, distribution.low, distribution.high, log=distribution.log)
