"""A trial's story: the attempts of its own branch, and on into the trials that it inherited from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from trialkeeper import history
from trialkeeper.results.places import Place

NEWEST = 10**6  # an attempt that is later than all


class Link(NamedTuple):
    """An attempt under a prefix, up to an iteration; None: all of it."""

    prefix: str
    attempt: int
    bound: int | None


def numbers(place: Place, prefix: str) -> list[int]:
    """The attempts that have left results."""
    steps = (key.removeprefix("results/")[1:7] for key in place.store(prefix).list("results/a"))
    return sorted({int(step) for step in steps if step.isdigit()})


def attempts(place: Place, prefix: str) -> dict[int, dict[str, Any]]:
    """Every attempt's record by number; empty for one that cannot be read, or that had no time to put one."""
    found = history.records(place.store(prefix))
    newest = max(found, default=0)
    return found | {number: {} for number in numbers(place, prefix) if number > newest}


def beside(prefix: str, other: str) -> str | None:
    """Another prefix of the store that a prefix is in, None if it is not known where that store begins."""
    steps, own = prefix.split("/"), other.split("/")
    return None if len(steps) < len(own) else "/".join([*steps[: -len(own)], *own])


def links(
    place: Place, prefix: str, known: Mapping[int, Mapping[str, Any]], bases: Sequence[str] = ()
) -> Iterator[Link]:
    """A trial's story, the newest first.

    :param known: the records of the trial's own attempts.
    :param bases: prefixes in the same store where a trial that has not begun yet will look, the nearest first.
    """
    seen: set[tuple[str, int]] = set()
    if not known:
        for base in bases:
            donor = beside(prefix, base)
            if donor is not None and (records := attempts(place, donor)):
                prefix, known = donor, records
                break
    at, bound = NEWEST, None
    while known:
        branch = history.branch(known, at)
        for number, limit in branch.links:
            if (prefix, number) in seen:
                return
            seen.add((prefix, number))
            yield Link(prefix, number, bound if limit is None else limit)
            bound = None
        if branch.root is None:
            return
        donor, at, bound = branch.root
        there = beside(prefix, donor)
        if there is None:
            return
        prefix, known = there, attempts(place, there)
