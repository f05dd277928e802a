"""What only the search can say of an Experiment: whether it knows the algorithm, and whether points fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.validate import InvalidObject, Problem, check_experiment
from trialkeeper_operator.search.space import active, misfit
from trialkeeper_operator.search.suggest import ALGORITHMS, SETTING_LIMIT, SETTINGS


def checked(new: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> Experiment:
    """The Experiment, if it keeps every rule, may follow `old`, and the search can do what it asks.

    :raises InvalidObject: with every problem found.
    """
    experiment = check_experiment(new, old)
    if found := problems(experiment):
        raise InvalidObject(found)
    return experiment


def problems(experiment: Experiment) -> list[Problem]:
    """Every problem; empty if the search can do what is asked."""
    search = experiment.spec.search
    if search.algorithm not in ALGORITHMS:
        known = ", ".join(sorted(ALGORITHMS))
        return [Problem("spec.search.algorithm", f"{search.algorithm} is not known; there are: {known}")]
    return [*_settings(experiment), *_enqueued(experiment)]


def _settings(experiment: Experiment) -> list[Problem]:
    search, found = experiment.spec.search, []
    known = SETTINGS[search.algorithm]
    for name, value in search.settings.items():
        path = f"spec.search.settings.{name}"
        if name not in known:
            there = f"{search.algorithm} has {', '.join(known)}" if known else f"{search.algorithm} has none"
            found.append(Problem(path, f"is not a setting; {there}"))
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            found.append(Problem(path, f"must be a whole number of at least 1, not {value!r}"))
        elif value > SETTING_LIMIT:
            found.append(Problem(path, f"must be at most {SETTING_LIMIT}, not {value}"))
    return found


def _enqueued(experiment: Experiment) -> list[Problem]:
    parameters = {p.name: p for p in experiment.spec.parameters}
    fixed = {name: p.fixed for name, p in parameters.items() if p.fixed is not None}
    found = []
    for number, entry in enumerate(experiment.spec.enqueue or ()):
        given = fixed | entry.parameters
        for name, value in entry.parameters.items():
            path = f"spec.enqueue[{number}].parameters.{name}"
            if name not in parameters:
                found.append(Problem(path, f"is not a parameter; there are: {', '.join(parameters)}"))
            elif clause := misfit(parameters[name], value):
                found.append(Problem(path, f"{clause}, not {value!r}"))
            elif entry.base is None and (when := parameters[name].when) and not active(parameters[name], given):
                wanted = ", ".join(map(repr, when.in_))
                found.append(Problem(path, f"exists only if {when.parameter} is one of {wanted}: give that value too"))
    return found
