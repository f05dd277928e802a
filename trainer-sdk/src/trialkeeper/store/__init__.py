"""Where checkpoints, results and last words of one trial are kept: a tiny Protocol, and what it raises.

Keys are relative to the trial's prefix and made by `contract`. A key is written once and never overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from trialkeeper.manifest import Entry


class AlreadyThere(Exception):
    """Raised by `put_new` when the key exists."""


class Missing(KeyError):
    """Raised when there is nothing under a key."""


class Unreachable(OSError):
    """Raised when nobody answers, or access is refused: it says nothing about what is stored."""


class Denied(Unreachable):
    """Raised when access is refused, or there are no keys: to ask again is of no use."""


class Appender(Protocol):
    """A file of lines that grows; it is made by the first write.

    What could not be written is kept and goes first the next time, so that a full store leaves no hole.
    """

    def write(self, line: bytes) -> None:
        """Append one whole line. It survives the process at once, the pod and the machine after `sync`.

        :raises OSError: if it could not be written yet.
        """
        ...

    def sync(self) -> None:
        """Return when everything written is durable.

        :raises OSError: if something is not.
        """
        ...

    @property
    def remote(self) -> bool:
        """Whether what was written has to be sent, by `sync`, before the pod's end does no harm to it."""
        ...

    @property
    def size(self) -> int:
        """Bytes of whole lines that were written, by whomever."""
        ...


class Store(Protocol):
    """One trial's prefix. Every method may raise OSError when the store cannot be reached or is full."""

    def put_new(self, key: str, data: bytes) -> None:
        """Store data under a new key, durably and whole or not at all.

        :raises AlreadyThere: if the key exists; of many racing writers exactly one is spared.
        """
        ...

    def get(self, key: str) -> bytes:
        """:raises Missing: if there is nothing."""
        ...

    def list(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`, sorted. A store that cannot be read is an OSError, never an empty one."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key, or a folder with all that is in it; nothing if there is nothing."""
        ...

    def append(self, key: str) -> Appender:
        """Open a file of lines for appending."""
        ...

    def lines(self, key: str) -> Iterator[bytes]:
        """The whole lines that were appended under a key, the last one first; none if there is nothing."""
        ...

    def sizes(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        """(key, bytes, when it was written in seconds since the epoch) of all keys that begin with `prefix`.

        Unlike `list`, with what a crash has left half written, and in no order. A store that cannot be read is an
        OSError. In a directory, several keys may be links to one file: the bytes are those of each of them.
        """
        ...

    def keep(self, folder: Path, key: str, older: Sequence[Entry]) -> Sequence[Entry]:
        """Take the files of a local folder under data key `key`; what the manifest says of each of them.

        They are durable on return. The given folder is left alone, but its files must not be changed any more: the
        store's may be the same. `older`: entries of
        committed checkpoints of this prefix, the newest first; a file with the content of one is not stored again.

        :raises ValueError: if the folder cannot be a checkpoint.
        """
        ...

    def fetch(self, key: str, files: Sequence[Entry]) -> Path:
        """A local folder with the files of a checked manifest with data key `key`, to be read only.

        Every part of them was compared with its hash, once in this pod.

        :raises Missing: if one of them is gone.
        :raises CheckpointCorrupt: if one of them is not what was committed.
        """
        ...
