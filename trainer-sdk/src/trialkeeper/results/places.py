"""Where trials' prefixes lie, for somebody who reads only: a folder of this machine, or a bucket.

A prefix is given whole: a path without its first slash, or a key's beginning. Files of results are always local,
so that whoever reads them can go back; those of a bucket are copied as they grow.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trialkeeper import contract
from trialkeeper.manifest import Entry
from trialkeeper.saving import remove
from trialkeeper.store import Missing, Store

if TYPE_CHECKING:
    from trialkeeper.store.wire import Wire

Told = Callable[[int], object]  # hears each time how many bytes more are there


class Place(Protocol):
    """What readers need. Every method may raise OSError when the place cannot be read."""

    def children(self, folder: str) -> list[str]:
        """The names of the folders in a folder, sorted."""
        ...

    def store(self, prefix: str) -> Store:
        """The store of one trial, to be read only."""
        ...

    def results(self, prefix: str, attempt: int) -> Path | None:
        """A local file with an attempt's raw results as far as they are there now; it only ever grows."""
        ...

    def copy(self, prefix: str, entries: Sequence[Entry], target: Path, told: Told) -> None:
        """Files of a checked manifest into a folder, each part verified; parts that are there and right stay.

        :raises Missing: if one of them is gone.
        :raises CheckpointCorrupt: if one of them is not what was committed.
        """
        ...

    def close(self) -> None:
        """Let go of connections and copies."""
        ...


class _Copies:
    """A temporary folder that comes with the first use and goes at `close`, at the latest with the process."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def path(self, *parts: str) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="trialkeeper-results-"))
            self._end = weakref.finalize(self, remove, self._folder)
        path = self._folder.joinpath(*(part.replace("/", "_") for part in parts))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def close(self) -> None:
        if self._folder is not None:
            self._end()
            self._folder = None


class Grown:
    """Segments of results joined to one local file; each call takes those that are new."""

    def __init__(self, copies: _Copies) -> None:
        self._copies = copies
        self._taken: dict[tuple[str, str], str] = {}

    def file(self, store: Store, prefix: str, key: str) -> Path | None:
        """The file, None while nothing is there; a segment that is gone again is passed over."""
        path = self._copies.path(prefix, key)
        newest = self._taken.get((prefix, key), "")
        for segment in store.list(key):
            if segment <= newest or not (segment == key or segment.startswith(f"{key}/")):
                continue
            try:
                data = store.get(segment)
            except Missing:
                data = b""
            with path.open("ab") as file:
                file.write(data)
            newest = self._taken[prefix, key] = segment
        return path if path.exists() else None


class FolderPlace:
    """Folders of this machine."""

    def __init__(self) -> None:
        self._copies = _Copies()
        self._grown = Grown(self._copies)

    def _path(self, prefix: str, key: str = "") -> Path:
        top = Path("/", prefix)
        path = Path(os.path.normpath(top / key))
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(top)):
            raise Missing(key)
        return path

    def children(self, folder: str) -> list[str]:
        try:
            return sorted(e.name for e in os.scandir(Path("/", folder)) if e.is_dir() and not e.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def store(self, prefix: str) -> Store:
        from trialkeeper.store.directory import DirectoryStore

        return DirectoryStore(Path("/", prefix))

    def results(self, prefix: str, attempt: int) -> Path | None:
        key = contract.results_key(attempt)
        path = self._path(prefix, key)
        if path.is_dir():  # a copy of a bucket
            return self._grown.file(self.store(prefix), prefix, key)
        return path if path.is_file() else None

    def copy(self, prefix: str, entries: Sequence[Entry], target: Path, told: Told) -> None:
        from trialkeeper.results.download import copy

        copy(lambda key: self._path(prefix, key), entries, target, told)

    def close(self) -> None:
        self._copies.close()


class BucketPlace:
    """A bucket behind a `Wire`; what else has to end with it is `after`."""

    def __init__(self, wire: Wire, after: Callable[[], object] = lambda: None) -> None:
        self._wire, self._after = wire, after
        self._copies = _Copies()
        self._grown = Grown(self._copies)

    def children(self, folder: str) -> list[str]:
        from trialkeeper.store.s3 import folders

        return folders(self._wire, f"{folder}/" if folder else "")

    def store(self, prefix: str) -> Store:
        from trialkeeper.store.s3 import S3Store

        return S3Store(self._wire, prefix, self._copies.path("scratch"))

    def results(self, prefix: str, attempt: int) -> Path | None:
        return self._grown.file(self.store(prefix), prefix, contract.results_key(attempt))

    def copy(self, prefix: str, entries: Sequence[Entry], target: Path, told: Told) -> None:
        from trialkeeper.store.transfer import download

        download(self._wire, prefix, target, entries, told)

    def close(self) -> None:
        self._wire.close()
        self._copies.close()
        self._after()


if TYPE_CHECKING:

    def _are_places(folder: FolderPlace, bucket: BucketPlace) -> tuple[Place, Place]:
        return folder, bucket
