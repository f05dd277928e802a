"""Opening a store where the environment says that it is: the one place that knows which kinds there are."""

from __future__ import annotations

from trialkeeper.environment import Environment
from trialkeeper.store import Store
from trialkeeper.store.directory import DirectoryStore


def open_at(env: Environment, prefix: str) -> Store:
    """Another prefix of the store that this trial's prefix is in, to be read only.

    :raises OSError: if the store cannot be reached.
    """
    if env.root is None:
        raise FileNotFoundError(f"a plain run has no store beside its own folder, and so no {prefix}")
    return DirectoryStore(env.root / prefix)
