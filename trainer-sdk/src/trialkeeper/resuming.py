"""Where an attempt begins: the newest checkpoint that is whole, and the claim that fences everybody older.

The claim is the fence: from the moment it is in the store, what an earlier attempt commits is outside of the
visible branch. It is put when the base has become definite, and not before. A trial that goes on where another
one ended begins from that one's prefix, and keeps everything of its own under its own.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trialkeeper import contract, history, manifest, retention, session
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import CheckpointRef, Resumed
from trialkeeper.environment import Environment
from trialkeeper.errors import BaseMissing, CheckpointCorrupt
from trialkeeper.ranks import shards
from trialkeeper.store import AlreadyThere, Denied, Missing, Store, Unreachable
from trialkeeper.store.opening import open_at

NEWEST = 10**6  # an attempt that is later than all
PATIENCE = 120.0  # seconds for a store to come back before a trainer that asked for its checkpoint fails
LOOKS = 3  # at what there is, if something goes that was just there: a checkpoint is deleted when newer ones have come
LISTED = 20  # iterations that a sentence names
PAUSE = 5.0  # seconds between two such questions


Vouched = Callable[[str, frozenset[int]], bool]


def _trusting(name: str, ranks: frozenset[int]) -> bool:
    return True


class Superseded(RuntimeError):
    """Raised when a later attempt, or another pod of this one, has the trial already."""


@dataclass(frozen=True)
class Begun:
    """Where an attempt begins, and the record that claims it."""

    base: Checkpoint | None
    reference: CheckpointRef | None
    resumed: Resumed
    record: Mapping[str, Any]


def load(store: Store, key: str, env: Environment | None = None) -> Checkpoint:
    """A committed checkpoint, every file of it verified; of several ranks', what a rank needs of it, if one asks.

    :raises CheckpointCorrupt: if a file is not what was committed.
    :raises Missing: if the manifest or the files are gone.
    :raises WorldSizeChanged: if it is of another number of ranks, and not for any number.
    """
    body = manifest.decode(store.get(key))
    if contract.parse_manifest_key(key) != (body["attempt"], body["iteration"]):
        raise CheckpointCorrupt("the manifest is another checkpoint's")
    found = Checkpoint(
        store.fetch(body["data"], body["files"]) if env is None else _fetched(store, body, env),
        kind=body["kind"],
        metrics=body["metrics"],
        iteration=body["iteration"],
        step=body["step"],
        attempt=body["attempt"],
        resharding=body.get("resharding", False),
    )
    found.manifest = body
    return found


def _fetched(store: Store, body: Mapping[str, Any], env: Environment) -> Path:
    shards.check_world(body, env)
    files = shards.files_for(body, env)
    return shards.folder_for(body, store.fetch(body["data"], files) if files else None, env)


class Candidate(NamedTuple):
    """A checkpoint that an attempt may begin from. `name` is what its record calls it."""

    store: Store
    key: str
    name: str


def candidates(store: Store, env: Environment) -> Iterator[Candidate]:
    """What an attempt may begin from, newest first: its own branch, then what that branch was begun from.

    :raises OSError: if a store cannot be read.
    """
    attempts = history.records(store)
    for found in history.visible(store.list("manifests/"), attempts, env.attempt):
        key = contract.manifest_key(*found)
        yield Candidate(store, key, key)
    branch = history.branch(attempts, env.attempt)
    if branch.known and branch.root is None:
        return  # the trainer has started over, and that start is the trial's
    fork = contract.parse_inherited_key(env.fork)
    for donor, attempt, iteration in _donors(env, branch.root):
        if fork is not None and donor == fork[0]:
            continue
        place = open_at(env, donor)
        there = _seen(place)
        said = (attempt, iteration)
        if branch.root is not None and donor == branch.root[0]:
            there = [said, *(other for other in there if other[1] < iteration)]
        elif iteration and said not in there:
            there.append(said)
        for found in there:
            yield Candidate(place, contract.manifest_key(*found), contract.inherited_key(donor, *found))
    if fork is not None:
        # This one and no other: what is older or newer is not what somebody has asked for.
        for donor, attempt, iteration in [fork] if fork[1] else _of_iteration(env, fork[0], fork[2]):
            key = contract.manifest_key(attempt, iteration)
            yield Candidate(open_at(env, donor), key, contract.inherited_key(donor, attempt, iteration))


def _seen(place: Store) -> list[tuple[int, int]]:
    """Another trial's checkpoints as its next attempt would see them, newest first."""
    return history.visible(place.list("manifests/"), history.records(place), NEWEST)


