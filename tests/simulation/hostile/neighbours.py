"""A healthy experiment and a hostile one under one operator, in virtual time; the healthy one must not notice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from builders import NOW, experiment
from simulation import virtual
from simulation.sweeps.surroundings import Errors
from trialkeeper.contract import Message, MetricSummary
from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.admission import admission
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.loop import Operator
from trialkeeper_operator.reconcile.ports import ClusterError, Object

HEALTHY, HOSTILE = "exp", "odd"
LIMIT = 3000.0  # virtual seconds
WORDS = Message(end="complete", attempt=1, iteration=3, metrics={"loss": MetricSummary(0.1, 0.1, 0.5)})


class Neighbours:
    """One API server, one operator, a kubelet that ends every pod of the healthy experiment well.

    `statuses` are what the kubelet says of each pod of the other one, a few seconds apart; then it takes the pod away.
    `metadata` are what others write of it before. Without any of these the other one's pods end well, too.
    """

    def __init__(self, statuses: Sequence[Any] = (), metadata: Sequence[Mapping[str, Any]] = ()) -> None:
        numbers = itertools.count(1)
        self.memory = Memory(now=self.now, ids=lambda: f"{next(numbers):08d}-uid", admit=admission())
        self.operator = Operator(self.memory, self.memory, now=self.now)
        self.statuses, self.metadata = statuses, metadata

    def now(self) -> float:
        return NOW + asyncio.get_running_loop().time()

    async def apply(self, name: str, **spec: Any) -> Object:
        whole = {"maxTrials": 2, "parallelism": 1, **spec}
        return await self.memory.create({**experiment(**whole), "metadata": {"name": name, "namespace": "default"}})

    async def kubelet(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            async for event in self.memory.events():
                if event.kind == names.POD and event.type == "ADDED":
                    tasks.create_task(self._pod(event.object))
                elif event.kind == names.POD and event.object["metadata"].get("deletionTimestamp"):
                    tasks.create_task(self._gone(event.object))

    async def _pod(self, pod: Object) -> None:
        try:
            if pod["metadata"]["name"].startswith(f"{HEALTHY}-") or not (self.statuses or self.metadata):
                await self._well(pod)
            else:
                await self._odd(pod)
        except ClusterError:
            return  # it has been deleted meanwhile

    async def _well(self, pod: Object) -> None:
        meta = pod["metadata"]
        await self.memory.bind(meta["namespace"], meta["name"], "node")
        await asyncio.sleep(10.0)
        words = Message(**{**WORDS.__dict__, "attempt": int(meta["labels"][names.LABEL_ATTEMPT])})
        ended = {"exitCode": 0, "reason": "Completed", "message": words.encode()}
        containers = [{"name": c["name"], "state": {"terminated": ended}} for c in pod["spec"]["containers"]]
        await self._says(meta["name"], {"phase": "Succeeded", "containerStatuses": containers})

    async def _gone(self, pod: Object) -> None:
        """What a kubelet does once a container has ended."""
        meta = pod["metadata"]
        await asyncio.sleep(1.0)
        with contextlib.suppress(ClusterError):
            await self.memory.delete(names.POD, meta["namespace"], meta["name"], uid=meta["uid"], grace_seconds=0)

    async def _odd(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        for meta in self.metadata:
            found = await self.memory.get(names.POD, "default", name)
            assert found is not None
            await self.memory.put({**found, "metadata": {**found["metadata"], **meta}})
            await asyncio.sleep(3.0)
        for status in self.statuses:
            await self._says(name, status)
            await asyncio.sleep(3.0)
        await asyncio.sleep(60.0)
        await self.memory.delete(names.POD, "default", name, grace_seconds=0)

    async def _says(self, name: str, status: Any) -> None:
        found = await self.memory.get(names.POD, "default", name)
        if found is not None:
            await self.memory.put_status({**found, "status": status})

    async def until(self, kind: str, name: str, holds: Callable[[Object], bool]) -> Object:
        """The object once it is so."""
        async for event in self.memory.events():
            if (event.kind, event.object["metadata"]["name"]) == (kind, name) and holds(event.object):
                return event.object
        raise AssertionError("the watch ended")


def succeeded(obj: Object) -> bool:
    """Whether an experiment is over, and well."""
    status = obj.get("status") or {}
    return bool(status.get("counts") == {"Succeeded": 2} and status.get("phase") == "Succeeded")


def closed(obj: Object) -> bool:
    """Whether a trial's first attempt is over."""
    return bool((obj.get("status") or {}).get("history"))


def beside(
    tell: Callable[[Neighbours], Coroutine[None, None, object]],
    statuses: Sequence[Any] = (),
    metadata: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Tell the hostile part of a story; the healthy experiment comes soon after its beginning, and must end well."""

    async def whole() -> None:
        neighbours = Neighbours(statuses, metadata)
        async with asyncio.TaskGroup() as tasks:
            lives = [tasks.create_task(part) for part in (neighbours.operator.run(), neighbours.kubelet())]
            hostile = tasks.create_task(tell(neighbours))
            await asyncio.sleep(2.0)
            await neighbours.apply(HEALTHY)
            await neighbours.until(names.EXPERIMENT, HEALTHY, succeeded)
            await hostile
            for life in lives:
                life.cancel()

    errors, logger = Errors(), logging.getLogger("trialkeeper_operator")
    logger.addHandler(errors)
    try:
        virtual.run(whole(), limit=LIMIT)
    finally:
        logger.removeHandler(errors)
    assert errors.found == []


def sentence(text: object) -> bool:
    """Whether this is something that a person can read, and that a status can hold."""
    return isinstance(text, str) and len(text.strip()) > 0 and len(text) <= 1024
