"""Opening the store that a trial's URL names.

What a bucket needs is imported when one is opened, so that a trainer on a directory pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trialkeeper.store.address import Bucket, bucket_of, path_of

if TYPE_CHECKING:
    from trialkeeper.environment import Environment
    from trialkeeper.store import Store
    from trialkeeper.store.tree import Tree
    from trialkeeper.store.wire import Wire

_MORE = "pip install 'trialkeeper[s3]'"


def open_store(env: Environment, leave_by: Callable[[], float | None] = lambda: None) -> Store:
    """The store of a trial; nothing is written or asked yet. `leave_by`: the moment (monotonic) to give up, if any.

    :raises ImportError: if the packages that it needs are not there; the message says what to install.
    """
    if not env.store.startswith("s3://"):
        from trialkeeper.store.directory import DirectoryStore

        return DirectoryStore(env.folder, env.scratch, leave_by)
    connection, bucket = _connected(env, leave_by)
    from trialkeeper.store import s3

    return s3.S3Store(connection, "/".join(filter(None, (bucket.folder, env.prefix))), env.scratch)


def open_tree(env: Environment) -> Tree:
    """All of the store that a trial's is in; errors are those of `open_store`."""
    from trialkeeper.store import tree

    if not env.store.startswith("s3://"):
        return tree.DirectoryTree(path_of(env.store))
    connection, bucket = _connected(env, lambda: None)
    return tree.BucketTree(connection, bucket.folder, env.scratch)


def _connected(env: Environment, leave_by: Callable[[], float | None]) -> tuple[Wire, Bucket]:
    try:
        from trialkeeper.store import keys, wire
    except ImportError as missing:
        raise ImportError(f"the store is a bucket, and that needs a few more packages: {_MORE} ({missing})") from None
    bucket = bucket_of(env.store)
    return wire.Wire(bucket, keys.Keys(bucket, env), ca=env.store_ca, leave_by=leave_by, grace=env.grace), bucket


def open_at(env: Environment, prefix: str) -> Store:
    """Another prefix of the store that this trial's is in; errors are those of `open_store`.

    But for pins it is to be read only.
    """
    from dataclasses import replace

    return open_store(replace(env, prefix=prefix))
