"""Checking an object whole: every problem, each with its path and one sentence that says what to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError

from trialkeeper_operator.api import rules
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.rule import Rule, broken
from trialkeeper_operator.api.sentences import model_in, problems, shown
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
    if not isinstance(new, Mapping):
        raise InvalidObject([Problem("", f"must be a mapping, not {shown(new)}")])
    found = [*_names(new.get("metadata")), *_misplaced(model, new)]
    try:
        parsed = _parsed(model, new)
    except ValidationError as wrong:
        found += [Problem(*problem) for problem in problems(wrong, model)]
        raise InvalidObject([p for p in found if p.path != "metadata"]) from wrong
    if not found:
        whole = {"metadata": dict(new["metadata"]), "spec": parsed.spec.to_object()}
        found = [Problem(*problem) for problem in broken(declared, whole, _before(model, old))]
    if found:
        raise InvalidObject(found)
    return parsed


_TOP = ("apiVersion", "kind", "metadata", "spec", "status")


def _misplaced(model: type[M], new: Mapping[str, Any]) -> list[Problem]:
    """Fields beside spec that belong into it, or nowhere."""
    spec = model.model_fields["spec"].annotation
    known = {f.alias or n for n, f in getattr(spec, "model_fields", {}).items()}
    return [
        Problem(
            str(key), f"is not a field; did you mean spec.{key}?" if key in known else "is not a field of an object"
        )
        for key in new
        if key not in _TOP
    ]


def _names(metadata: Any) -> list[Problem]:
    if metadata is not None and not isinstance(metadata, Mapping):
        return [Problem("metadata.name", f"is missing: metadata must be a mapping, not {shown(metadata)}")]
    name = (metadata or {}).get("name")
    if isinstance(name, str) and name:
        return []
    return [Problem("metadata.name", "is missing" if name in (None, "") else f"must be text, not {shown(name)}")]


def _parsed(model: type[M], raw: Mapping[str, Any]) -> M:
    """The object without its status, nulls dropped where the API server drops them."""
    spec_model = model_in(model.model_fields["spec"].annotation)
    spec = _without_nulls(raw.get("spec"), spec_model)
    parts = {"metadata": raw.get("metadata"), "spec": spec}
    return model.from_object({name: part for name, part in parts.items() if part is not None})


def _without_nulls(value: Any, model: Any) -> Any:
    """A model's part, or a list of them, in which no declared field is null: null is an absent field."""
    if isinstance(value, list):
        return [_without_nulls(entry, model) for entry in value]
    if model is None or not isinstance(value, Mapping):
        return value
    known = _known(model)
    return {k: _without_nulls(v, known.get(k)) for k, v in value.items() if v is not None or k not in known}


@cache
def _known(model: Any) -> dict[str, Any]:
    """The fields of a model, and the model inside each, if there is one."""
    return {field.alias or name: model_in(field.annotation) for name, field in model.model_fields.items()}


def _before(model: type[M], old: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The old object with its defaults; None if it did not fit, since then anything may follow."""
    if old is None:
        return None
    try:
        return {"spec": _parsed(model, old).spec.to_object()}
    except ValidationError:
        return None
