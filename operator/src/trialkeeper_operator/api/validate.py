"""Checking an object whole: every problem, each with its path and one sentence that says what to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial


@dataclass(frozen=True, order=True)
class Problem:
    """What is wrong at one place; the sentence says what to write instead."""

    path: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}: {self.sentence}" if self.path else self.sentence


class InvalidObject(ValueError):
    """Raised when an object breaks its rules; `problems` has all of them, by path."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


def check_experiment(new: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> Experiment:
    """The Experiment, if it is valid, and may follow `old`.

    :raises InvalidObject: with every problem found.
    """
    try:
        return Experiment.from_object(new)
    except ValidationError as wrong:
        raise InvalidObject([Problem(".".join(map(str, e["loc"])), e["msg"]) for e in wrong.errors()]) from wrong


def check_trial(new: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> Trial:
    """The Trial, if it is valid, and may follow `old`.

    :raises InvalidObject: with every problem found.
    """
    try:
        return Trial.from_object(new)
    except ValidationError as wrong:
        raise InvalidObject([Problem(".".join(map(str, e["loc"])), e["msg"]) for e in wrong.errors()]) from wrong
