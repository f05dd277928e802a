"""Actors over one store that are stopped before each of its operations: any interleaving, told by a seed.

An actor that is killed does nothing any more, not even what its `finally` clauses say; one that is not chosen for a
while is frozen, which is what a zombie is.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trialkeeper.manifest import Entry
from trialkeeper.store import AlreadyThere, Appender, Missing, Store


class Killed(BaseException):
    """Raised in an actor at its next operation once it is killed."""


_here = threading.local()


def here() -> Actor | None:
    """The actor that this is called in."""
    return getattr(_here, "actor", None)


class Actor:
    """A thread that goes one operation further whenever it is told to."""

    def __init__(self, name: str, work: Callable[[Actor], object]) -> None:
        self.name, self.over, self.killed = name, False, False
        self.failure: BaseException | None = None
        self._go, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()
        self._arrived.acquire()

    def _run(self, work: Callable[[Actor], object]) -> None:
        _here.actor = self
        try:
            self.gate()
            work(self)
        except Killed:
            pass
        except BaseException as failure:
            self.failure = failure
        self.over = True
        self._arrived.release()

    def gate(self) -> None:
        """Wait to be told to go on."""
        if self.killed:
            raise Killed
        self._arrived.release()
        self._go.acquire()
        if self.killed:
            raise Killed

    def step(self) -> None:
        """Let it do one operation more, and wait until it has come to the next."""
        if not self.over:
            self._go.release()
            self._arrived.acquire()
        if self.failure is not None:
            raise self.failure

    def kill(self) -> None:
        self.killed = True
        self.step()

    def finish(self) -> None:
        while not self.over:
            self.step()


class Stepping:
    """A store whose every operation is one step of an actor; `watch` is called when one is about to be done."""

    def __init__(self, store: Store, actor: Actor, watch: Callable[[], object] = lambda: None) -> None:
        self._store, self._actor, self._watch = store, actor, watch

    def _gate(self) -> None:
        self._actor.gate()
        self._watch()

    def put_new(self, key: str, data: bytes) -> None:
        self._gate()
        self._store.put_new(key, data)

    def get(self, key: str) -> bytes:
        self._gate()
        return self._store.get(key)

    def list(self, prefix: str) -> list[str]:
        self._gate()
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        self._gate()
        self._store.delete(key)

    def lines(self, key: str) -> Iterator[bytes]:
        self._gate()
        return self._store.lines(key)

    def append(self, key: str) -> Appender:
        return self._store.append(key)

    def keep(self, folder: Path, key: str, older: Sequence[Entry]) -> Sequence[Entry]:
        self._gate()
        return self._store.keep(folder, key, older)

    def fetch(self, key: str, files: Sequence[Entry]) -> Path:
        self._gate()
        return self._store.fetch(key, files)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class MemoryStore:
    """One prefix of a dictionary."""

    def __init__(self, objects: dict[str, bytes], prefix: str) -> None:
        self._objects, self._top = objects, f"{prefix}/"

    def put_new(self, key: str, data: bytes) -> None:
        if self._objects.setdefault(self._top + key, data) is not data:
            raise AlreadyThere(key)

    def get(self, key: str) -> bytes:
        try:
            return self._objects[self._top + key]
        except KeyError:
            raise Missing(key) from None

    def list(self, prefix: str) -> list[str]:
        found = [key for key in list(self._objects) if key.startswith(self._top + prefix)]
        return sorted(key.removeprefix(self._top) for key in found)

    def delete(self, key: str) -> None:
        for full in [self._top + key, *(self._top + k for k in self.list(f"{key}/"))]:
            self._objects.pop(full, None)

    def lines(self, key: str) -> Iterator[bytes]:
        return iter(())

    def append(self, key: str) -> Appender:
        raise NotImplementedError

    def sizes(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        raise NotImplementedError

    def keep(self, folder: Path, key: str, older: Sequence[Entry]) -> Sequence[Entry]:
        raise NotImplementedError

    def fetch(self, key: str, files: Sequence[Entry]) -> Path:
        raise NotImplementedError


def shuffled(actors: list[Actor], chance: random.Random, most: int) -> None:
    """Let actors go on in any order for at most so many steps; runs of one actor are long and short ones."""
    for _ in range(most):
        alive = [actor for actor in actors if not actor.over]
        if not alive:
            return
        actor = chance.choice(alive)
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            actor.step()
