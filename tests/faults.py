"""Faults, as wrappers of the ports: whatever a network, an API server or a crash can do to a call or to a watch.

What is drawn is the test's: each wrapper asks it call by call, or event by event. Wrappers may be stacked.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from trialkeeper_operator.reconcile.ports import Cluster, Conflict, Event, Object, Source, Unavailable

T = TypeVar("T")


class Fault(enum.Enum):
    """What happens to one call. CONFLICT is for writes, a read goes through."""

    CONFLICT = "refused: resourceVersion, or a quota that others count with at the same time"
    THROTTLED = "refused: 429, come again in five seconds"
    UNAVAILABLE = "no answer, not applied"
    APPLIED_UNAVAILABLE = "applied, the answer is lost"
    CRASH_BEFORE = "the operator dies before it"
    CRASH_AFTER = "the operator dies after it"


class Crash(BaseException):
    """The operator's process is gone; nothing in it may catch this."""


@dataclass(frozen=True)
class Call:
    """One call of a Cluster, as a fault's decider sees it."""

    number: int
    verb: str
    kind: str
    name: str

    @property
    def writes(self) -> bool:
        """Whether it can change anything."""
        return self.verb not in ("get", "list")


class FaultyCluster:
    """A Cluster whose calls fail as `decide` says; `calls` has all of them."""

    def __init__(self, inner: Cluster, decide: Callable[[Call], Fault | None]) -> None:
        self._inner, self._decide = inner, decide
        self.calls: list[Call] = []

    async def _call(self, verb: str, kind: str, name: str, doing: Callable[[], Awaitable[T]]) -> T:
        call = Call(len(self.calls), verb, kind, name)
        self.calls.append(call)
        fault = self._decide(call)
        if fault is Fault.CONFLICT and call.writes:
            raise Conflict(f"{verb} {kind} {name}: drawn")
        if fault is Fault.THROTTLED:
            raise Unavailable(f"{verb} {kind} {name}: 429 drawn", 5.0)
        if fault is Fault.UNAVAILABLE:
            raise Unavailable(f"{verb} {kind} {name}: drawn")
        if fault is Fault.CRASH_BEFORE:
            raise Crash
        done = await doing()
        if fault is Fault.CRASH_AFTER:
            raise Crash
        if fault is Fault.APPLIED_UNAVAILABLE:
            raise Unavailable(f"{verb} {kind} {name}: applied, answer drawn away")
        return done

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return await self._call("get", kind, name, lambda: self._inner.get(kind, namespace, name))

    async def list(
        self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Object]:
        async def all_of_them() -> Sequence[Object]:
            return [obj async for obj in self._inner.list(kind, namespace, labels)]

        for obj in await self._call("list", kind, "", all_of_them):
            yield obj

    async def create(self, body: Object, *, dry_run: bool = False) -> Object:
        return await self._call("create", *_what(body), lambda: self._inner.create(body, dry_run=dry_run))

    async def put(self, body: Object) -> Object:
        return await self._call("put", *_what(body), lambda: self._inner.put(body))

    async def put_status(self, body: Object) -> Object:
        return await self._call("put_status", *_what(body), lambda: self._inner.put_status(body))

    async def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        version: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        def doing() -> Awaitable[None]:
            return self._inner.delete(kind, namespace, name, uid=uid, version=version, grace_seconds=grace_seconds)

        await self._call("delete", kind, name, doing)


def _what(body: Object) -> tuple[str, str]:
    return body["kind"], body["metadata"]["name"]


class LossySource:
    """A Source from which `drop` takes events away: what a broken watch never told."""

    def __init__(self, inner: Source, drop: Callable[[Event], bool]) -> None:
        self._inner, self._drop = inner, drop

    async def events(self) -> AsyncIterator[Event]:
        async for event in self._inner.events():
            if not self._drop(event):
                yield event


class RepeatingSource:
    """A Source that tells some events twice: what a watch does that has been opened anew."""

    def __init__(self, inner: Source, repeat: Callable[[Event], bool]) -> None:
        self._inner, self._repeat = inner, repeat

    async def events(self) -> AsyncIterator[Event]:
        async for event in self._inner.events():
            yield event
            if self._repeat(event):
                yield event


class LaggingSource:
    """A Source that tells each event `lag` seconds late; the order stays, so one that is late delays the rest."""

    def __init__(self, inner: Source, lag: Callable[[Event], float]) -> None:
        self._inner, self._lag = inner, lag

    async def events(self) -> AsyncIterator[Event]:
        async for event in self._inner.events():
            if (seconds := self._lag(event)) > 0:
                await asyncio.sleep(seconds)
            yield event
