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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trialkeeper import contract, manifest
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import CheckpointRef
from trialkeeper.environment import Environment
from trialkeeper.errors import CheckpointCorrupt, StaleAttempt
from trialkeeper.manifest import Entry, Progress
from trialkeeper.ranks import shards
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


def check_source(source: object) -> None:
    """See to it that it is something that a report can save.

    :raises TypeError: if it is not.
    """
    if source is not None and not isinstance(source, Checkpoint) and not callable(source):
        raise TypeError(f"checkpoint= takes a Checkpoint or a function save(folder), not {type(source).__name__}")


class Staged(NamedTuple):
    """A folder of ours with the trainer's files, the kind of checkpoint that it will be, and its bytes."""

    folder: Path
    kind: str
    size: int


def staged(source: Checkpoint | Save, scratch: Path, *, part: bool = False) -> Staged:
    """The trainer's files in a folder of ours; what a failing `save` left is removed. A `part` of a save may be empty.

    :raises NotStaged: if it is not the trainer's fault; whatever `save` raises is.
    :raises ValueError: if the folder cannot be a checkpoint.
    """
    try:
        # What is handed over gets a name, and no folder that would have to make way: on ext4 an rmdir after a
        # gigabyte was written takes up to 70 ms.
        folder = _new_name(scratch) if isinstance(source, Checkpoint) else new_folder(scratch)
    except OSError as error:
        raise NotStaged(*error.args) from error
    try:
        if isinstance(source, Checkpoint):
            try:
                source.hand_over(folder, scratch)
            except OSError as error:
                raise NotStaged(*error.args) from error
            return Staged(folder, source.kind, check(folder, part=part))
        source(folder)
        return Staged(folder, "directory", check(folder, part=part))
    except BaseException:
        remove(folder)
        raise


def new_folder(scratch: Path) -> Path:
    """An empty folder for a save, which nobody but this process and its upload process will touch."""
    folder = _new_name(scratch)
    folder.mkdir()
    return folder


def _new_name(scratch: Path) -> Path:
    """Where such a folder may be made."""
    saves = scratch / "saves"
    saves.mkdir(parents=True, exist_ok=True)
    return saves / f"{os.getpid()}-{os.urandom(8).hex()}"


def check(folder: Path, *, part: bool = False) -> int:
    """See to it that a folder can be a checkpoint, or `part` of one; its bytes.

    :raises NotStaged: if there is no room for a copy of what the trainer has by another name, too.
    :raises ValueError: if it is empty, or has something in it that is neither a file nor a folder.
    """
    files, size = 0, 0
    for parent, folders, names in os.walk(folder):
        for name in names + folders:
            path = os.path.join(parent, name)
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode):
                files, size = files + 1, size + found.st_size
                if found.st_nlink > 1:
                    _own(path)
            elif not stat.S_ISDIR(found.st_mode):
                relative = os.path.relpath(path, folder)
                raise ValueError(f"checkpoint: {relative} is a link or no file: save copies of files only")
    if not files and not part:
        raise ValueError("checkpoint: the folder is empty: save() must write at least one file into it")
    return size


def _own(path: str) -> None:
    """Make a file one of its own: it has another name, by which it may be written again in place.

    :raises NotStaged: if there is no room for a copy.
    """
    import shutil

    copy = os.path.join(os.path.dirname(path), f".{os.urandom(8).hex()}")
    try:
        shutil.copy2(path, copy)
        os.replace(copy, path)
    except OSError as error:
        raise NotStaged(*error.args) from error


def room(scratch: Path, wanted: int, limit: int = 0) -> bool:
    """Whether the scratch folder's disk has so many bytes left, and the folder if at most `limit` may lie in it."""
    try:
        found = os.statvfs(scratch)
    except OSError:
        return True
    return found.f_bavail * found.f_frsize >= wanted and (not limit or _used(scratch) + wanted <= limit)


def _used(folder: Path) -> int:
    """Bytes of the disk below a folder, as the kubelet counts them; a file with two names once."""
    blocks: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(parent, name))
                blocks[found.st_dev, found.st_ino] = found.st_blocks
    return 512 * sum(blocks.values())


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
    older: Sequence[Entry] = (),
    nonce: str = "",
    resharding: bool = False,
    leave_by: Callable[[], float | None] = lambda: None,
) -> Committed:
    """Make a folder a checkpoint of this attempt at `progress`; `reported` is when its iteration was.

    The folder is left as it is, for its owner to remove or to try again.

    `older`: entries of committed checkpoints of this prefix, the newest first, whose files need not be stored again.
    `nonce`: what the other ranks know the save by, if there are any, whose parts are waited for until `leave_by`.

    :raises StaleAttempt: if a later attempt has begun, or another pod has committed the same.
    :raises OSError: if the store cannot be written; there is then no checkpoint.
    :raises ValueError: if the folder cannot be a checkpoint.
    """
    nonce = nonce or shards.nonce()
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
    if env.world > 1:
        body["worldSize"] = env.world
    elif resharding:
        body["resharding"] = True
    reference = CheckpointRef(env.attempt, progress.iteration, key, reported)
    try:
        if env.world > 1:
            mine = shards.keep(store, folder, data, 0, older)
            body["files"], every = shards.gather(
                store, env, data, nonce, mine, resharding=resharding, leave_by=leave_by
            )
            body["resharding"] = every
        else:
            body["files"] = [*store.keep(folder, data, older)]
        manifest.checked(body)  # what could not be read again must not be believed to be saved
        if newest_attempt(store) > env.attempt:
            raise StaleAttempt
        if results is not None:
            results.sync()
        store.put_new(key, manifest.encode(body))
        if env.world > 1:
            shards.tidy(store, data)
    except BaseException as failure:
        # Of several ranks, the parts of the others stay where this is tried again.
        there = _abandon(store, key, data, tried_again=env.world > 1 and folder.is_dir())
        if isinstance(failure, AlreadyThere):
            if there is None:
                raise OSError(f"{key} is there, and whose it is cannot be read") from None
            if there.get("writer", {}).get("podUid") == env.pod_uid:
                return Committed(reference, there)  # an earlier life of this pod was here
            raise StaleAttempt from None
        raise
    return Committed(reference, body)


def _abandon(store: Store, key: str, data: str, *, tried_again: bool) -> Mapping[str, Any] | None:
    """Free the files of a commit that failed, unless its manifest is there after all.

    Returns that manifest, an empty one if there is none, or None if that cannot be read: these files may be its.
    """
    there: Mapping[str, Any] = {}
    try:
        there = manifest.decode(store.get(key))
    except Missing:
        pass
    except (CheckpointCorrupt, OSError):
        return None
    if there.get("data") != data and not tried_again:
        with contextlib.suppress(OSError):
            store.delete(data)
    return there


def _version() -> str:
    from trialkeeper import __version__

    return __version__
