"""Lines in a bucket, where nothing can be appended: written to a local file, sent as one object for each `sync`.

The objects are `key/000001`, `key/000002` and so on; together they are the file, so that the sum of their sizes says
what is left to be sent. Whoever writes need not be the process that sends.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from trialkeeper.store import AlreadyThere
from trialkeeper.store.directory import Lines

if TYPE_CHECKING:
    from trialkeeper.store.s3 import S3Store

INTERVAL = 15.0  # seconds between two sendings that nobody waits for: what a pod takes with it when it is killed
LIMIT = 64 << 20  # bytes of one object


class Segments:
    """The lines of one key, and the local file that they are in."""

    def __init__(self, store: S3Store, key: str, path: Path) -> None:
        self._store, self._key, self._path = store, key, path
        self._lines = Lines(path)
        self._sending = threading.Lock()
        self._number, self._sent = -1, 0  # of the newest object, -1: to be asked; bytes in all of them

    @property
    def remote(self) -> bool:
        return True

    @property
    def size(self) -> int:
        return self._lines.size

    def write(self, line: bytes) -> None:
        self._lines.write(line)

    def sync(self) -> None:
        with self._sending:
            while data := self._unsent():
                self._send(data)

    def _unsent(self) -> bytes:
        """The next whole lines."""
        if not self._path.exists():
            return b""
        if self._number < 0:
            self._look()
        with self._path.open("rb") as file:
            file.seek(self._sent)
            data = file.read(LIMIT)
        return data[: data.rfind(b"\n") + 1]

    def _look(self) -> None:
        """Learn from the store what is there: of an earlier life of this pod, or of the upload process."""
        found = {name: size for name, size, *_ in self._store.sizes(f"{self._key}/")}
        self._number = max((int(name.rpartition("/")[2]) for name in found), default=0)
        self._sent = sum(found.values())

    def _send(self, data: bytes) -> None:
        try:
            self._store.put_new(f"{self._key}/{self._number + 1:06d}", data)
        except AlreadyThere:
            self._number = -1  # sent by somebody else meanwhile
        else:
            self._number, self._sent = self._number + 1, self._sent + len(data)
