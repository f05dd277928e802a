"""Where an attempt begins: the newest checkpoint that is whole, and the claim that fences everybody older.

The claim is the fence: from the moment it is in the store, what an earlier attempt commits is outside of the
visible branch. It is put when the base has become definite, and not before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trialkeeper import contract, history, manifest, session
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import CheckpointRef, Resumed
from trialkeeper.environment import Environment
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.store import AlreadyThere, Missing, Store


class Superseded(RuntimeError):
    """Raised when a later attempt, or another pod of this one, has the trial already."""


@dataclass(frozen=True)
class Begun:
    """Where an attempt has begun. `refusal`: why the claim could not be written, if it could not."""

    base: Checkpoint | None
    reference: CheckpointRef | None
    resumed: Resumed
    refusal: OSError | None = None


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
    """The newest whole checkpoint that an attempt may see; what is broken is passed over and told."""
    for number, iteration in history.visible(store.list("manifests/"), history.records(store), attempt):
        key = contract.manifest_key(number, iteration)
        try:
            return load(store, key)
        except (CheckpointCorrupt, Missing, OSError, KeyError, TypeError) as broken:
            session.warn(f"checkpoint {key} is passed over, an older one is tried: {broken}")
    return None


def begin(store: Store, env: Environment, *, asked: bool) -> Begun:
    """Begin an attempt: from its newest checkpoint if the trainer `asked` for it, else from the start.

    :raises Superseded: if the attempt is not this pod's to begin.
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
    iteration = base.iteration if base else 0
    lost, before = history.lost(store, attempts, env.attempt, iteration)
    refusal = _claim(store, env, base, lost, before, attempts)
    reference = None
    if base is not None:
        key = contract.manifest_key(base.attempt, base.iteration)
        reference = CheckpointRef(base.attempt, base.iteration, key, float(base.manifest["reported"]))
    resumed = Resumed(
        attempt=base.attempt if base else 0,
        iteration=iteration,
        time=reference.time if reference else time.time(),
        lostIterations=lost,
        lostBefore=before,
    )
    return Begun(base, reference, resumed, refusal)


def _claim(
    store: Store,
    env: Environment,
    base: Checkpoint | None,
    lost: int,
    before: int,
    attempts: Mapping[int, Mapping[str, Any]],
) -> OSError | None:
    """Put this attempt's record; one that is there already is ours only if this pod wrote it."""
    record = {
        "attempt": env.attempt,
        "podUid": env.pod_uid,
        "base": contract.manifest_key(base.attempt, base.iteration) if base else None,
        "continues": True,
        "time": time.time(),
        "lostIterations": lost,
        "lostBefore": before,
    }
    try:
        store.put_new(contract.attempt_key(env.attempt), json.dumps(record).encode())
    except AlreadyThere:
        # Read once more: of two pods that race, the one that lost has not seen the winner's record before.
        known = attempts.get(env.attempt) or history.records(store).get(env.attempt, {})
        if known.get("podUid") != env.pod_uid:
            raise Superseded(f"attempt {env.attempt} was begun by another pod") from None
    except OSError as error:
        return error
    return None
