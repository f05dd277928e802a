"""Saving: from a trainer's files to a committed checkpoint, manifest last.

The order is the protocol: the folder is whole before it is taken, the data durable before the fence is
looked at, the results durable before the manifest, and nothing is a checkpoint before its manifest is there.
A crash between any two leaves files that no reader will ever look at.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trialkeeper import contract, manifest
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import CheckpointRef
from trialkeeper.environment import Environment
from trialkeeper.errors import StaleAttempt
from trialkeeper.manifest import Progress
from trialkeeper.store import AlreadyThere, Appender, Store

Save = Callable[[Path], None]


def staged(source: Checkpoint | Save, scratch: Path) -> tuple[Path, str]:
    """(a folder of ours with the trainer's files, their kind); what a failing `save` left is removed."""
    parent = scratch / "saves"
    folder = parent / f"{os.getpid()}-{os.urandom(4).hex()}"
    parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Checkpoint):
        if not source.path.is_dir():
            raise ValueError("this Checkpoint has been reported already, or its folder is gone: make a new one")
        if source.ours:
            shutil.move(source.path, folder)
        else:
            shutil.copytree(source.path, folder, symlinks=True)
        return folder, source.kind
    folder.mkdir()
    try:
        source(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder, "directory"


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
) -> CheckpointRef:
    """Make a folder a checkpoint of this attempt at `progress`; `reported` is when its iteration was.

    :raises StaleAttempt: if a later attempt has begun, or another pod has committed the same.
    :raises OSError: if the store cannot be written; there is then no checkpoint.
    :raises ValueError: if the folder cannot be a checkpoint.
    """
    nonce = os.urandom(4).hex()
    data = contract.data_key(env.attempt, progress.iteration, nonce)
    key = contract.manifest_key(env.attempt, progress.iteration)
    try:
        files = manifest.inventory(folder)
        store.take(folder, data)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if newest_attempt(store) > env.attempt:
        raise StaleAttempt
    if results is not None:
        results.sync()
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
    try:
        store.put_new(key, manifest.encode(body))
    except AlreadyThere:
        raise StaleAttempt from None
    return CheckpointRef(env.attempt, progress.iteration, key, reported)


def _version() -> str:
    from trialkeeper import __version__

    return __version__
