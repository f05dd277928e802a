"""The journal of a Memory on disk: one line a write, in the kernel's hands before the write happens.

What was acknowledged survives a kill of the process at once, and of the machine after `flush`. A torn last
line is a write that nobody was told of; a broken line before the last is refused, since whatever follows it
was decided upon it. A write that the disk does not take does not happen.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trialkeeper_operator.cluster.memory import Admit, Memory
from trialkeeper_operator.reconcile.ports import Object, Unavailable

COMPACT_FACTOR = 4  # times as many lines as objects are worth a rewrite
COMPACT_LEAST = 1000  # lines that are never worth one


class JournalCorrupt(ValueError):
    """Raised when a journal has a broken line in its middle."""

    def __init__(self, path: Path, line: int) -> None:
        super().__init__(f"{path}: line {line} is broken: set the file aside to start anew (trialkeeper run --fresh)")


class JournalUnwritable(Unavailable, OSError):
    """Raised when the disk does not take a write, which therefore has not happened; it may be tried again."""

    def __init__(self, path: Path, error: OSError) -> None:
        Unavailable.__init__(self, f"{path} cannot be written ({error.strerror}): make room on its disk")
        self.errno, self.strerror, self.filename = error.errno, error.strerror, str(path)

    def __str__(self) -> str:
        return str(self.args[0])


class JournalGone(RuntimeError):
    """Raised when the file has been deleted, or another one is in its place (`replaced`): nothing is kept any more."""

    def __init__(self, path: Path, *, replaced: bool) -> None:
        self.replaced = replaced
        what = "replaced" if replaced else "deleted"
        then = "goes on with what is there now" if replaced else "begins anew"
        super().__init__(
            f"{path.parent} was {what} while it ran, or {path.name} in it: its trainers have been stopped, "
            f"and the same command {then}"
        )


class Replayed(NamedTuple):
    """What a journal says: its objects, the newest resourceVersion, its lines, and the bytes of whole ones."""

    objects: list[Object]
    version: int
    lines: int
    whole: int


def _line(op: str, obj: Object) -> bytes:
    if op == "PUT":
        return _encoded({"put": obj})
    meta = obj["metadata"]
    return _encoded({"delete": [obj["kind"], meta["namespace"], meta["name"]], "version": meta["resourceVersion"]})


def _encoded(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def replay(path: Path) -> Replayed:
    """Read a journal, as far as its lines are whole.

    :raises JournalCorrupt: if a line before the last is broken.
    """
    objects: dict[tuple[str, ...], Object] = {}
    version = count = whole = 0
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry: dict[str, Any] = json.loads(line)
            if "delete" in entry:
                objects.pop(tuple(entry["delete"]), None)
                version = max(version, int(entry["version"]))
            else:
                obj = entry["put"]
                meta = obj["metadata"]
                version = max(version, int(meta["resourceVersion"]))
                objects[(obj["kind"], meta["namespace"], meta["name"])] = obj
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if number < len(lines) - 1:
                raise JournalCorrupt(path, number) from None
            break
        count, whole = number, whole + len(line) + 1
    return Replayed(list(objects.values()), version, count, whole)


class Journal:
    """Appends every write of a Memory to a file, which is cut to `whole` bytes first. Use `attach` to get both."""

    def __init__(self, path: Path, lines: int = 0, whole: int = 0) -> None:
        self.path = path
        self.lines = lines
        self._whole = whole  # bytes of whole lines
        self._torn = True  # whether there may be something behind them
        self._dirty = True
        self._memory: Memory | None = None
        self._worth = COMPACT_LEAST  # lines from which a rewrite is thought of
        self._file = _opened(path)
        _sync_folder(path)

    def keep(self, memory: Memory) -> None:
        """Rewrite this memory, whenever the journal has become much longer than it."""
        self._memory = memory

    def record(self, op: Literal["PUT", "DELETE"], obj: Object) -> None:
        """Append one write.

        :raises JournalUnwritable: if the disk does not take it; the journal is then as it was.
        :raises JournalGone: if nobody would find it.
        """
        self.check()
        self.compact_if_long()
        line = _line(op, obj)
        try:
            if self._torn:
                os.ftruncate(self._file, self._whole)
                self._torn = False
            _write(self._file, line)
        except OSError as error:
            self._torn = True
            raise JournalUnwritable(self.path, error) from error
        self.lines += 1
        self._whole += len(line)
        self._dirty = True

    def check(self) -> None:
        """Look whether the file is still the one that is written to.

        :raises JournalGone: if it is not.
        """
        try:
            there = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise JournalGone(self.path, replaced=False) from None
        if not os.path.samestat(there, os.fstat(self._file)):
            raise JournalGone(self.path, replaced=True)

    def replaced(self) -> bool:
        """Whether another file is in its place, which somebody else may write."""
        try:
            self.check()
        except JournalGone as gone:
            return gone.replaced
        return False

    def flush(self) -> None:
        """Make everything recorded durable.

        :raises OSError: if the disk has lost it.
        """
        if self._dirty:
            os.fsync(self._file)
            self._dirty = False

    def fileno(self) -> int:
        """The descriptor that is written to; a rewrite changes it."""
        return self._file

    def close(self) -> None:
        """Flush, and let go of the file."""
        try:
            self.flush()
        finally:
            os.close(self._file)

    def compact_if_long(self) -> None:
        """Rewrite the file if most of its lines say what is no longer so."""
        memory = self._memory
        if memory is None or self.lines <= self._worth:
            return
        objects = list(memory.objects())
        if self.lines <= COMPACT_FACTOR * len(objects):
            return
        try:
            self.compact(objects, memory.version)
            self._worth = COMPACT_LEAST
        except OSError:
            # The longer file says the same, and is gone on with where there is no room for another.
            self._worth = 2 * self.lines

    def compact(self, objects: Iterable[Object], version: int) -> None:
        """Replace the file by one that holds these objects alone: written aside, durable, and only then renamed.

        :raises OSError: if it cannot be written; the journal is then as it was.
        """
        lines = [_line("PUT", obj) for obj in objects]
        # The newest version may have been that of an object which is gone.
        lines.append(_encoded({"delete": ["", "", ""], "version": str(version)}))
        new = self.path.with_name(self.path.name + ".new")
        new.unlink(missing_ok=True)
        file = _opened(new)
        try:
            _write(file, b"".join(lines))
            os.fsync(file)
            os.replace(new, self.path)
        except OSError:
            os.close(file)
            new.unlink(missing_ok=True)
            raise
        os.close(self._file)
        self._file, self.lines, self._whole, self._torn = file, len(lines), sum(map(len, lines)), False
        self._dirty = False
        _sync_folder(self.path)


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def attach(
    path: Path,
    *,
    now: Callable[[], float],
    ids: Callable[[], str] = lambda: str(uuid.uuid4()),
    admit: Mapping[str, Admit] | None = None,
) -> tuple[Memory, Journal]:
    """The Memory that a journal describes, and the journal that it goes on in; the rest is as for a Memory.

    A torn last line is cut off; a long journal is rewritten; what has lost its owner is collected.

    :raises JournalCorrupt: if a line before the last is broken.
    :raises OSError: if the file cannot be read, or not be opened for writing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = replay(path)
    journal = Journal(path, found.lines, found.whole)
    memory = Memory(now=now, ids=ids, admit=admit, commit=journal.record)
    memory.restore(found.objects, found.version)
    journal.keep(memory)
    journal.compact_if_long()
    memory.collect()
    return memory, journal
