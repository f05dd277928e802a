"""A whole store from above, for those who clean it: every object with its size and its age, of all trials.

A trainer sees its own prefix only, see `trialkeeper.store`. What is asked here is asked of all of it, and nothing is
ever put.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from trialkeeper.store import Store
    from trialkeeper.store.wire import Wire


class Item(NamedTuple):
    """One object: its key from the top of the tree, bytes, and when it came there (seconds since the epoch).

    `bytes_in` is the same for all that are links to one file, so that each file is counted once.
    """

    key: str
    size: int
    modified: float
    bytes_in: str


class Tree(Protocol):
    """A store as a whole. Every method may raise OSError when it cannot be reached."""

    def objects(self, top: str = "") -> Iterator[Item]:
        """All objects whose key begins with `top`; those below one folder come one after the other."""
        ...

    def folders(self, top: str = "") -> list[str]:
        """The names of what is directly below `top`, which is empty or ends with a slash."""
        ...

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; what is not there is no error."""
        ...

    def forget(self, top: str) -> None:
        """Remove the empty folders that are left of what was below `top`."""
        ...

    def at(self, prefix: str) -> Store:
        """The part of it that is one trial's."""
        ...


class DirectoryTree:
    """A folder. What came by rename has the age of the rename: its files may have been old by then."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def objects(self, top: str = "") -> Iterator[Item]:
        start = self._root / top.rpartition("/")[0]
        ages: dict[str, float] = {}

        def failed(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        for parent, folders, names in os.walk(start, onerror=failed):
            folders.sort()
            age = 0.0
            with contextlib.suppress(FileNotFoundError):
                # A folder of folders changes with each that comes: only below `data` one came as a whole.
                inside = os.path.basename(parent) != "data"
                age = max(ages.get(os.path.dirname(parent), 0.0), os.stat(parent).st_ctime) if inside else 0.0
            ages[parent] = age
            for name in sorted(names):
                path = os.path.join(parent, name)
                key = Path(path).relative_to(self._root).as_posix()
                if not key.startswith(top):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    stat = os.lstat(path)
                    inode = f"{stat.st_dev}:{stat.st_ino}"
                    yield Item(key, stat.st_size, max(stat.st_mtime, stat.st_ctime, age), inode)

    def folders(self, top: str = "") -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(self._root / top) if entry.is_dir(follow_symlinks=False))
        return []

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._root / key
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # up to the first that holds something
                for parent in path.relative_to(self._root).parents:
                    if "data" not in parent.parts[:-1]:
                        break  # others may be about to put something there
                    (self._root / parent).rmdir()

    def forget(self, top: str) -> None:
        for parent, _, _ in os.walk(self._root / top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(parent)

    def at(self, prefix: str) -> Store:
        from trialkeeper.store.directory import DirectoryStore

        return DirectoryStore(self._root / prefix)


class BucketTree:
    """What is below a folder of a bucket; `scratch` is never written to."""

    def __init__(self, wire: Wire, folder: str, scratch: Path) -> None:
        self._wire, self._top, self._scratch = wire, f"{folder.strip('/')}/" if folder.strip("/") else "", scratch

    def objects(self, top: str = "") -> Iterator[Item]:
        from trialkeeper.store.s3 import listed

        for key, size, modified in listed(self._wire, self._top + top):
            yield Item(key[len(self._top) :], size, modified, key)

    def folders(self, top: str = "") -> list[str]:
        from trialkeeper.store.s3 import folders

        return folders(self._wire, self._top + top)

    def remove(self, keys: Iterable[str]) -> None:
        from trialkeeper import parallel
        from trialkeeper.store.wire import WORKERS

        parallel.run(
            (partial(self._wire.request, "DELETE", self._top + key, ready_for=(404,)) for key in keys), WORKERS
        )

    def forget(self, top: str) -> None:
        """Nothing: a bucket has no folders."""

    def at(self, prefix: str) -> Store:
        from trialkeeper.store.s3 import S3Store

        return S3Store(self._wire, self._top + prefix, self._scratch)


if TYPE_CHECKING:
    _trees: list[Tree] = [DirectoryTree(Path())]

    def _is_a_tree(tree: BucketTree) -> Tree:
        return tree
