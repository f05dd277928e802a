"""Lines in a bucket, where nothing can be appended: kept in a local file, sent as one object for each `sync`.

The objects are `key/000001`, `key/000002` and so on; together they are the file. A local file is removed once
its object is there, so what an earlier life of this pod left unsent is there to be sent first.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trialkeeper.store import AlreadyThere
from trialkeeper.store.directory import Lines

if TYPE_CHECKING:
    from trialkeeper.store.s3 import S3Store

INTERVAL = 15.0  # seconds between two sendings that nobody waits for: what a pod takes with it when it is killed


class Segments:
    """The lines of one key; `folder` holds what is not in the bucket yet."""

    def __init__(self, store: S3Store, key: str, folder: Path) -> None:
        self._store, self._key, self._folder = store, key, folder
        self._number = 0  # of the segment that was sent last
        self._open: Lines | None = None
        self._writing = threading.Lock()  # never held while something is sent
        self._sending = threading.Lock()
        self._sent_at = time.monotonic()

    def write(self, line: bytes) -> None:
        with self._writing:
            if self._open is None:
                self._open = Lines(self._folder / f"{self._next_local():06d}")
            self._open.write(line)

    def sync(self) -> None:
        with self._sending:
            self._sent_at = time.monotonic()
            with self._writing:
                if self._open is not None:
                    self._open.sync()
                    self._open.close()
                    self._open = None
                unsent = self._unsent()
            for path in unsent:
                self._send(path)

    def nudge(self) -> None:
        if time.monotonic() - self._sent_at < INTERVAL:
            return
        self._sent_at = time.monotonic()
        with contextlib.suppress(RuntimeError):  # no new thread while the interpreter shuts down
            threading.Thread(target=self._sync_quietly, name="trialkeeper-results", daemon=True).start()

    def _sync_quietly(self) -> None:
        with contextlib.suppress(OSError):  # said by whoever waits for it
            self.sync()

    def _unsent(self) -> list[Path]:
        return sorted(self._folder.iterdir()) if self._folder.is_dir() else []

    def _next_local(self) -> int:
        return max((int(path.name) for path in self._unsent()), default=0) + 1

    def _send(self, path: Path) -> None:
        data = path.read_bytes()
        if not self._number:
            self._number = max((int(key.rpartition("/")[2]) for key in self._store.list(f"{self._key}/")), default=0)
            if self._number and self._store.get(self._name(self._number)) == data:
                path.unlink()  # sent by an earlier life, which had no time to note it
                return
        while True:
            self._number += 1
            try:
                self._store.put_new(self._name(self._number), data)
            except AlreadyThere:
                continue
            except OSError:
                self._number -= 1
                raise
            path.unlink()
            return

    def _name(self, number: int) -> str:
        return f"{self._key}/{number:06d}"
