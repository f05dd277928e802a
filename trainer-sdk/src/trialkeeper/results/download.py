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
from hashlib import sha256
from pathlib import Path
from typing import Any

from trialkeeper import parallel
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.results.places import Place, Take, remove
from trialkeeper.store import Missing

WORKERS = 4
TRIES = 3  # to get a part whose hash fits
CHUNK = 1 << 20  # bytes

Progress = Callable[[int], object]  # is told each time how many bytes more are there


class Busy(OSError):
    """Raised when another process downloads into the same folder."""


class InTheWay(FileExistsError):
    """Raised when the target folder holds something else."""


def entries(body: Mapping[str, Any], patterns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The files of a manifest whose path fits one of the patterns, each with the object that holds its bytes.

    :raises CheckpointCorrupt: if one of them would not lie inside of the checkpoint, or its hashes cannot be.
    :raises ValueError: if there is no such file.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in body["files"]:
        path, size = str(entry["path"]), int(entry["size"])
        steps = path.split("/")
        if not all(steps) or {".", ".."} & set(steps) or "\0" in path or path in found:
            raise CheckpointCorrupt(f"{path!r} would lie outside the checkpoint")
        if len(entry["sha256"]) != -(-size // int(body["partSize"])):
            raise CheckpointCorrupt(f"{path!r} has {len(entry['sha256'])} hashes for {size} bytes")
        found[path] = {"key": f"{body['data']}/{path}", "offset": 0, **entry, "size": size}
    if any(f"{path}/" in other for path in found for other in found if other.startswith(f"{path}/")):
        raise CheckpointCorrupt("a file of the checkpoint would lie inside of another one")
    if patterns is None:
        return list(found.values())
    chosen = [entry for path, entry in found.items() if any(fnmatchcase(path, p) for p in patterns)]
    if not chosen:
        raise ValueError(f"no file is called {' or '.join(patterns)}, there are: {', '.join(sorted(found))[:500]}")
    return chosen


def whole(body: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
    """Whether every byte of a checkpoint has its place in the store; whether it is right only a download tells."""
    try:
        return all(sizes.get(e["key"], -1) >= int(e["offset"]) + e["size"] for e in entries(body))
    except (CheckpointCorrupt, KeyError, TypeError, ValueError):
        return False


def fetch(
    place: Place,
    prefix: str,
    body: Mapping[str, Any],
    target: Path,
    patterns: Sequence[str] | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """Fetch a checkpoint's files into `target`, which is there afterwards with exactly these, or as it was before.

    :raises InTheWay: if it exists and holds something else.
    :raises Busy: if another process is at it.
    :raises CheckpointCorrupt: if a part is not what was committed.
    :raises Missing: if the checkpoint is gone, or has been deleted meanwhile.
    """
    wanted = entries(body, patterns)
    part_size = int(body["partSize"])
    target = Path(os.path.abspath(target))
    if target.is_dir() and any(target.iterdir()):
        _check_there(target, wanted, part_size, progress)
        return target
    if os.path.lexists(target) and not (target.is_dir() and not target.is_symlink()):
        raise InTheWay(f"{target} is no folder: name another one")
    work = target.with_name(f".{target.name}.part")
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work):
        _sweep(work, {entry["path"] for entry in wanted})
        parallel.run(_jobs(place, prefix, wanted, part_size, work, progress), WORKERS)
        _settle(work, wanted)
        os.rename(work, target)
    return target


def _check_there(target: Path, wanted: Sequence[Mapping[str, Any]], part_size: int, progress: Progress) -> None:
    for entry in wanted:
        path = target / entry["path"]
        fits = path.is_file() and path.stat().st_size == entry["size"]
        with path.open("rb") if fits else open(os.devnull, "rb") as file:
            for number, (_, length) in enumerate(_parts(entry["size"], part_size)):
                fits = fits and _hash(file.fileno(), number * part_size, length) == entry["sha256"][number]
                progress(length if fits else 0)
        if not fits:
            raise InTheWay(f"{target} holds something else than this checkpoint: name another folder")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{folder} is being downloaded into by another process: wait for it") from None
        yield
    finally:
        os.close(descriptor)


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


def _parts(size: int, part_size: int) -> Iterator[tuple[int, int]]:
    """(number, length) of each part."""
    for number in range(-(-size // part_size)):
        yield number, min(part_size, size - number * part_size)


def _jobs(
    place: Place,
    prefix: str,
    wanted: Sequence[Mapping[str, Any]],
    part_size: int,
    work: Path,
    progress: Progress,
) -> Iterator[Callable[[], object]]:
    for entry in wanted:
        path = work / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        try:
            old = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, entry["size"])
        finally:
            os.close(descriptor)
        for number, length in _parts(entry["size"], part_size):
            begins = number * part_size

            def job(
                entry: Mapping[str, Any] = entry, path: Path = path, number: int = number, length: int = length,
                begins: int = begins, may_be_there: bool = begins < old,
            ) -> None:  # fmt: skip
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    if not (may_be_there and _hash(file, begins, length) == entry["sha256"][number]):
                        _get(place, prefix, entry, number, begins, length, file)
                finally:
                    os.close(file)
                progress(length)

            yield job


def _hash(file: int, begins: int, length: int) -> str:
    digest = sha256()
    while length and (chunk := os.pread(file, min(CHUNK, length), begins)):
        digest.update(chunk)
        begins, length = begins + len(chunk), length - len(chunk)
    return digest.hexdigest()


def _get(place: Place, prefix: str, entry: Mapping[str, Any], number: int, begins: int, length: int, file: int) -> None:
    for _ in range(TRIES):
        digest = sha256()

        def begin() -> Take:
            nonlocal digest
            digest, at = sha256(), begins

            def take(chunk: bytes) -> None:
                nonlocal at
                digest.update(chunk)
                written = 0
                while written < len(chunk):
                    written += os.pwrite(file, memoryview(chunk)[written:], at + written)
                at += len(chunk)

            return take

        try:
            place.read(prefix, entry["key"], int(entry["offset"]) + begins, length, begin)
        except Missing:
            raise Missing(f"{entry['path']} is not in the store any more: choose another checkpoint") from None
        if digest.hexdigest() == entry["sha256"][number]:
            return
    raise CheckpointCorrupt(f"{entry['path']} is not what was written (part {number + 1} of {len(entry['sha256'])})")


def _settle(work: Path, wanted: Sequence[Mapping[str, Any]]) -> None:
    """Files as they were saved, durable before the folder gets its name."""
    folders = {work}
    for entry in wanted:
        path = work / entry["path"]
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, (int(entry.get("mode", 0o644)) & 0o755) | 0o600)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        folders |= {parent for parent in path.parents if parent.is_relative_to(work)}
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
