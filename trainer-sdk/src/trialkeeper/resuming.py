"""Where an attempt begins: the newest checkpoint that is whole, and the claim that fences everybody older.

The claim is the fence: from the moment it is in the store, what an earlier attempt commits is outside of the
visible branch. It is put when the base has become definite, and not before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trialkeeper import contract, history, manifest, session
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import CheckpointRef, Resumed
from trialkeeper.environment import Environment
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.store import AlreadyThere, Denied, Missing, Store, Unreachable

PATIENCE = 120.0  # seconds for a store to come back before a trainer that asked for its checkpoint fails
PAUSE = 5.0  # seconds between two such questions


class Superseded(RuntimeError):
    """Raised when a later attempt, or another pod of this one, has the trial already."""


@dataclass(frozen=True)
class Begun:
    """Where an attempt begins, and the record that claims it."""

    base: Checkpoint | None
    reference: CheckpointRef | None
    resumed: Resumed
    record: Mapping[str, Any]


def load(store: Store, key: str) -> Checkpoint:
    """A committed checkpoint, every file of it verified.

    :raises CheckpointCorrupt: if a file is not what was committed.
    :raises Missing: if the manifest or the files are gone.
    """
    body = manifest.decode(store.get(key))
    folder = store.folder(body["data"])
    manifest.verify(body, folder)
    found = Checkpoint(
        folder,
        kind=body["kind"],
        metrics=body["metrics"],
        iteration=body["iteration"],
        step=body["step"],
        attempt=body["attempt"],
    )
    found.manifest = body
    return found


def newest(store: Store, attempt: int) -> Checkpoint | None:
    """The newest whole checkpoint that an attempt may see; what is broken is passed over and told.

    :raises OSError: if the store cannot be reached.
    """
    for number, iteration in history.visible(store.list("manifests/"), history.records(store), attempt):
        key = contract.manifest_key(number, iteration)
        try:
            return load(store, key)
        except Unreachable:
            raise  # whether it is whole nobody knows: to pass it over might be to start over
        except (CheckpointCorrupt, Missing, OSError, KeyError, TypeError) as broken:
            session.warn(f"checkpoint {key} is passed over, an older one is tried: {broken}")
    return None


def begin(store: Store, env: Environment, *, asked: bool) -> Begun:
    """Where an attempt begins: at its newest checkpoint if the trainer `asked` for it, else at the start.

    :raises Superseded: if a later attempt has begun.
    :raises OSError: if the store cannot be read.
    """
    base = newest(store, env.attempt) if asked else None
    attempts = history.records(store)
    if not asked and history.visible(store.list("manifests/"), attempts, env.attempt):
        session.warn(
            "get_checkpoint() was not called before the first report(), although there is a checkpoint: "
            "this attempt starts over"
        )
    if any(number > env.attempt for number in attempts):
        raise Superseded("a later attempt of this trial has begun")
    lost, before = history.lost(store, attempts, env.attempt, base.iteration if base else 0)
    return _begun(env, base, lost, before)


def begin_patiently(store: Store, env: Environment, wait: Callable[[float], bool]) -> Begun:
    """As `begin` for a trainer that asked. A store that does not answer is asked again, since to give up is a failure.

    `wait` waits so many seconds, True if this pod is to go.
    """
    end, said = time.monotonic() + PATIENCE, False
    while True:
        try:
            return begin(store, env, asked=True)
        except Denied:
            raise
        except Unreachable as error:
            if not said:
                session.warn(f"where to begin is not known yet: {error}")
            said = True
            if time.monotonic() >= end or wait(PAUSE):
                raise


def begin_blindly(env: Environment) -> Begun:
    """A start without a look at the store, for a trainer that did not ask for a checkpoint anyway."""
    return _begun(env, None, 0, 0)


def _begun(env: Environment, base: Checkpoint | None, lost: int, before: int) -> Begun:
    reference = None
    if base is not None:
        key = contract.manifest_key(base.attempt, base.iteration)
        reference = CheckpointRef(base.attempt, base.iteration, key, float(base.manifest["reported"]))
    now = time.time()
    resumed = Resumed(
        attempt=base.attempt if base else 0,
        iteration=base.iteration if base else 0,
        time=reference.time if reference else now,
        lostIterations=lost,
        lostBefore=before,
    )
    record = {
        "attempt": env.attempt,
        "podUid": env.pod_uid,
        "base": reference.key if reference else None,
        "continues": True,
        "time": now,
        "lostIterations": lost,
        "lostBefore": before,
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
