"""Retention: which checkpoints of a trial may go, and how they go without a reader ever missing one.

To delete is to race with whoever is about to begin from the same checkpoint: an heir of this trial, or its next
attempt while this process is a zombie that does not know it. So both sides say what they mean to do before they look
at what the other one does, as in Dekker's mutual exclusion (E. W. Dijkstra, "Cooperating sequential processes",
EWD 123, 1965): a pin is put before the doomed are listed, a checkpoint is doomed before pins and attempts are. One
of the two sees the other, whatever either is held up by. The manifest goes first and its data after it, so that a
crash in between leaves files that no reader looks at; what was doomed is finished by the next pass.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trialkeeper import contract, history, manifest, saving
from trialkeeper.environment import Environment
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.store import AlreadyThere, Missing, Store
from trialkeeper.store.opening import open_at

NEWEST_KEPT = 2  # of the visible branch, always: should the newest turn out to be rotten, there is one before it
BEST = "best"  # the reason of a save that was made because it was the best so far: the newest such is kept

Place = tuple[int, int]  # (attempt, iteration)


@dataclass(frozen=True)
class Policy:
    """`checkpoint` of the experiment. `num_to_keep` None keeps all; without an attribute the newest are the best."""

    num_to_keep: int | None = None
    score_attribute: str | None = None
    score_order: Literal["max", "min"] = "max"
    held: Sequence[int] = ()  # iterations that somebody is about to begin from, and has not pinned yet


def parse(settings: Mapping[str, Any]) -> Policy:
    """The policy in a trainer's settings; the attribute is the first objective unless it is set, the
    order that of the objective of this name, or of the first.

    :raises ValueError: if something in it is of the wrong kind; the message names it.
    """
    checkpoint = settings.get("checkpoint") or {}
    objectives = settings.get("objectives") or [{}]
    number = checkpoint.get("numToKeep")
    attribute = checkpoint.get("scoreAttribute") or objectives[0].get("metric") or None
    objective = next((o for o in objectives if o.get("metric") == attribute), objectives[0])
    held = checkpoint.get("held") or []
    order = checkpoint.get("scoreOrder") or ("Max" if objective.get("direction") == "Maximize" else "Min")
    if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
        raise ValueError(f"checkpoint.numToKeep is {str(number)[:40]!r}")
    if attribute is not None and not isinstance(attribute, str):
        raise ValueError(f"checkpoint.scoreAttribute is {str(attribute)[:40]!r}")
    if order not in ("Max", "Min"):
        raise ValueError(f"checkpoint.scoreOrder is {str(order)[:40]!r}: it is Max or Min")
    if not isinstance(held, list) or not all(isinstance(i, int) for i in held):
        raise ValueError(f"checkpoint.held is {str(held)[:40]!r}")
    return Policy(number, attribute, "max" if order == "Max" else "min", tuple(held))


@dataclass(frozen=True)
class Committed:
    """What a manifest says: whose, with which metrics (flattened, as written), why, and which objects it refers to.

    One that cannot be read is not `whole`: nobody can begin from it, and nobody knows what it refers to.
    """

    attempt: int
    iteration: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    data: str = ""
    objects: frozenset[str] = frozenset()
    whole: bool = True

    @property
    def place(self) -> Place:
        return self.attempt, self.iteration


def objects(body: Mapping[str, Any]) -> frozenset[str]:
    """The keys of the objects that hold a checkpoint's bytes; some may be of an older checkpoint."""
    return frozenset(entry["key"] for entry in body["files"])


def score(metrics: Mapping[str, Any], policy: Policy, iteration: int = 0) -> float | None:
    """What a checkpoint is ranked by, more being better; None if it has no such number, or one that is not finite."""
    name = policy.score_attribute
    if name is None:
        return float(iteration)
    value = metrics.get(name, iteration if name == "training_iteration" else None)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value) if policy.score_order == "max" else -float(value)


def ranked(committed: Iterable[Committed], policy: Policy) -> list[Committed]:
    """The best first; what has no finite score comes last, and of equals the newer one comes first."""

    def rank(found: Committed) -> tuple[bool, float, int, int]:
        value = score(found.metrics, policy, found.iteration)
        return value is None, -(value or 0.0), -found.iteration, -found.attempt

    return sorted(committed, key=rank)