def _of_iteration(env: Environment, donor: str, iteration: int) -> list[tuple[str, int, int]]:
    """Where another trial's checkpoint of an iteration is: under its prefix, or under that of the one it began from."""
    known: set[str] = set()
    while donor not in known:
        known.add(donor)
        place = open_at(env, donor)
        if found := [(donor, *seen) for seen in _seen(place) if seen[1] == iteration]:
            return found
        root = history.branch(history.records(place), NEWEST).root
        if root is None or root[2] < iteration:
            break
        if root[2] == iteration:
            return [root]
        donor = root[0]
    return []


def _no_base(env: Environment) -> BaseMissing:
    donor, _, iteration = contract.parse_inherited_key(env.fork) or ("", 0, 0)
    there = sorted({found[1] for found in _seen(open_at(env, donor))})
    listed = ", ".join(map(str, there[-LISTED:])) if there else "none"
    return BaseMissing(
        f"the checkpoint that this trial is forked at, iteration {iteration} under {donor}, is not in the store, or "
        f"not whole: fork at one of those that are there ({listed})"
    )


def _donors(env: Environment, root: tuple[str, int, int] | None) -> list[tuple[str, int, int]]:
    """Where a branch may have begun, the nearest first: as an earlier attempt has found it, else as we were told."""
    told = [found for key in env.base if (found := contract.parse_inherited_key(key)) is not None]
    if root is None:
        return told
    places = [donor for donor, _, _ in told]
    further = told[places.index(root[0]) + 1 :] if root[0] in places else []
    return [root, *further]


def _newest(
    store: Store, env: Environment, *, hold: bool, vouched: Vouched = _trusting
) -> tuple[Checkpoint, str] | None:
    """The newest whole checkpoint that an attempt may see, and its name; what is broken is passed over and told.

    With `hold` it is pinned, for the time until this attempt has claimed it and has something of its own. `vouched`:
    whether some ranks in other pods have their parts of it.

    :raises OSError: if a store cannot be reached.
    :raises WorldSizeChanged: as `load`.
    """
    broken: set[str] = set()
    pins: dict[str, tuple[Store, str]] = {}
    try:
        for looks_left in reversed(range(LOOKS)):
            found = _looked(store, env, broken, pins if hold else None, vouched, last=not looks_left)
            if found is not None:
                pins.pop(found[1], None)
                return found
        return None
    finally:
        for place, key in pins.values():
            with contextlib.suppress(OSError):  # the sweep takes away what is left of it
                place.delete(key)


def _looked(
    store: Store,
    env: Environment,
    broken: set[str],
    pins: dict[str, tuple[Store, str]] | None,
    vouched: Vouched,
    *,
    last: bool,
) -> tuple[Checkpoint, str] | None:
    """One look; None if nothing was found, or if something went while it was looked at: unless it is the `last`."""
    for place, key, name in candidates(store, env):
        if name in broken:
            continue
        try:
            if pins is not None and not _held(place, env, key, name, pins) and not last:
                return None
            found = load(place, key, env)
            elsewhere = shards.elsewhere(found.manifest, env)
            if not elsewhere or vouched(name, elsewhere):
                return found, name
            raise CheckpointCorrupt("another pod has not its part of it whole")
        except (Unreachable, shards.Unvouched):
            raise  # whether it is whole nobody knows: to pass it over might be to start over
        except Missing as gone:
            if not last:
                return None
            session.warn(f"checkpoint {name} is passed over, an older one is tried: {gone}")
        except (CheckpointCorrupt, OSError, KeyError, TypeError) as why:
            broken.add(name)
            session.warn(f"checkpoint {name} is passed over, an older one is tried: {why}")
    return None


def _held(place: Store, env: Environment, key: str, name: str, pins: dict[str, tuple[Store, str]]) -> bool:
    """Pin a checkpoint; False if somebody had begun to delete it before, so that there ought to be a newer one."""
    found = contract.parse_manifest_key(key)
    assert found is not None  # a candidate's key
    try:
        pins[name] = place, retention.pin(place, env, found)
    except OSError as error:
        session.warn(f"checkpoint {name} could not be pinned, and may be deleted before it is read: {error}")
        return True
    return found not in retention.doomed(place)


def newest(store: Store, env: Environment) -> tuple[Checkpoint, str] | None:
    """The newest whole checkpoint that an attempt may see, and its name.

    :raises OSError: if a store cannot be reached.
    :raises WorldSizeChanged: as `load`.
    """
    return _newest(store, env, hold=False)


