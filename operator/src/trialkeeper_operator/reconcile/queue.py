"""A queue of keys: each at most once in it, each worked on by one worker at a time, each when it is due.

A key that is added while it is being worked on comes again afterwards. A failing key waits longer each
time, alone; the others do not notice.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

BACKOFF = 0.5  # seconds after the first failure of a key, doubled each time
BACKOFF_LIMIT = 300.0


class KeyedQueue(Generic[K]):
    """Due keys in order of arrival; `clock` gives monotonic seconds, the running loop's by default."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._ready: deque[K] = deque()
        self._queued: set[K] = set()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._since: dict[K, float] = {}
        self._order = itertools.count()
        self._wake = asyncio.Event()

    def add(self, key: K, after: float = 0.0) -> None:
        """Make a key due now, or after so many seconds unless it is due earlier anyway."""
        if after > 0:
            at = self._clock() + after
            if at < self._due.get(key, float("inf")):
                self._due[key] = at
                heapq.heappush(self._timers, (at, next(self._order), key))
                self._wake.set()
            return
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.append(key)
            self._since[key] = self._clock()
            self._wake.set()

    async def take(self) -> K:
        """The next due key; it must be given back by `done`."""
        while True:
            wait = self._fire()
            if self._ready:
                key = self._ready.popleft()
                self._queued.discard(key)
                self._since.pop(key, None)
                self._working.add(key)
                return key
            self._wake.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def done(self, key: K, *, failed: bool = False, limit: float = BACKOFF_LIMIT, least: float = 0.0) -> None:
        """Give a key back; a failed one comes again by itself, later each time, within `least` and `limit` seconds."""
        self._working.discard(key)
        again = key in self._again
        self._again.discard(key)
        if failed:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            self.add(key, max(least, min(BACKOFF * 2 ** min(failures - 1, 20), limit)))
        else:
            self._failures.pop(key, None)
            if again:
                self.add(key)

    def _fire(self) -> float | None:
        """Move keys whose time has come to the ready ones; seconds until the next one's."""
        now = self._clock()
        while self._timers:
            at, _, key = self._timers[0]
            if self._due.get(key) != at:
                heapq.heappop(self._timers)
            elif at <= now:
                heapq.heappop(self._timers)
                self.add(key)
            else:
                return at - now
        return None

    def backlog(self) -> tuple[int, float]:
        """How many keys are due, and for how many seconds the oldest has been."""
        oldest = self._since.get(self._ready[0]) if self._ready else None
        return len(self._ready), self._clock() - oldest if oldest is not None else 0.0

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Whether nothing is due and nothing is being worked on; timers may be pending."""
        self._fire()
        return not self._ready and not self._working
