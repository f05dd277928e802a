"""Checking an object whole: every problem, each with its path and one sentence that says what to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from trialkeeper_operator.api import rules
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.rules import Rule
from trialkeeper_operator.api.sentences import problems, shown
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
        self.problems = sorted(set(problems))
        super().__init__("; ".join(str(problem) for problem in self.problems))


M = TypeVar("M", Experiment, Trial)


def check_experiment(new: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> Experiment:
    """The Experiment, if it is valid, and may follow `old`.

    :raises InvalidObject: with every problem found.
    """
    return _check(Experiment, rules.EXPERIMENT, new, old)


def check_trial(new: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> Trial:
    """The Trial, if it is valid, and may follow `old`.

    :raises InvalidObject: with every problem found.
    """
    return _check(Trial, rules.TRIAL, new, old)


def _check(model: type[M], declared: tuple[Rule, ...], new: Mapping[str, Any], old: Mapping[str, Any] | None) -> M:
    name = (new.get("metadata") or {}).get("name") if isinstance(new.get("metadata"), Mapping) else None
    if not isinstance(name, str) or not name:
        said = "is missing" if name is None else f"must be text, not {shown(name)}"
        raise InvalidObject([Problem("metadata.name", said)])
    try:
        parsed = model.from_object({k: v for k, v in new.items() if k != "status"})
    except ValidationError as wrong:
        raise InvalidObject([Problem(*found) for found in problems(wrong, model)]) from wrong
    whole = {"metadata": dict(new["metadata"]), "spec": parsed.spec.to_object()}
    found = [Problem(path, message) for path, message in rules.broken(declared, whole, old)]
    if found:
        raise InvalidObject(found)
    return parsed
