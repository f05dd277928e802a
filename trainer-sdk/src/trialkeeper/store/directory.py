"""A store that is a directory: checkpoints are plain folders, a commit is a hard link.

`os.link` is the one call that creates a name with its content whole and fails if the name exists. A rename
would overwrite silently, an exclusive open would show a file that is still being written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trialkeeper.store import AlreadyThere, Missing

if TYPE_CHECKING:
    from trialkeeper.store import Store


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
        self._flush()
        os.fsync(self._file)

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
    """One trial's prefix as the folder `root`."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))

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
            path.unlink(missing_ok=True)

    def append(self, key: str) -> Lines:
        return Lines(self._path(key))

    def lines(self, key: str) -> Iterator[bytes]:
        try:
            data = self.get(key)
        except Missing:
            return
        yield from (line + b"\n" for line in reversed(data.split(b"\n")[:-1]))

    def take(self, folder: Path, key: str) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder, path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            import shutil

            shutil.copytree(folder, path)
            shutil.rmtree(folder, ignore_errors=True)
        for parent, _, names in os.walk(path):
            for name in names:
                descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            fsync_folder(Path(parent))
        fsync_folder(path.parent)

    def folder(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_dir():
            raise Missing(key)
        return path


if TYPE_CHECKING:
    _store: Store = DirectoryStore(Path())
