"""Keeping an experiment's snapshot: as often as its size allows, and before the experiment is called over."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.decide.waiting import NAME_TAKEN, Waiting
from trialkeeper_operator.reconcile.ports import AlreadyExists, Forbidden, Invalid, Object, QuotaExceeded
from trialkeeper_operator.reconcile.world import Kept, Outcome, World
from trialkeeper_operator.state import snapshot

INTERVAL = 10.0  # seconds between two snapshots, at least
RETRY = 60.0  # seconds until a snapshot that was refused is tried again
NOT_WRITTEN = "NotWritten"
RATE = 20 * 1024.0  # bytes a second that all snapshots of an experiment may cost


class NotKept(Exception):
    """Raised when the snapshot cannot be kept until somebody mends what `why` says; nothing else depends on it."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.why = Waiting(reason, sentence[:1024])


async def keep(world: World, raw: Object, status: Mapping[str, Any], *, over: bool) -> Outcome:
    """Write the snapshot if it is time, or if the experiment is over; seconds until the next one is due.

    :raises Conflict: if somebody else has written it meanwhile; the caller looks again.
    :raises NotKept: if it is refused, or its name is somebody else's.
    """
    uid, now = raw["metadata"]["uid"], world.now()
    kept = world.snapshots.get(uid)
    if kept is not None and kept.due > now and not over:
        return kept.due - now
    trials = world.cache.raw_children(names.TRIAL, uid)
    data = snapshot.encode({**raw, "status": dict(status)}, trials)
    digest = hashlib.sha256(data).hexdigest()
    if kept is None or kept.digest != digest:
        try:
            await _write(world, raw, data)
        except (Invalid, QuotaExceeded, Forbidden) as refusal:
            raise NotKept(NOT_WRITTEN, f"the snapshot cannot be written: {refusal}") from refusal
    due = now + max(INTERVAL, len(data) / RATE)
    world.snapshots[uid] = Kept(digest, due)
    return None if over else due - now


async def _write(world: World, raw: Object, data: bytes) -> None:
    body = snapshot.config_map(raw, data)
    meta = body["metadata"]
    stored = await world.cluster.get(names.CONFIG_MAP, meta["namespace"], meta["name"])
    if stored is None:
        await world.cluster.create(body)
        return
    owner = (stored["metadata"].get("annotations") or {}).get(snapshot.UID_ANNOTATION, "")
    if not owner:
        raise NotKept(
            NAME_TAKEN, f"the ConfigMap {meta['name']} is somebody else's: rename it, and the snapshot is kept"
        )
    if owner != raw["metadata"]["uid"]:
        await _set_aside(world, stored, owner)
    version = {"resourceVersion": stored["metadata"]["resourceVersion"], "uid": stored["metadata"]["uid"]}
    await world.cluster.put({**body, "metadata": meta | version})


async def _set_aside(world: World, stored: Object, owner: str) -> None:
    """Another experiment of this name has left its snapshot here: it is kept under a name of its own."""
    meta = stored["metadata"]
    name = f"{meta['name']}-{owner[:8]}"
    copy = {k: v for k, v in stored.items() if k != "metadata"}
    labels = {k: meta[k] for k in ("labels", "annotations") if k in meta}
    try:
        await world.cluster.create({**copy, "metadata": {"name": name, "namespace": meta["namespace"], **labels}})
    except AlreadyExists:
        return
