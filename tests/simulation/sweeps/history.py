"""Every change of a memory cluster in order, and sources that tell it from any revision on, late or at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

from trialkeeper_operator.cluster.body import Key, key_of
from trialkeeper_operator.reconcile.loop import KINDS
from trialkeeper_operator.reconcile.ports import Event, Object


class History:
    """What has been stored so far of the kinds that are watched; `committed` is for Memory."""

    def __init__(self) -> None:
        self._told: list[Event] = []
        self._there: set[Key] = set()
        self._waiting: list[asyncio.Event] = []

    def committed(self, verb: Literal["PUT", "DELETE"], obj: Object) -> None:
        key = key_of(obj)
        if key[0] not in KINDS:
            return
        if verb == "DELETE":
            self._there.discard(key)
            self._told.append(Event(key[0], "DELETED", obj))
        else:
            self._told.append(Event(key[0], "MODIFIED" if key in self._there else "ADDED", obj))
            self._there.add(key)
        for waiting in self._waiting:
            waiting.set()

    def __len__(self) -> int:
        return len(self._told)

    def at(self, position: int) -> list[Object]:
        """All objects as they were after so many changes."""
        objects: dict[Key, Object] = {}
        for event in self._told[: max(0, position)]:
            if event.type == "DELETED":
                objects.pop(key_of(event.object), None)
            else:
                objects[key_of(event.object)] = event.object
        return list(objects.values())

    async def since(self, position: int, lag: float) -> AsyncIterator[Event]:
        """ADDED for all that was there then; after `lag` seconds every change that came later, in order."""
        position = max(0, position)
        for obj in self.at(position):
            yield Event(obj["kind"], "ADDED", obj)
        await asyncio.sleep(lag)
        news = asyncio.Event()
        self._waiting.append(news)
        try:
            while True:
                news.clear()
                while position < len(self._told):
                    position += 1
                    yield self._told[position - 1]
                await news.wait()
        finally:
            self._waiting.remove(news)


class Telling:
    """A Source that begins `behind` changes ago, and hears of those after it `lag` seconds later."""

    def __init__(self, history: History, behind: int = 0, lag: float = 0.0) -> None:
        self._history, self._behind, self._lag = history, behind, lag

    def events(self) -> AsyncIterator[Event]:
        return self._history.since(len(self._history) - self._behind, self._lag)
