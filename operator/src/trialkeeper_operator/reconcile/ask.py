"""Asking the search: the log of asks and tells as the Trials hold it, and the body of the next Trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial, usual_seed
from trialkeeper_operator.decide import fork, ledger
from trialkeeper_operator.decide.fork import Fork
from trialkeeper_operator.decide.objective import values
from trialkeeper_operator.search.grid import size as grid_size
from trialkeeper_operator.search.question import Asked, Question, SearchExhausted, Suggestion
from trialkeeper_operator.search.space import Space, misfit
from trialkeeper_operator.search.suggest import suggest, with_given


def body(experiment: Experiment, index: int, parameters: dict[str, Any], note: str, name: str | None) -> dict[str, Any]:
    """The Trial of one index, ready to be created; its name makes creating it twice creating it once."""
    spec: dict[str, Any] = {
        "experiment": experiment.name,
        "experimentUid": experiment.uid,
        "index": index,
        "parameters": parameters,
        "seed": usual_seed(experiment.spec.search.seed, index),
    }
    spec |= {"name": name} if name else {}
    spec |= {"note": note} if note else {}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.TRIAL,
        "metadata": {
            "name": names.trial_name(experiment.name, index),
            "namespace": experiment.namespace,
            "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_EXPERIMENT: experiment.name},
            "ownerReferences": [names.owner(names.EXPERIMENT, experiment.name, experiment.uid)],
        },
        "spec": spec,
    }


def space_of(experiment: Experiment) -> Space:
    """The experiment's parameters and directions."""
    spec = experiment.spec
    return Space(tuple(spec.parameters), tuple(o.direction for o in spec.objectives))


def limit(experiment: Experiment, trials: Sequence[Trial] = ()) -> int:
    """How many trials an experiment can have: maxTrials; without it as many as are enqueued, but one at least.

    On a grid it is at most its points and what is enqueued beside them, and all of these by default.
    """
    spec, entries = experiment.spec, len(experiment.spec.enqueue or ())
    points = grid_size(space_of(experiment)) if spec.search.algorithm == "Grid" else None
    if points is not None:
        beside = max(entries, fork.queued(experiment, trials)) - experiment.status.passed_over
        return min(spec.max_trials or names.TRIALS_LIMIT, points + beside)
    made = max([experiment.status.trials, *(trial.spec.index + 1 for trial in trials)])
    return spec.max_trials or max(1, made + max(0, entries - fork.queued(experiment, trials)))


def log_of(experiment: Experiment, trials: Sequence[Trial]) -> list[Asked]:
    """The trials as the search sees them, by index."""
    return [_asked(experiment, trial) for trial in trials]


def _asked(experiment: Experiment, trial: Trial) -> Asked:
    status, told = trial.status, None
    state: Literal["running", "complete", "failed"] = "running"
    if status.phase in ledger.FINAL:
        told = values(experiment.spec.objectives, status) if status.phase == "Succeeded" else None
        state = "failed" if told is None else "complete"
    return Asked(trial.spec.index, trial.spec.parameters, state, None if told is None else tuple(told))


def ask(
    experiment: Experiment,
    trials: Sequence[Trial],
    index: int,
    cache: dict[str, Any],
    base: Fork | None = None,
) -> dict[str, Any]:
    """The body of the Trial of `index`: the next entry of `enqueue`, begun from `base`, or else the search's answer."""
    turn = fork.following(experiment, trials)
    suggestion = _suggested(experiment, trials, index, cache, optional=turn is not None)
    if turn is None:
        return body(experiment, index, suggestion.parameters, suggestion.note, None)
    (position, entry), space = turn, space_of(experiment)
    given: dict[str, Any] = dict(entry.parameters)
    if base is not None:
        known = {p.name: p for p in space.parameters}
        fitting = {n: v for n, v in base.parameters.items() if n in known and not misfit(known[n], v)}
        given = fitting | given
    chosen = with_given(space, given, suggestion)
    made = body(experiment, index, chosen.parameters, base.note if base else chosen.note, entry.name)
    kept = {"enqueued": position} | ({"fork": base.key} if base else {})
    return {**made, "spec": {**made["spec"], **kept}}


def _suggested(
    experiment: Experiment, trials: Sequence[Trial], index: int, cache: dict[str, Any], *, optional: bool
) -> Suggestion:
    """What the search says; on a grid that has no more points nothing, if it is only to fill up what others gave."""
    spec = experiment.spec
    log = [a for a in log_of(experiment, trials) if a.index < index]
    # What was enqueued takes no point of a grid away.
    beside = fork.queued(experiment, trials) - experiment.status.passed_over if spec.search.algorithm == "Grid" else 0
    question = Question(space_of(experiment), log, spec.search.seed, index - beside, spec.search.settings, cache)
    try:
        return suggest(spec.search.algorithm, question)
    except SearchExhausted:
        if optional:
            return Suggestion({})
        raise