def named(store: Store, env: Environment, name: str) -> Checkpoint:
    """The checkpoint that an attempt's record calls by a name; errors are those of `load`, and OSError."""
    inherited = contract.parse_inherited_key(name)
    if inherited is None:
        return load(store, name, env)
    donor, attempt, iteration = inherited
    return load(open_at(env, donor), contract.manifest_key(attempt, iteration), env)


def begin(store: Store, env: Environment, *, asked: bool, vouched: Vouched = _trusting) -> Begun:
    """Where an attempt begins: at its newest checkpoint if the trainer `asked` for it, else at the start.


    :raises Superseded: if a later attempt has begun.
    :raises BaseMissing: if it is a fork, and what it is forked at is not there.
    :raises OSError: if the store cannot be read.
    """
    base = _newest(store, env, hold=True, vouched=vouched) if asked else None
    attempts = history.records(store)
    if asked and base is None and env.fork and not _started_over(attempts, env.attempt):
        raise _no_base(env)
    if not asked and next(candidates(store, env), None) is not None:
        session.warn(
            "get_checkpoint() was not called before the first report(), although there is a checkpoint: "
            "this attempt starts over"
        )
    if any(number > env.attempt for number in attempts):
        raise Superseded("a later attempt of this trial has begun")
    lost, before = _lost(store, env, attempts, base[0].iteration if base else 0)
    return _begun(env, base, lost, before)


def _started_over(attempts: Mapping[int, Mapping[str, Any]], attempt: int) -> bool:
    branch = history.branch(attempts, attempt)
    return branch.known and branch.root is None


def begin_patiently(
    store: Store, env: Environment, wait: Callable[[float], bool], vouched: Vouched = _trusting
) -> Begun:
    """As `begin` for a trainer that asked. A store that does not answer is asked again, since to give up is a failure.

    `wait` waits so many seconds, True if this pod is to go.
    """
    end, said = time.monotonic() + PATIENCE, False
    while True:
        try:
            return begin(store, env, asked=True, vouched=vouched)
        except Denied:
            raise
        except Unreachable as error:
            if not said:
                session.warn(f"where to begin is not known yet: {error}")
            said = True
            if time.monotonic() >= end or wait(PAUSE):
                raise


def _lost(store: Store, env: Environment, attempts: Mapping[int, Mapping[str, Any]], iteration: int) -> tuple[int, int]:
    """As `history.lost`; the first attempt that begins repeats what the last one of its donor had done."""
    if any(number < env.attempt for number in attempts):
        return history.lost(store, attempts, env.attempt, iteration)
    for donor, _, _ in _donors(env, None):
        place = open_at(env, donor)
        if records := history.records(place):
            return history.lost(place, records, NEWEST, iteration)
    return 0, 0


def begin_blindly(env: Environment) -> Begun:
    """A start without a look at the store, for a trainer that did not ask for a checkpoint anyway."""
    return _begun(env, None, 0, 0)


def _begun(env: Environment, found: tuple[Checkpoint, str] | None, lost: int, before: int) -> Begun:
    base, reference, now = None, None, time.time()
    resumed = Resumed(0, 0, now, lost, before)
    if found is not None:
        base, name = found
        reference = CheckpointRef(base.attempt, base.iteration, name, float(base.manifest["reported"]))
        own = contract.parse_manifest_key(name) is not None
        resumed = Resumed(base.attempt if own else 0, base.iteration, reference.time, lost, before)
    record = {
        "attempt": env.attempt,
        "podUid": env.pod_uid,
        "base": reference.key if reference else None,
        "continues": True,
        "time": now,
        "lostIterations": lost,
        "lostBefore": before,
        # Whose all this is, so that a bucket alone tells the whole story.
        "trial": env.trial,
        "experiment": env.experiment,
        "parameters": dict(env.parameters),
        "seed": env.seed,
        "objectives": env.settings.get("objectives") or [],
    }
    return Begun(base, reference, resumed, record)


def claim(store: Store, env: Environment, record: Mapping[str, Any]) -> None:
    """Put this attempt's record; one that is there already is ours only if this pod wrote it.

    :raises Superseded: if another pod has.
    :raises OSError: if the store cannot be written.
    """
    try:
        store.put_new(contract.attempt_key(env.attempt), json.dumps(record).encode())
    except AlreadyThere:
        if history.records(store).get(env.attempt, {}).get("podUid") != env.pod_uid:
            raise Superseded(f"attempt {env.attempt} was begun by another pod") from None