def kept(
    committed: Collection[Committed],
    visible: Sequence[Place],
    policy: Policy,
    *,
    newest: int,
    base: Place | None,
    pinned: Collection[Place] = (),
    doomed: Collection[Place] = (),
) -> set[Place]:
    """Which of the committed checkpoints of one prefix must stay.

    `visible` are those of the newest attempt's branch, the newest first; `base` is where attempt number `newest` began,
    if that was under this prefix. What the branch does not see (zombies committed it) stays until the newest attempt
    has two of its own, and for ever without `numToKeep`.
    """
    by_place = {found.place: found for found in committed}
    branch = [by_place[place] for place in visible if place in by_place]
    whole = [found for found in branch if found.whole]
    stay = {found.place for found in whole[:NEWEST_KEPT]}
    stay |= {place for place in (base, *pinned) if place in by_place}
    stay |= {found.place for found in committed if found.iteration in policy.held}
    stay |= {found.place for found in [f for f in whole if f.reason == BEST][:1]}
    if policy.num_to_keep is None:
        # Nobody has asked for less: also what a trainer that forgot to resume has left behind is somebody's work.
        return stay | {place for place in by_place if place not in doomed}
    if sum(found.attempt == newest for found in whole) < NEWEST_KEPT:
        stay |= by_place.keys() - set(visible)
    if len(whole) < NEWEST_KEPT:
        return stay | {found.place for found in branch if found.place not in doomed}
    ranks = ranked((found for found in whole if found.place not in doomed), policy)
    return stay | {found.place for found in ranks[: policy.num_to_keep]}


def plan(
    committed: Collection[Committed],
    visible: Sequence[Place],
    policy: Policy,
    *,
    newest: int,
    base: Place | None,
    pinned: Collection[Place] = (),
    doomed: Collection[Place] = (),
) -> list[Place]:
    """Which of the committed checkpoints may be deleted, the oldest first: those that `kept` does not name."""
    stay = kept(committed, visible, policy, newest=newest, base=base, pinned=pinned, doomed=doomed)
    return sorted({found.place for found in committed} - stay, key=lambda place: (place[1], place[0]))


@dataclass(frozen=True)
class Pruned:
    """What a pass has deleted, by manifest key; `trouble` is why it went no further, empty if it is through."""

    deleted: tuple[str, ...] = ()
    trouble: str = ""
    unscored: str = ""  # the attribute that a checkpoint lacks, to be told once


def read(store: Store, key: str) -> Committed | None:
    """What a manifest says, None if it is gone by now or its key is none.

    :raises OSError: if the store cannot be read.
    """
    place = contract.parse_manifest_key(key)
    if place is None:
        return None
    try:
        body = manifest.decode(store.get(key))
        return Committed(*place, body["metrics"], body["reason"], body["data"], objects(body))
    except Missing:
        return None
    except (CheckpointCorrupt, KeyError, TypeError, AttributeError):
        return Committed(*place, whole=False)


def read_all(store: Store, keys: Iterable[str], known: MutableMapping[str, Committed]) -> list[Committed]:
    """What manifests say. Each is read once: `known` has those that were, and is brought up to date.

    :raises OSError: if the store cannot be read.
    """
    there = list(keys)
    for key in known.keys() - set(there):
        del known[key]
    for key in there:
        if key not in known and (found := read(store, key)) is not None:
            known[key] = found
    return list(known.values())


def pinned(store: Store) -> set[Place]:
    """The checkpoints of a prefix that somebody holds on to.

    :raises OSError: if the store cannot be read.
    """
    pins = (contract.parse_pin_key(key) for key in store.list("pins/"))
    return {(pin.attempt, pin.iteration) for pin in pins if pin is not None}


def doomed(store: Store) -> set[Place]:
    """The checkpoints of a prefix that somebody has begun to delete.

    :raises OSError: if the store cannot be read.
    """
    return {place for key in store.list("doomed/") if (place := contract.parse_doomed_key(key)) is not None}


@dataclass
class Known:
    """What a process has read, to be kept from pass to pass: neither manifests nor records ever change."""

    committed: dict[str, Committed] = field(default_factory=dict)  # by manifest key
    attempts: dict[int, dict[str, Any]] = field(default_factory=dict)
    let_go: int = 0  # prefixes whose pins have been taken back
    settled: bool = False  # whether what was there before this attempt is cleared away


def prune(
    store: Store,
    env: Environment,
    policy: Policy,
    base: str | None,
    known: Known | None = None,
) -> Pruned:
    """Delete what a trial need not keep; for the process that commits for the highest attempt, after each commit.

    `base` is what this attempt's record calls its base. `known` is kept from pass to pass. Results, records and last
    words are never touched. It raises nothing over a store that is away: what is left undone is done by the next pass.
    """
    deleted: list[str] = []
    try:
        unscored = _prune(store, env, policy, base, Known() if known is None else known, deleted)
        return Pruned(tuple(deleted), unscored=unscored)
    except (Overtaken, OSError) as why:
        return Pruned(tuple(deleted), str(why))


