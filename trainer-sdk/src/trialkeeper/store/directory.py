"""A store that is a directory: checkpoints are plain folders, a commit is a hard link.

`os.link` is the one call that creates a name with its content whole and fails if the name exists. A rename
would overwrite silently, an exclusive open would show a file that is still being written.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trialkeeper import parallel
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.manifest import Entry
from trialkeeper.store import AlreadyThere, Missing
from trialkeeper.store.files import (
    CHUNK,
    WORKERS,
    File,
    hash_all,
    inventory,
    newest_by_path,
    once,
    opened,
    unchanged,
    verify,
)

if TYPE_CHECKING:
    from trialkeeper.store import Store

FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unreadable(error: OSError) -> None:
    """A folder that is not there is empty; one that cannot be read is not."""
    if not isinstance(error, FileNotFoundError):
        raise error


class Lines:
    """Appends by one write each, so that a line is in the kernel's hands whole when the process is killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._rest = bytearray()

    def write(self, line: bytes) -> None:
        self._rest += line
        self._flush()

    def sync(self) -> None:
        if self._rest or self._file >= 0:
            self._flush()
            os.fsync(self._file)
            return
        if not self._path.exists():
            return
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)  # another process is in the middle of writing
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @property
    def remote(self) -> bool:
        return False  # the kernel writes it out by itself

    @property
    def size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def close(self) -> None:
        """Let go of the file; the next write opens it again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _flush(self) -> None:
        if self._file < 0:
            self._open()
        while self._rest:
            del self._rest[: os.write(self._file, self._rest)]

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            # A line that went down with a machine must not take the next one with it.
            self._rest[:0] = b"\n"


class DirectoryStore:
    """One trial's prefix as the folder `root`; with a `scratch` folder, a checkpoint is verified once a pod."""

    def __init__(
        self, root: Path, scratch: Path | None = None, leave_by: Callable[[], float | None] = lambda: None
    ) -> None:
        self._root = Path(os.path.abspath(root))
        self._scratch, self._leave_by = scratch, leave_by

    def _out_of_time(self) -> bool:
        going = self._leave_by()
        return going is not None and time.monotonic() >= going

    def _path(self, key: str) -> Path:
        path = Path(os.path.normpath(self._root / key))
        inside = not os.path.isabs(key) and path.is_relative_to(self._root) and path != self._root
        if not inside or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._root)):
            raise ValueError(f"{key!r} is not a key: it leaves the trial's folder")
        return path

    def put_new(self, key: str, data: bytes) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        except FileExistsError as there:
            raise AlreadyThere(key) from there
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(path.parent)

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as none:
            raise Missing(key) from none

    def list(self, prefix: str) -> list[str]:
        folder = self._root / prefix.rpartition("/")[0]
        found = []
        for parent, _, names in os.walk(folder, onerror=_unreadable):
            relative = Path(parent).relative_to(self._root)
            found += [(relative / name).as_posix() for name in names if not name.startswith(".")]
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, key: str) -> None:
        path = self._path(key)
        if path.is_dir() and not path.is_symlink():
            import shutil

            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                if key.startswith("manifests/"):
                    fsync_folder(path.parent)  # it must not come back without its data

    def append(self, key: str) -> Lines:
        return Lines(self._path(key))

    def lines(self, key: str) -> Iterator[bytes]:
        try:
            data = self.get(key)
        except Missing:
            return
        yield from (line + b"\n" for line in reversed(data.split(b"\n")[:-1]))

    def sizes(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        for parent, _, names in os.walk(self._root / prefix.rpartition("/")[0], onerror=_unreadable):
            relative = Path(parent).relative_to(self._root)
            for name in names:
                key = (relative / name).as_posix()
                if key.startswith(prefix):
                    try:
                        stat = os.lstat(self._root / key)
                    except FileNotFoundError:
                        continue  # removed meanwhile
                    # A trainer may have copied an old file with its time; the inode cannot be older than it is.
                    yield key, stat.st_size, max(stat.st_mtime, stat.st_ctime)

    def keep(self, folder: Path, key: str, older: Sequence[Entry]) -> Sequence[Entry]:
        import shutil

        files = inventory(folder)
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, path, copy_function=_placed)
        known = newest_by_path(older)

        def store(file: File) -> None:
            file.local = path / file.path
            before = known.get(file.path)
            if before is None or not unchanged(file, before) or not self._linked(file, before):
                hash_all(file)
                with opened(file.local) as descriptor:
                    os.fsync(descriptor)

        parallel.run((partial(store, file) for file in files), WORKERS)
        for parent, _, _ in os.walk(path):
            fsync_folder(Path(parent))
        fsync_folder(path.parent)
        return [file.entry(f"{key}/{file.path}") for file in files]

    def _linked(self, file: File, before: Entry) -> bool:
        """Replace a file by a link to its older copy, if that still is one; both are one file from then on."""
        temporary = file.local.with_name(f".{os.urandom(8).hex()}")
        try:
            os.link(self._path(before["key"]), temporary, follow_symlinks=False)
        except (OSError, ValueError):
            return False  # it is gone, or has too many links: then there are two copies
        try:
            if not _same(temporary, file.local):
                return False
            os.rename(temporary, file.local)
            hash_all(file)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def fetch(self, key: str, files: Sequence[Entry]) -> Path:
        path = self._path(key)
        if not path.is_dir():
            raise Missing(key)
        for entry in files:
            try:
                there = self._path(f"{key}/{entry['path']}") == self._path(entry["key"]) and not entry["offset"]
            except ValueError:
                there = False  # by a link
            if not there:
                raise CheckpointCorrupt(f"{entry['path']} is not in the folder of its checkpoint")
        check = partial(verify, path, files)
        if self._scratch is None:
            check()
        else:
            once(self._scratch / "fetched" / key, path, files, check, self._out_of_time)
        return path


def _placed(source: str, target: str) -> None:
    """Give a file a second name, or copy it if it is in another file system."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        _copy(source, target)


def _copy(source: str, target: str) -> None:
    import fcntl
    import shutil

    with open(source, "rb") as old, open(target, "xb") as new:
        try:
            fcntl.ioctl(new, FICLONE, old.fileno())
        except OSError:
            shutil.copyfile(source, target)
    shutil.copymode(source, target)


def _same(one: Path, other: Path) -> bool:
    """Whether two files are the same in size, mode and every byte: what was committed once may have rotted since."""
    with opened(one) as a, opened(other) as b:
        first, second = os.fstat(a), os.fstat(b)
        if (first.st_size, first.st_mode) != (second.st_size, second.st_mode):
            return False
        return all(os.pread(a, CHUNK, at) == os.pread(b, CHUNK, at) for at in range(0, first.st_size, CHUNK))


if TYPE_CHECKING:
    _store: Store = DirectoryStore(Path())
