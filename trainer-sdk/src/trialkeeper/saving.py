"""Saving: from a trainer's files to a committed checkpoint, manifest last.

The order is the protocol: the folder is whole before it is taken, the data durable before the fence is
looked at, the results durable before the manifest, and nothing is a checkpoint before its manifest is there.
A crash between any two leaves files that no reader will ever look at.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trialkeeper import contract, manifest
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import CheckpointRef
from trialkeeper.environment import Environment
from trialkeeper.errors import CheckpointCorrupt, StaleAttempt
from trialkeeper.manifest import Entry, Progress
from trialkeeper.store import AlreadyThere, Appender, Missing, Store

Save = Callable[[Path], None]


class NotStaged(OSError):
    """Raised when the scratch folder cannot take a checkpoint: it is full, or may not be written."""


class Committed(NamedTuple):
    """A checkpoint that is in the store, and its manifest's content."""

    reference: CheckpointRef
    body: Mapping[str, Any]


def committed_files(store: Store) -> list[Entry]:
    """What `commit` may be told as `older` at the beginning: the files of this prefix's newest checkpoint.

    :raises OSError: if the store cannot be read.
    """
    keys = sorted(key for key in store.list("manifests/") if contract.parse_manifest_key(key) is not None)
    for key in reversed(keys):
        with contextlib.suppress(Missing, CheckpointCorrupt):
            return list(manifest.decode(store.get(key))["files"])
    return []


def staged(source: Checkpoint | Save, scratch: Path) -> tuple[Path, str]:
    """(a folder of ours with the trainer's files, their kind); what a failing `save` left is removed.

    :raises NotStaged: if it is not the trainer's fault; whatever `save` raises is.
    """
    folder = scratch / "saves" / f"{os.getpid()}-{os.urandom(4).hex()}"
    try:
        if isinstance(source, Checkpoint):
            folder.parent.mkdir(parents=True, exist_ok=True)
            source.hand_over(folder, scratch)
            return folder, source.kind
        folder.mkdir(parents=True)
    except OSError as error:
        _remove(folder)
        raise NotStaged(*error.args) from error
    try:
        source(folder)
    except BaseException:
        _remove(folder)
        raise
    return folder, "directory"


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def newest_attempt(store: Store) -> int:
    """The highest attempt that has begun."""
    numbers = (contract.parse_attempt_key(key) for key in store.list("attempts/"))
    return max((n for n in numbers if n is not None), default=0)


def commit(
    store: Store,
    env: Environment,
    folder: Path,
    *,
    kind: str,
    why: str,
    progress: Progress,
    metrics: Mapping[str, Any],
    reported: float,
    results: Appender | None,
    older: Sequence[Entry] = (),
) -> Committed:
    """Make a folder a checkpoint of this attempt at `progress`; `reported` is when its iteration was.

    `older`: entries of committed checkpoints of this prefix, the newest first, whose files need not be stored again.

    :raises StaleAttempt: if a later attempt has begun, or another pod has committed the same.
    :raises OSError: if the store cannot be written; there is then no checkpoint.
    :raises ValueError: if the folder cannot be a checkpoint.
    """
    nonce = os.urandom(4).hex()
    data = contract.data_key(env.attempt, progress.iteration, nonce)
    key = contract.manifest_key(env.attempt, progress.iteration)
    body: dict[str, Any] = {
        "v": contract.VERSION,
        "attempt": env.attempt,
        "iteration": progress.iteration,
        "step": progress.step,
        "created": time.time(),
        "reported": reported,
        "writer": {"podUid": env.pod_uid, "nonce": nonce, "sdk": _version()},
        "kind": kind,
        "reason": why,
        "metrics": dict(metrics),
        "progress": progress.to_json(),
        "data": data,
    }
    reference = CheckpointRef(env.attempt, progress.iteration, key, reported)
    try:
        body["files"] = [*store.keep(folder, data, older)]
        manifest.checked(body)  # what could not be read again must not be believed to be saved
        if newest_attempt(store) > env.attempt:
            raise StaleAttempt
        if results is not None:
            results.sync()
        store.put_new(key, manifest.encode(body))
    except BaseException as failure:
        _remove(folder)
        there = _abandon(store, key, data)
        if isinstance(failure, AlreadyThere):
            if there.get("writer", {}).get("podUid") == env.pod_uid:
                return Committed(reference, there)  # an earlier life of this pod was here
            raise StaleAttempt from None
        raise
    return Committed(reference, body)


def _abandon(store: Store, key: str, data: str) -> Mapping[str, Any]:
    """Free the files of a commit that failed, unless its manifest is there after all; the manifest that is there."""
    there: Mapping[str, Any] = {}
    with contextlib.suppress(OSError):
        with contextlib.suppress(Missing, CheckpointCorrupt):
            there = manifest.decode(store.get(key))
        if there.get("data") != data:
            store.delete(data)
    return there


def _version() -> str:
    from trialkeeper import __version__

    return __version__
