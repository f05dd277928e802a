"""Fetching a checkpoint: part by part, each verified, into a folder that is complete or not there.

What arrives is kept in a hidden folder beside the target, so that the same call goes on where an earlier one
ended: a part that is there and has its hash is not fetched again, whatever it was fetched for.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from trialkeeper import parallel
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.manifest import Entry
from trialkeeper.results.places import Place, Told
from trialkeeper.saving import remove
from trialkeeper.store import Missing
from trialkeeper.store.files import CHUNK, WORKERS, digest, opened, parts, verify


class Busy(OSError):
    """Raised when another process downloads into the same folder."""


class InTheWay(FileExistsError):
    """Raised when the target folder holds something else."""


def chosen(body: Mapping[str, Any], patterns: Sequence[str] | None = None) -> list[Entry]:
    """The files of a manifest whose path fits one of the patterns.

    :raises ValueError: if there is none.
    """
    found: list[Entry] = [
        e for e in body["files"] if patterns is None or any(fnmatchcase(e["path"], p) for p in patterns)
    ]
    if not found:
        there = ", ".join(sorted(entry["path"] for entry in body["files"]))
        raise ValueError(f"no file is called {' or '.join(patterns or ())}, there are: {there[:500]}")
    return found


def whole(body: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
    """Whether every byte of a checkpoint has its place in the store; whether it is right only a download tells."""
    return all(sizes.get(e["key"], -1) >= e["offset"] + e["size"] or not e["size"] for e in body["files"])


def fetch(place: Place, prefix: str, entries: Sequence[Entry], target: Path, told: Told = lambda _: None) -> Path:
    """Fetch files of a checked manifest into `target`: it holds exactly these afterwards, or is as it was before.

    :raises InTheWay: if it exists and holds something else.
    :raises Busy: if another process is at it.
    :raises CheckpointCorrupt: if a part is not what was committed.
    :raises Missing: if the checkpoint is gone, or has been deleted meanwhile.
    """
    target = Path(os.path.abspath(target))
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InTheWay(f"{target} is no folder: name another one")
    if target.is_dir() and any(target.iterdir()):
        _check_there(target, entries)
        told(sum(entry["size"] for entry in entries))
        return target
    work = target.with_name(f".{target.name}.part")
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work):
        try:
            place.copy(prefix, entries, work, told)
        except Missing:
            raise Missing("files of this checkpoint are not in the store any more: choose another one") from None
        _settle(work, entries)
        os.rename(work, target)
    return target


def _check_there(target: Path, entries: Sequence[Entry]) -> None:
    try:
        verify(target, entries)
    except CheckpointCorrupt as other:
        raise InTheWay(f"{target} holds something else than this checkpoint ({other}): name another folder") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another process downloads into {folder}: wait for it") from None
        yield
    finally:
        os.close(descriptor)


def copy(path_of: Callable[[str], Path], entries: Sequence[Entry], target: Path, told: Told) -> None:
    """Copy files, whose bytes are in local ones, part by part; as `Place.copy`."""
    _sweep(target, {entry["path"] for entry in entries})
    parallel.run(_jobs(path_of, entries, target, told), WORKERS)


def _sweep(work: Path, wanted: set[str]) -> None:
    """Remove what an earlier download of something else has left."""
    folders = {path[:at] for path in wanted for at, c in enumerate(path) if c == "/"}
    for parent, names, files in os.walk(work, topdown=False):
        for name in [*names, *files]:
            path = Path(parent, name)
            relative = path.relative_to(work).as_posix()
            plain_folder = path.is_dir() and not path.is_symlink()
            if plain_folder and relative not in folders:
                remove(path)
            elif not plain_folder and (relative not in wanted or not path.is_file() or path.is_symlink()):
                path.unlink()


def _jobs(
    path_of: Callable[[str], Path], entries: Sequence[Entry], target: Path, told: Told
) -> Iterator[Callable[[], None]]:
    for entry in entries:
        path = target / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
            os.ftruncate(descriptor, entry["size"])
        for at, size, known in parts(entry):
            yield partial(_copy_part, path_of, entry, path, at, size, known, told)


def _copy_part(
    path_of: Callable[[str], Path], entry: Entry, path: Path, at: int, size: int, known: str, told: Told
) -> None:
    with opened(path, os.O_RDWR) as target:
        if digest(target, at, size) != known:
            try:
                with opened(path_of(entry["key"])) as source:
                    found = _copied(source, entry["offset"] + at, target, at, size)
            except (FileNotFoundError, NotADirectoryError):
                raise Missing(entry["key"]) from None
            if found != known:
                raise CheckpointCorrupt(f"{entry['path']} is not what was written")
    told(size)


def _copied(source: int, start: int, target: int, at: int, size: int) -> str:
    """The hash of what was copied; of less, if there is less."""
    found = sha256()
    while size and (chunk := os.pread(source, min(CHUNK, size), start)):
        found.update(chunk)
        start, size = start + len(chunk), size - len(chunk)
        left = memoryview(chunk)
        while left:
            written = os.pwrite(target, left, at)
            at, left = at + written, left[written:]
    return found.hexdigest()


def _settle(work: Path, entries: Sequence[Entry]) -> None:
    """Files as they were saved, durable before the folder gets its name."""
    folders = {work}
    for entry in entries:
        path = work / entry["path"]
        with opened(path) as descriptor:
            os.fchmod(descriptor, entry["mode"] | 0o600)
            os.fsync(descriptor)
        folders |= {parent for parent in path.parents if parent.is_relative_to(work)}
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
