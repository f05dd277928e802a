"""Keeping an experiment's snapshot: as often as its size allows, and before the experiment is called over.

Each snapshot replaces a version whose number was known before the knowledge in it was gathered. So whatever
the replaced one knew is in the new one, and no order of two operators leaves an older one behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.decide.waiting import NAME_TAKEN, Waiting
from trialkeeper_operator.reconcile.ports import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Object,
    QuotaExceeded,
)
from trialkeeper_operator.reconcile.world import Kept, Outcome, World
from trialkeeper_operator.state import snapshot

INTERVAL = 10.0  # seconds between two snapshots, at least
RETRY = 60.0  # seconds until a snapshot that was refused is tried again; no wait is longer
NOT_WRITTEN = "NotWritten"
RATE = 20 * 1024.0  # bytes a second that all snapshots of an experiment may cost


class NotKept(Exception):
    """Raised when the snapshot cannot be kept until somebody mends what `why` says; nothing else depends on it."""

    def __init__(self, why: Waiting) -> None:
        super().__init__(why.message)
        self.why = why


class Behind(Exception):
    """Raised when the stored snapshot may know more than the cache.

    Look at the experiment and its trials live; only after that remember `kept`, and come again.
    """

    def __init__(self, kept: Kept) -> None:
        super().__init__("the stored snapshot may know more than the cache")
        self.kept = kept


async def keep(world: World, raw: Object, status: Mapping[str, Any], *, over: bool) -> Outcome:
    """Write the snapshot if it is time, or if the experiment is over; seconds until the next one is due.

    :raises Behind: if nothing may be written before the experiment and its trials have been looked at live.
    :raises NotKept: if it is refused, or its name is somebody else's.
    """
    uid, now = raw["metadata"]["uid"], world.now()
    kept = world.snapshots.get(uid)
    if kept is not None and now < kept.due <= now + RETRY and not over:  # later ones are a clock's that was set back
        if kept.refused is not None:
            raise NotKept(kept.refused)
        return kept.due - now
    trials = world.cache.raw_children(names.TRIAL, uid)
    rows = frozenset(trial["metadata"]["uid"] for trial in trials)
    if kept is None and not status.get("trials"):
        return None  # the first trials bring the next pass, and there is nothing to go on from before them
    data = snapshot.encode({**raw, "status": dict(status)}, trials)
    digest = hashlib.sha256(data).hexdigest()
    if kept is None:
        kept = await _found(world, raw, digest, rows)
    if kept.rows - rows:
        # Trials go before anybody has heard that their experiment is gone; their rows must not go with them.
        raise Behind(kept._replace(rows=rows))
    if kept.digest != digest:
        if kept.stored is not None and not snapshot.is_one(kept.stored):
            said = f"the ConfigMap {kept.stored['metadata']['name']} is somebody else's: rename it"
            raise _refused(world, uid, kept._replace(stored=None), Waiting(NAME_TAKEN, said))
        try:
            kept = await _write(world, raw, data, digest, kept)
        except (Invalid, QuotaExceeded, Forbidden) as refusal:
            said = f"the snapshot cannot be written: {refusal}"[:1024]
            raise _refused(world, uid, kept, Waiting(NOT_WRITTEN, said)) from refusal
    due = now + max(INTERVAL, len(data) / RATE)
    world.snapshots[uid] = kept._replace(due=due, rows=rows, refused=None)
    return None if over else due - now


def _refused(world: World, uid: str, kept: Kept, why: Waiting) -> NotKept:
    """Remember why, so that it is tried again after a while and not with every pass."""
    world.snapshots[uid] = kept._replace(due=world.now() + RETRY, refused=why)
    return NotKept(why)


async def _found(world: World, raw: Object, digest: str, rows: frozenset[str]) -> Kept:
    """What is stored, for an operator that has not written yet, or not last.

    :raises Behind: if it is another one than that of this digest.
    """
    meta = raw["metadata"]
    name = snapshot.name_of(meta["name"])
    stored = await world.cluster.get(names.CONFIG_MAP, meta.get("namespace", ""), name)
    if stored is None:
        return Kept("", 0.0, rows)
    kept = Kept("", 0.0, rows, stored)
    own = snapshot.owner_of(stored) == meta["uid"]
    if own and snapshot.digest_of(stored) == digest:
        return kept._replace(digest=digest)
    raise Behind(kept)


async def _write(world: World, raw: Object, data: bytes, digest: str, kept: Kept) -> Kept:
    body = snapshot.config_map(raw, data)
    try:
        if kept.stored is None:
            written = await world.cluster.create(body)
        else:
            if snapshot.owner_of(kept.stored) != raw["metadata"]["uid"]:
                await set_aside(world, kept.stored)
            known = kept.stored["metadata"]
            version = {"resourceVersion": known["resourceVersion"], "uid": known["uid"]}
            written = await world.cluster.put({**body, "metadata": {**body["metadata"], **version}})
    except (AlreadyExists, Conflict, NotFound):
        found = await _found(world, raw, digest, kept.rows)
        if found.stored is None:
            # It was deleted, perhaps with its experiment.
            raise Behind(found) from None
        return found
    light = {k: v for k, v in written.items() if k != "binaryData"}
    return kept._replace(digest=digest, stored=light)


async def set_aside(world: World, stored: Object) -> None:
    """Keep another experiment's snapshot under a name of its own, before the name is used for another one.

    Whoever replaces it afterwards must do so under the version that was set aside.
    """
    meta = stored["metadata"]
    for name in snapshot.names_aside(stored):
        body = snapshot.aside(stored, name)
        while True:
            there = await world.cluster.get(names.CONFIG_MAP, meta["namespace"], name)
            try:
                if there is None:
                    await world.cluster.create(body)
                    return
                if snapshot.owner_of(there) != snapshot.owner_of(stored):
                    break  # another one's, whose uid begins alike
                if snapshot.version_aside(there) >= snapshot.version_aside(body):
                    return  # this one, or a newer one by an operator that came later
                version = {"resourceVersion": there["metadata"]["resourceVersion"], "uid": there["metadata"]["uid"]}
                await world.cluster.put({**body, "metadata": {**body["metadata"], **version}})
                return
            except (AlreadyExists, Conflict, NotFound):
                continue
