"""The journal of a Memory on disk: one line a write, in the kernel's hands before anybody is told of it.

What was acknowledged survives a kill of the process at once, and of the machine after `flush`. A torn last
line is a write that nobody was told of; a broken line before the last is refused, since whatever follows it
was decided upon it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import Object

COMPACT_FACTOR = 4  # times as many lines as objects are worth a rewrite
COMPACT_LEAST = 1000


class JournalCorrupt(ValueError):
    """Raised when a journal has a broken line in its middle."""

    def __init__(self, path: Path, line: int) -> None:
        super().__init__(f"{path}: line {line} is broken: set the file aside to start anew (trialkeeper run --fresh)")


def _line(op: str, obj: Object) -> bytes:
    if op == "DELETE":
        meta = obj["metadata"]
        key = [obj["kind"], meta.get("namespace", ""), meta["name"]]
        return json.dumps({"delete": key, "version": meta["resourceVersion"]}, separators=(",", ":")).encode() + b"\n"
    return json.dumps({"put": obj}, separators=(",", ":")).encode() + b"\n"


def replay(path: Path) -> tuple[list[Object], int, int, int]:
    """(objects, newest resourceVersion, lines read, bytes of whole lines) of a journal.

    :raises JournalCorrupt: if a line before the last is broken.
    """
    objects: dict[tuple[str, ...], Object] = {}
    version = count = whole = 0
    data = path.read_bytes() if path.exists() else b""
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry: dict[str, Any] = json.loads(line)
            if "delete" in entry:
                objects.pop(tuple(entry["delete"]), None)
                version = max(version, int(entry["version"]))
            else:
                obj = entry["put"]
                meta = obj["metadata"]
                objects[(obj["kind"], meta.get("namespace", ""), meta["name"])] = obj
                version = max(version, int(meta["resourceVersion"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            if number < len(lines) - 1:
                raise JournalCorrupt(path, number) from None
            break
        count, whole = number, whole + len(line) + 1
    return list(objects.values()), version, count, whole


class Journal:
    """Appends every write of a Memory to a file. Use `attach` to get both."""

    def __init__(self, path: Path, lines: int) -> None:
        self.path = path
        self.lines = lines
        self._memory: Memory | None = None
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._dirty = True

    def record(self, op: Literal["PUT", "DELETE"], obj: Object) -> None:
        """Append one write."""
        line = _line(op, obj)
        written = os.write(self._file, line)
        while written < len(line):
            written += os.write(self._file, line[written:])
        self.lines += 1
        self._dirty = True

    def flush(self) -> None:
        """Make everything recorded durable."""
        if self._dirty:
            os.fsync(self._file)
            self._dirty = False

    def close(self) -> None:
        self.flush()
        os.close(self._file)


def attach(path: Path, **memory: Any) -> tuple[Memory, Journal]:
    """The Memory that a journal describes, and the journal that it goes on in.

    A torn last line is cut off; a long journal is rewritten as its objects, by a rename.

    :raises JournalCorrupt: if a line before the last is broken.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    objects, version, lines, whole = replay(path)
    if lines > max(COMPACT_LEAST, COMPACT_FACTOR * len(objects)):
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            for obj in objects:
                file.write(_line("PUT", obj))
            file.write(json.dumps({"delete": ["", "", ""], "version": str(version)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        lines = len(objects) + 1
    elif path.exists() and path.stat().st_size > whole:
        os.truncate(path, whole)
    journal = Journal(path, lines)
    store = Memory(**memory, committed=journal.record)
    store.restore(objects, version)
    return store, journal
