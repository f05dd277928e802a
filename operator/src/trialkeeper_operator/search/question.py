"""What a search is asked, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from trialkeeper_operator.search.space import Parameters, Space


@dataclass(frozen=True)
class Asked:
    """One trial that was asked for; `values` are its objectives', in their order, once it is complete.

    They are as reported: a maximised one is not negated. A trial without them, or with one that is not finite,
    is known to have been tried and weighs nothing.
    """

    index: int
    parameters: Mapping[str, Any]
    state: Literal["running", "complete", "failed"]
    values: tuple[float, ...] | None = None

    @property
    def told(self) -> bool:
        """Whether there is a result to learn from."""
        return self.state == "complete" and bool(self.values) and all(map(math.isfinite, self.values or ()))


class Suggestion(NamedTuple):
    """Parameters to try, and a note by the search for whoever reads the Trial."""

    parameters: Parameters
    note: str = ""


class SearchExhausted(LookupError):
    """Raised when there are no more points to try."""


@dataclass(frozen=True)
class Question:
    """What is asked: `log` has the trials before `index`, by index; `cache` may be used, and filled, or be empty."""

    space: Space
    log: Sequence[Asked]
    seed: int
    index: int
    settings: Mapping[str, Any]
    cache: dict[str, Any]
