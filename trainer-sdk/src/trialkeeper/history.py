"""What a new attempt may see: the reader's fence, and what it will do again.

Each attempt's record names the checkpoint it began from. The visible branch of an attempt is its own
manifests, then those of the attempt that its base belongs to, up to that base, and so on. Whatever an older
attempt commits after its successor has begun is outside of it by rule, on any store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from trialkeeper import contract
from trialkeeper.store import Missing, Store


def records(store: Store) -> dict[int, dict[str, Any]]:
    """Every attempt's record by number; one that cannot be read is empty, and still fences."""
    found: dict[int, dict[str, Any]] = {}
    for key in store.list("attempts/"):
        number = contract.parse_attempt_key(key)
        if number is None:
            continue
        try:
            value = json.loads(store.get(key))
        except (ValueError, Missing):
            value = {}
        found[number] = value if isinstance(value, dict) else {}
    return found


def _base(record: Mapping[str, Any]) -> tuple[int, int] | None:
    key = record.get("base")
    return contract.parse_manifest_key(key) if isinstance(key, str) else None


def visible(manifests: Iterable[str], attempts: Mapping[int, Mapping[str, Any]], attempt: int) -> list[tuple[int, int]]:
    """(attempt, iteration) of the checkpoints that attempt number `attempt` may begin from, newest first."""
    committed = {found for key in manifests if (found := contract.parse_manifest_key(key)) is not None}
    branch: list[tuple[int, int]] = []
    at = max((n for n in attempts if n <= attempt), default=0)
    bound: int | None = None
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        own = [m for m in committed if m[0] == at and (bound is None or m[1] <= bound)]
        branch += sorted(own, reverse=True)
        if at in attempts and not attempts[at]:
            # Its record cannot be read, so nobody knows its base: the attempt before it is the best guess.
            at, bound = max((n for n in attempts if n < at), default=0), None
            continue
        base = _base(attempts.get(at, {}))
        at, bound = base if base is not None else (0, None)
    return branch


def last_iteration(store: Store, attempt: int) -> int:
    """The highest iteration in an attempt's raw results, 0 if it never reported. A torn last line is passed over."""
    for line in store.lines(contract.results_key(attempt)):
        try:
            return int(json.loads(line)["training_iteration"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def lost(store: Store, attempts: Mapping[int, Mapping[str, Any]], attempt: int, base_iteration: int) -> tuple[int, int]:
    """(iterations of the directly preceding attempt that are done again, the sum of all such statements before)."""
    earlier = sorted((n for n in attempts if n < attempt), reverse=True)
    reached = 0
    for number in earlier:
        record = attempts[number]
        began = _base(record)
        reached = max(reached, last_iteration(store, number), began[1] if began else 0)
        if record:
            said = sum(v for f in ("lostIterations", "lostBefore") if isinstance(v := record.get(f), int))
            return max(0, reached - base_iteration), said
    return max(0, reached - base_iteration), 0
