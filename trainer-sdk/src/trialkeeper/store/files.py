"""A checkpoint's files on this machine: what there is, its hashes, and whether it is what a manifest says."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

from trialkeeper import parallel
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.manifest import Entry, part_count, part_size
from trialkeeper.store import Unreachable

CHUNK = 1 << 18  # bytes read at once: they are still in the processor's cache when they are hashed
WORKERS = 4  # files or parts at once; hashlib lets other threads run
PAUSE = 0.02  # seconds between two looks at a lock


@dataclass
class File:
    """A file below a folder; `sha256` fills up with the hashes of its parts, as they become known."""

    path: str  # below the folder
    size: int
    mode: int
    local: Path
    part: int = 0  # bytes
    sha256: list[str] = field(default_factory=list)

    def entry(self, key: str, offset: int = 0) -> Entry:
        """The manifest's entry, once all hashes are known."""
        return {
            "path": self.path,
            "size": self.size,
            "mode": self.mode,
            "partSize": self.part,
            "sha256": self.sha256,
            "key": key,
            "offset": offset,
        }


def inventory(folder: Path) -> list[File]:
    """Every file below a folder, in order of their paths.

    :raises ValueError: if it is empty, or has something in it that is neither a file nor a folder.
    :raises OSError: if it is not there, or something in it cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        for name in [*names, *(f for f in folders if (Path(parent) / f).is_symlink())]:
            local = Path(parent) / name
            relative = local.relative_to(folder).as_posix()
            if local.is_symlink() or not local.is_file():
                raise ValueError(f"checkpoint: {relative} is a link or no file: save copies of files only")
            stat = local.stat()
            found.append(File(relative, stat.st_size, stat.st_mode & 0o777, local))
    if not found:
        raise ValueError("checkpoint: the folder is empty: save() must write at least one file into it")
    part = part_size(sum(file.size for file in found))
    for file in found:
        file.part, file.sha256 = part, [""] * part_count(file.size, part)
    return sorted(found, key=lambda file: file.path)


def digest(descriptor: int, start: int, size: int) -> str:
    """sha256 of bytes of a file; fewer, if it is shorter."""
    found, buffer = sha256(), memoryview(bytearray(min(CHUNK, size)))
    end = start + size
    while start < end:
        read = os.preadv(descriptor, [buffer[: end - start]], start)
        if not read:
            break
        found.update(buffer[:read])
        start += read
    return found.hexdigest()


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of a file that is no link."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def hash_part(file: File, descriptor: int, number: int) -> None:
    """Fill in one part's hash, unless it is known."""
    if not file.sha256[number]:
        start = number * file.part
        file.sha256[number] = digest(descriptor, start, min(file.part, file.size - start))


def hash_all(file: File) -> None:
    """Fill in all hashes."""
    with opened(file.local) as descriptor:
        for number in range(len(file.sha256)):
            hash_part(file, descriptor, number)


def newest_by_path(older: Sequence[Entry]) -> dict[str, Entry]:
    """The first entry of each path: those that committed it last come first."""
    found: dict[str, Entry] = {}
    for entry in older:
        found.setdefault(entry["path"], entry)
    return found


def unchanged(file: File, older: Entry) -> bool:
    """Whether a file has the older one's content: part by part, up to the first that differs.

    What was hashed on the way is kept, so that no part of a changed file is hashed twice.
    """
    if file.size != older["size"]:
        return False
    same_parts = older["partSize"] == file.part
    with opened(file.local) as descriptor:
        for number, known in enumerate(older["sha256"]):
            if same_parts:
                hash_part(file, descriptor, number)
                found = file.sha256[number]
            else:
                start = number * older["partSize"]
                found = digest(descriptor, start, min(older["partSize"], file.size - start))
            if found != known:
                return False
    return True


def parts(entry: Entry) -> Iterator[tuple[int, int, str]]:
    """(start, bytes, sha256) of each part of an entry's file."""
    size = entry["partSize"]
    for number, known in enumerate(entry["sha256"]):
        yield number * size, min(size, entry["size"] - number * size), known


def verify(folder: Path, entries: Sequence[Entry]) -> None:
    """Check every file of a checkpoint, several at once.

    :raises CheckpointCorrupt: with the first one found that is missing, or not what was written.
    """

    def jobs() -> Iterator[Callable[[], None]]:
        for entry in entries:
            path = folder / entry["path"]
            if path.is_symlink() or not path.is_file():
                raise CheckpointCorrupt(f"{entry['path']} is missing")
            if path.stat().st_size != entry["size"]:
                raise CheckpointCorrupt(f"{entry['path']} has {path.stat().st_size} bytes instead of {entry['size']}")
            for start, size, known in parts(entry):
                yield partial(_check, entry, path, start, size, known)

    parallel.run(jobs(), WORKERS)


def _check(entry: Entry, path: Path, start: int, size: int, known: str) -> None:
    with opened(path) as descriptor:
        if digest(descriptor, start, size) != known:
            raise CheckpointCorrupt(f"{entry['path']} is not what was written")


# Once a pod.


def once(
    place: Path, folder: Path, entries: Sequence[Entry], work: Callable[[], None], out_of_time: Callable[[], bool]
) -> None:
    """Do `work`, after which `folder` holds what `entries` say, unless a process of this pod has done it before.

    While one is at it the others wait. `place`: a path in the scratch folder, beside which lock and marker are. The
    marker is written after the work, and is good for these files, as they lie there, and until the machine restarts:
    a crash in the middle leaves none.

    :raises Unreachable: if it is still being done when this process must leave.
    """
    marker = place.with_name(f"{place.name}.whole")
    with contextlib.ExitStack() as stack:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(opened(place.with_name(f"{place.name}.lock"), os.O_RDWR | os.O_CREAT))
        except OSError:
            work()  # every process for itself, if it needs no scratch folder
            return
        while not _locked(lock):
            if out_of_time():
                raise Unreachable(f"another process of this pod still fetches {place.name}")
            time.sleep(PAUSE)
        known = _read(marker)
        if known and known == _fingerprint(folder, entries):
            return
        work()
        with contextlib.suppress(OSError):
            marker.write_text(_fingerprint(folder, entries))


def forget(place: Path) -> None:
    """Remove a marker, and what it speaks of. The lock stays: another process may wait for it."""
    import shutil

    place.with_name(f"{place.name}.whole").unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _fingerprint(folder: Path, entries: Sequence[Entry]) -> str:
    """What tells these files from others, and from themselves after a change; empty if one is missing."""
    try:
        stats = [os.lstat(folder / entry["path"]) for entry in entries]
    except OSError:
        return ""
    seen = [(s.st_dev, s.st_ino, s.st_size, s.st_mode, s.st_mtime_ns) for s in stats]
    boot = _read(Path("/proc/sys/kernel/random/boot_id"))  # a file may be less than its name after a power cut
    return sha256(json.dumps([boot, seen, list(entries)]).encode()).hexdigest()
