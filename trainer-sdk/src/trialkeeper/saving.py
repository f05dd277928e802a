"""Saving: from a trainer's files to a committed checkpoint, manifest last.

The trainer's process stages the files, its upload process commits them. The order is the protocol: the folder is
whole before it is taken, the data durable before the fence is looked at, the results durable before the manifest,
and nothing is a checkpoint before its manifest is there. A crash between any two leaves files that no reader will
ever look at.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trialkeeper import contract, manifest
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import CheckpointRef
from trialkeeper.environment import Environment
from trialkeeper.errors import CheckpointCorrupt, StaleAttempt
from trialkeeper.manifest import Progress
from trialkeeper.store import AlreadyThere, Appender, Missing, Store

Save = Callable[[Path], None]


class NotStaged(OSError):
    """Raised when the scratch folder cannot take a checkpoint: it is full, or may not be written."""


class Staged(NamedTuple):
    """A folder of ours with the trainer's files, the kind of checkpoint that it will be, and its bytes."""

    folder: Path
    kind: str
    size: int


def staged(source: Checkpoint | Save, scratch: Path) -> Staged:
    """The trainer's files in a folder of ours; what a failing `save` left is removed.

    :raises NotStaged: if it is not the trainer's fault; whatever `save` raises is.
    :raises ValueError: if the folder cannot be a checkpoint.
    """
    try:
        folder = new_folder(scratch)
    except OSError as error:
        raise NotStaged(*error.args) from error
    try:
        if isinstance(source, Checkpoint):
            try:
                folder.rmdir()
                source.hand_over(folder, scratch)
            except OSError as error:
                raise NotStaged(*error.args) from error
            return Staged(folder, source.kind, check(folder))
        source(folder)
        return Staged(folder, "directory", check(folder))
    except BaseException:
        remove(folder)
        raise


def new_folder(scratch: Path) -> Path:
    """An empty folder for a save, which nobody but this process and its upload process will touch."""
    folder = scratch / "saves" / f"{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir(parents=True)
    return folder


def check(folder: Path) -> int:
    """See to it that a folder can be a checkpoint; its bytes.

    :raises ValueError: if it is empty, or has something in it that is neither a file nor a folder.
    """
    files, size = 0, 0
    for parent, folders, names in os.walk(folder):
        for name in names + folders:
            path = os.path.join(parent, name)
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode):
                files, size = files + 1, size + found.st_size
            elif not stat.S_ISDIR(found.st_mode):
                relative = os.path.relpath(path, folder)
                raise ValueError(f"checkpoint: {relative} is a link or no file: save copies of files only")
    if not files:
        raise ValueError("checkpoint: the folder is empty: save() must write at least one file into it")
    return size


def room(scratch: Path, wanted: int) -> bool:
    """Whether the scratch folder's disk has so many bytes left."""
    try:
        found = os.statvfs(scratch)
    except OSError:
        return True
    return found.f_bavail * found.f_frsize >= wanted


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, as far as that can be."""
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
) -> tuple[CheckpointRef, dict[str, Any]]:
    """Make a folder a checkpoint of this attempt at `progress`; its reference and its manifest.

    `reported` is when its iteration was. If it cannot be done, the folder is left as it is, where that can be.

    :raises StaleAttempt: if a later attempt has begun, or another pod has committed the same.
    :raises OSError: if the store cannot be written; there is then no checkpoint.
    :raises ValueError: if the folder cannot be a checkpoint.
    """
    nonce = os.urandom(4).hex()
    data = contract.data_key(env.attempt, progress.iteration, nonce)
    key = contract.manifest_key(env.attempt, progress.iteration)
    files = manifest.inventory(folder)
    body = {
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
        "partSize": manifest.PART_SIZE,
        "files": files,
        "data": data,
    }
    reference = CheckpointRef(env.attempt, progress.iteration, key, reported)
    try:
        store.take(folder, data)
        if newest_attempt(store) > env.attempt:
            raise StaleAttempt
        if results is not None:
            results.sync()
        store.put_new(key, manifest.encode(body))
    except BaseException as failure:
        there = _abandon(store, key, data)
        if isinstance(failure, AlreadyThere):
            if there.get("writer", {}).get("podUid") == env.pod_uid:
                return reference, dict(there)  # an earlier life of this pod was here
            raise StaleAttempt from None
        raise
    return reference, body


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
