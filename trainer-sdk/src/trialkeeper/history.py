"""What a new attempt may see: the reader's fence, and what it will do again.

Each attempt's record names the checkpoint it began from. The visible branch of an attempt is its own
manifests, then those of the attempt that its base belongs to, up to that base, and so on. Whatever an older
attempt commits after its successor has begun is outside of it by rule, on any store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from trialkeeper import contract
from trialkeeper.store import Missing, Store


def records(store: Store, known: Mapping[int, dict[str, Any]] | None = None) -> dict[int, dict[str, Any]]:
    """Every attempt's record by number; one that cannot be read is empty, and still fences.

    Those that are `known` are not read again: a record never changes.
    """
    found: dict[int, dict[str, Any]] = {}
    for key in store.list("attempts/"):
        number = contract.parse_attempt_key(key)
        if number is None:
            continue
        if known is not None and known.get(number):
            found[number] = known[number]
            continue
        try:
            value = json.loads(store.get(key))
        except (ValueError, RecursionError, Missing):
            value = {}
        found[number] = value if isinstance(value, dict) else {}
    return found


def _base(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """(attempt, iteration) of a base under the trial's own prefix."""
    key = record.get("base")
    return contract.parse_manifest_key(key) if isinstance(key, str) else None


def _inherited(record: Mapping[str, Any]) -> tuple[str, int, int] | None:
    """(donor's prefix, attempt, iteration) of a base under another prefix."""
    key = record.get("base")
    return contract.parse_inherited_key(key) if isinstance(key, str) else None


class Branch(NamedTuple):
    """What an attempt goes back to: its own attempts, each up to an iteration (None: all of it), and their root.

    `root` is the inherited checkpoint that the oldest of them began from, None if that was the start; unless
    `known`, nobody has begun yet, or its record cannot be read.
    """

    links: list[tuple[int, int | None]]
    root: tuple[str, int, int] | None
    known: bool


def branch(attempts: Mapping[int, Mapping[str, Any]], attempt: int) -> Branch:
    """The branch of attempt number `attempt`, the newest link first."""
    links: list[tuple[int, int | None]] = []
    at = max((n for n in attempts if n <= attempt), default=0)
    bound: int | None = None
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        links.append((at, bound))
        record = attempts.get(at, {})
        if at in attempts and not record:
            # Its record cannot be read, so nobody knows its base: the attempt before it is the best guess.
            at, bound = max((n for n in attempts if n < at), default=0), None
            continue
        base = _base(record)
        if base is None:
            return Branch(links, _inherited(record), bool(record))
        at, bound = base
    return Branch(links, None, False)


def visible(manifests: Iterable[str], attempts: Mapping[int, Mapping[str, Any]], attempt: int) -> list[tuple[int, int]]:
    """(attempt, iteration) of the checkpoints that attempt number `attempt` may begin from, newest first.

    Those alone that are under the trial's own prefix: what comes before them is the branch's root.
    """
    committed = {found for key in manifests if (found := contract.parse_manifest_key(key)) is not None}
    in_order: list[tuple[int, int]] = []
    for at, bound in branch(attempts, attempt).links:
        own = [m for m in committed if m[0] == at and (bound is None or m[1] <= bound)]
        in_order += sorted(own, reverse=True)
    return in_order


def last_iteration(store: Store, attempt: int) -> int:
    """The highest iteration in an attempt's raw results, 0 if it never reported. A torn last line is passed over."""
    for line in store.lines(contract.results_key(attempt)):
        try:
            return int(json.loads(line)["training_iteration"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return 0


def lost(store: Store, attempts: Mapping[int, Mapping[str, Any]], attempt: int, base_iteration: int) -> tuple[int, int]:
    """(iterations of the directly preceding attempt that are done again, the sum of all such statements before)."""
    earlier = sorted((n for n in attempts if n < attempt), reverse=True)
    reached = 0
    for number in earlier:
        record = attempts[number]
        began, inherited = _base(record), _inherited(record)
        start = began[1] if began else inherited[2] if inherited else 0
        reached = max(reached, last_iteration(store, number), start)
        if record:
            said = sum(v for f in ("lostIterations", "lostBefore") if isinstance(v := record.get(f), int))
            return max(0, reached - base_iteration), said
    return max(0, reached - base_iteration), 0
