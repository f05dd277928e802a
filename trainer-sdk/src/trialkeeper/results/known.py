"""What somebody knows of an experiment beside its store: a run's journal, or a cluster's API server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trialkeeper.results.places import Place

FINAL = frozenset({"Succeeded", "Failed", "Stopped"})


class NotThere(LookupError):
    """Raised when there are no results where one looks for them; the message says what to do."""


class BadPlace(ValueError):
    """Raised when it cannot be understood where to look."""


@dataclass(frozen=True)
class Objective:
    """A metric to be optimised. `value`: its last one counts, or its best one."""

    metric: str
    direction: str = "Minimize"
    value: str = "Last"

    @classmethod
    def of(cls, given: object) -> Objective | None:
        """An objective as a record or a spec has it, None for whatever is none."""
        if not isinstance(given, Mapping) or not isinstance(given.get("metric"), str):
            return None
        said = {"direction": given.get("direction"), "value": given.get("value")}
        return cls(given["metric"], **{name: word for name, word in said.items() if isinstance(word, str)})


@dataclass(frozen=True)
class KnownTrial:
    """A trial as the operator has it. `bases`: prefixes it goes on from, while it has nothing of its own."""

    name: str
    index: int
    prefix: str
    parameters: Mapping[str, Any]
    state: str
    bases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """An experiment as the operator has it."""

    experiment: str
    objectives: tuple[Objective, ...]
    trials: tuple[KnownTrial, ...]
    finished: bool


@dataclass(frozen=True)
class Source:
    """A place, the prefixes of the trials in it that are meant, and whoever knows more of them, if anybody."""

    place: Place
    prefixes: Callable[[], list[str]]
    know: Callable[[], Known | None] = field(default=lambda: None)
    pause: float = 1.0  # seconds between two looks of somebody who follows