def _prune(
    store: Store,
    env: Environment,
    policy: Policy,
    base: str | None,
    known: Known,
    deleted: list[str],
) -> str:
    if known.settled and policy.num_to_keep is None:
        return ""
    attempts = known.attempts = history.records(store, known.attempts)
    if max(attempts, default=0) > env.attempt:
        raise Overtaken("a later attempt has begun")
    listed = store.list("manifests/")
    visible = history.visible(listed, attempts, env.attempt)
    let_go(store, env, len(visible), known)
    leaving = doomed(store)
    settled = sum(attempt == env.attempt for attempt, _ in visible) >= NEWEST_KEPT
    if policy.num_to_keep is None and not leaving:
        known.settled = settled
        return ""
    committed = read_all(store, listed, known.committed)
    began = contract.parse_manifest_key(base) if base else None
    held = pinned(store)
    going = plan(committed, visible, policy, newest=env.attempt, base=began, pinned=held, doomed=leaving)
    for key in delete(store, committed, going, leaving, newest=env.attempt):
        known.committed.pop(key, None)
        deleted.append(key)
    known.settled = settled
    return _unscored((found for found in committed if found.place in set(visible)), policy)


def _unscored(visible: Iterable[Committed], policy: Policy) -> str:
    name = policy.score_attribute
    if policy.num_to_keep is None or name is None or name == "training_iteration":
        return ""
    return name if any(found.whole and name not in found.metrics for found in visible) else ""


class Overtaken(RuntimeError):
    """Raised in a pass that must not go on, since an attempt has begun that it knows nothing of."""


def delete(
    store: Store, committed: Collection[Committed], going: Iterable[Place], leaving: Collection[Place], *, newest: int
) -> Iterator[str]:
    """Delete checkpoints of one prefix, and give the manifest key of each that is gone.

    `committed` are all that there are, `leaving` those that were doomed before, `newest` the highest attempt that had
    begun when it was decided. One that was pinned meanwhile stays.

    :raises Overtaken: if another attempt has begun meanwhile.
    :raises OSError: if the store cannot be reached.
    """
    there = {found.place: found for found in committed}
    for place in going:
        with contextlib.suppress(AlreadyThere):
            if place not in leaving:
                store.put_new(contract.doomed_key(*place), b"")
        _not_overtaken(store, newest)
        if place in pinned(store):
            continue
        store.delete(contract.manifest_key(*place))
        _delete_data(store, there.pop(place), there.values(), newest)
        store.delete(contract.doomed_key(*place))
        yield contract.manifest_key(*place)
    for place in sorted(set(leaving) - {found.place for found in committed}):
        # Somebody died between manifest and data.
        _delete_data(store, Committed(*place, whole=False), there.values(), newest)
        store.delete(contract.doomed_key(*place))


def _not_overtaken(store: Store, newest: int) -> None:
    if saving.newest_attempt(store) > newest:
        raise Overtaken("a later attempt has begun")


def _delete_data(store: Store, gone: Committed, others: Iterable[Committed], newest: int) -> None:
    """Delete the objects that only a deleted checkpoint referred to."""
    referred = frozenset[str]().union(*(other.objects for other in others))
    folders = {gone.data} if gone.whole else _folders(store, gone.place)
    for folder in folders:
        _not_overtaken(store, newest)
        if any(key.startswith(f"{folder}/") for key in referred):
            for key in store.list(f"{folder}/"):
                if key not in referred:
                    store.delete(key)
        else:
            store.delete(folder)
    for key in sorted(gone.objects - referred):
        if not key.startswith(f"{gone.data}/"):
            _not_overtaken(store, newest)
            store.delete(key)


def _folders(store: Store, place: Place) -> set[str]:
    """The data folders of a checkpoint whose manifest does not say which is its own."""
    return {"/".join(key.split("/", 2)[:2]) for key in store.list(contract.data_key(*place, ""))}


# Pins: what an attempt has begun from must stay until it has something of its own.


def pin(store: Store, env: Environment, place: Place) -> str:
    """Pin a checkpoint in its prefix for this attempt; the pin's key. It may turn out to be doomed by then.

    :raises OSError: if the store cannot be written.
    """
    key = contract.pin_key(env.prefix, env.attempt, *place)
    said = {"holder": env.prefix, "attempt": env.attempt, "manifest": contract.manifest_key(*place)}
    with contextlib.suppress(AlreadyThere):
        store.put_new(key, json.dumps(said).encode())
    return key


def let_go(store: Store, env: Environment, own: int, known: Known) -> None:
    """Take back the pins of this attempt and those before it that nothing hangs on any more.

    Under the trial's own prefix the record of the newest attempt keeps its base. Elsewhere a pin is needed until there
    are two checkpoints of the trial's `own`.

    :raises OSError: if the store cannot be reached.
    """
    places = [store]
    if own >= NEWEST_KEPT:
        donors = (contract.parse_inherited_key(key) for key in (*env.base, env.fork))
        places += [open_at(env, donor[0]) for donor in donors if donor is not None]
    for place in places[known.let_go :]:
        for key in place.list(contract.pins_of(env.prefix)):
            found = contract.parse_pin_key(key)
            if found is not None and found.holder_attempt <= env.attempt:
                place.delete(key)
        known.let_go += 1
