"""Suggesting: the parameters of one trial as a pure function of space, log, seed and index.

The log is every earlier trial as it is known now. Nothing is remembered between two calls but caches, which
may be dropped at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from trialkeeper_operator.search.grid import point
from trialkeeper_operator.search.question import Question, SearchExhausted, Suggestion
from trialkeeper_operator.search.space import Parameters, Space, active, at, choose, typed


def uniform(seed: int, index: int, name: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, on every machine and for ever."""
    digest = hashlib.sha256(f"{seed}/{index}/{name}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def random(question: Question) -> Suggestion:
    """Each parameter independently, uniform on its scale."""
    return Suggestion(choose(question.space, lambda p: at(p, uniform(question.seed, question.index, p.name))))


def grid(question: Question) -> Suggestion:
    """Every combination once, the last parameter fastest."""
    found = point(question.space, question.index)
    if found is None:
        raise SearchExhausted(f"the grid has no point {question.index}")
    return Suggestion(found)


def qmc(question: Question) -> Suggestion:
    """Point `index` of a scrambled Sobol sequence: more even than Random, and as independent of the log.

    Owen, "Scrambling Sobol' and Niederreiter-Xing points" (J. Complexity 14, 1998), as scipy has it.
    """
    from trialkeeper_operator.search.sobol import coordinates

    names = [p.name for p in question.space.parameters if p.fixed is None]
    if not names:
        return Suggestion(choose(question.space, lambda _: None))
    u = dict(zip(names, coordinates(len(names), question.seed, question.index), strict=True))
    return Suggestion(choose(question.space, lambda p: at(p, u[p.name])))


def tpe(question: Question) -> Suggestion:
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011) by Optuna; Random for the first trials."""
    startup = int(question.settings.get("startupTrials", SETTINGS["TPE"]["startupTrials"]))
    told = sum(a.told for a in question.log)
    if question.index < startup or told == 0:
        return Suggestion(random(question).parameters, "startup: random")
    from trialkeeper_operator.search.tpe import ask

    return Suggestion(ask(question), f"TPE over {told} results")


ALGORITHMS: dict[str, Callable[[Question], Suggestion]] = {"Grid": grid, "QMC": qmc, "Random": random, "TPE": tpe}

# What search.settings may hold, with defaults; every one of them is a whole number from 1 to SETTING_LIMIT.
SETTINGS: dict[str, dict[str, int]] = {
    "Grid": {},
    "QMC": {},
    "Random": {},
    "TPE": {"startupTrials": 10, "candidates": 24},
}
SETTING_LIMIT = 10_000  # more candidates would cost the operator seconds and memory an ask


def suggest(algorithm: str, question: Question) -> Suggestion:
    """The parameters of trial `question.index`.

    :raises SearchExhausted: if the search knows no more points.
    :raises KeyError: if there is no such algorithm.
    """
    return ALGORITHMS[algorithm](question)


def with_given(space: Space, given: Mapping[str, Any], suggestion: Suggestion) -> Suggestion:
    """A suggestion with some values given by a person; what these leave open comes from the suggestion.

    A parameter that only the given values make active, and that nobody has named, takes its middle.
    """
    chosen: Parameters = {}
    for parameter in space.parameters:
        if not active(parameter, chosen):
            continue
        if parameter.name in given:
            chosen[parameter.name] = typed(parameter, given[parameter.name])
        elif parameter.fixed is not None:
            chosen[parameter.name] = parameter.fixed
        else:
            chosen[parameter.name] = suggestion.parameters.get(parameter.name, at(parameter, 0.5))
    return Suggestion(chosen, "enqueued")
