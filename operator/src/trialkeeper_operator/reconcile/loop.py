"""The operator's loop: events into the cache, keys out of the queue, a sweep for what the watch missed.

Nothing in it knows what a trial is. A key that fails is logged and comes again later, alone; a Cluster that
cannot be reached is no reason to stop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection

from trialkeeper.contract import Message
from trialkeeper_operator.api import names
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.reconcile import experiment, trial
from trialkeeper_operator.reconcile.ports import Cluster, ClusterError, Conflict, Object, Source, Unavailable
from trialkeeper_operator.reconcile.queue import BACKOFF_LIMIT, KeyedQueue
from trialkeeper_operator.reconcile.world import Key, Nobody, Observer, Outcome, World
from trialkeeper_operator.state.cache import Name, name_of, version_of

log = logging.getLogger(__name__)

KINDS = (names.EXPERIMENT, names.TRIAL, names.POD)
_RECONCILERS: dict[str, Callable[[World, Name], Awaitable[Outcome]]] = {
    names.EXPERIMENT: experiment.reconcile,
    names.TRIAL: trial.reconcile,
}


_OURS = {names.POD: {names.LABEL_MANAGED_BY: names.MANAGED_BY}}  # by which labels a kind is listed
_SILENCE = 60.0  # seconds until a change that the list has shown must have come through the watch
_UNREACHABLE = 15.0  # seconds between two tries at an API server that does not answer, at most
_CONTENDED = 1.0  # seconds until a pass is made again that somebody else's write has thwarted
_FOREIGN = 30.0  # seconds until a namespace that another installation serves is asked for again


async def _everywhere(namespace: str) -> bool:
    return True


class Operator:
    """Runs the reconcilers over one Cluster and one Source.

    `now` gives seconds since the epoch. At most `workers` keys are worked on at once. A trial's live values
    are stored at most every `status_interval` seconds; every `sweep_interval` seconds everything is listed, in
    `namespaces` or everywhere. `serves` says whether a namespace is ours, `passed` hears of every pass: its kind,
    its seconds, and whether it failed.
    """

    def __init__(
        self,
        cluster: Cluster,
        source: Source,
        *,
        now: Callable[[], float],
        workers: int = 16,
        status_interval: float = 30.0,
        sweep_interval: float = 300.0,
        site: Site | None = None,
        observer: Observer | None = None,
        serves: Callable[[str], Awaitable[bool]] = _everywhere,
        namespaces: Collection[str] = (),
        passed: Callable[[str, float, bool], None] = lambda kind, seconds, failed: None,
    ) -> None:
        self.world = World(cluster, now, KeyedQueue(), status_interval, site=site, observer=observer or Nobody())
        self.world.nodes_closed = bool(namespaces)  # rights in namespaces are none to nodes
        self._serves, self._passed = serves, passed
        self._namespaces: Collection[str | None] = namespaces or (None,)
        self._sweep_now = asyncio.Event()
        self._missed: dict[tuple[str, Name], tuple[int, float]] = {}  # version and when a sweep saw it first
        self._source = source
        self._workers = workers
        self._sweep_interval = sweep_interval

    def reported(self, namespace: str, trial_name: str, message: Message) -> None:
        """Hand in a live report of a trial, authenticated by whoever received it. Older ones are ignored."""
        name = (namespace, trial_name)
        known = self.world.reports.get(name)
        # Iterations before times: a pod's clock may be set back.
        if known is not None and _age(known[0]) > _age(message):
            return
        self.world.reports[name] = (message, self.world.now())
        self.world.queue.add((names.TRIAL, name))

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._feed(), name="feed")
            tasks.create_task(self._sweep(), name="sweep")
            tasks.create_task(self._dispatch(tasks), name="dispatch")

    async def _feed(self) -> None:
        async for event in self._source.events():
            self._heard(event.kind, event.object)
            self._take_in(event.kind, event.object, gone=event.type == "DELETED")

    def _take_in(self, kind: str, obj: Object, *, gone: bool = False) -> None:
        """Let the cache know of an object; one that it cannot hold must not keep the others from it."""
        try:
            (self.world.vanished if gone else self.world.seen)(kind, obj)
        except Exception:
            log.exception("%s %s/%s cannot be taken in", kind, *name_of(obj))

    def _heard(self, kind: str, obj: Object) -> None:
        missed = self._missed.get((kind, name_of(obj)))
        if missed is not None and version_of(obj) >= missed[0]:
            del self._missed[kind, name_of(obj)]

    def trouble(self) -> str | None:
        """What is wrong with the watch, if it has not told a change for a minute that a list has shown."""
        late = [key for key, (_, since) in self._missed.items() if time.monotonic() - since > _SILENCE]
        return f"the watch has not told of {len(late)} changes, among them {late[0]}" if late else None

    async def _dispatch(self, tasks: asyncio.TaskGroup) -> None:
        free = asyncio.Semaphore(self._workers)
        while True:
            await free.acquire()
            key = await self.world.queue.take()
            tasks.create_task(self._work(key, free), name=f"{key[0]} {key[1][1]}")

    async def _work(self, key: Key, free: asyncio.Semaphore) -> None:
        kind, name = key
        failed, limit, least, start = False, BACKOFF_LIMIT, 0.0, time.monotonic()
        try:
            if await self._serves(name[0]):
                wait = await self._look_at(kind, name)
            else:
                wait = _FOREIGN
        except Unavailable as unavailable:
            log.warning("%s %s/%s: %s", kind, *name, unavailable)
            failed, limit, least = True, _UNREACHABLE, unavailable.retry_after or 0.0
        except Exception:
            # One object's bug must not stop another's reconcile: it is logged and tried again, later each time.
            log.exception("%s %s/%s: reconciling failed", kind, *name)
            failed = True
        else:
            if wait is not None:
                self.world.queue.add(key, wait)
        finally:
            self.world.queue.done(key, failed=failed, limit=limit, least=least)
            free.release()
            self._passed(kind, time.monotonic() - start, failed)

    async def _look_at(self, kind: str, name: Name) -> Outcome:
        try:
            return await _RECONCILERS[kind](self.world, name)
        except Conflict:
            # Another leader was first, or others count with the same quota at the same time.
            await self.world.look(kind, name)
            return _CONTENDED

    async def _sweep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._sweep_interval):
                    await self._sweep_now.wait()
            except TimeoutError:
                pass
            self._sweep_now.clear()
            try:
                await self.sweep()
            except ClusterError as refusal:  # `Expired` too: the next one lists from the beginning
                log.warning("sweep: %s", refusal)

    def sweep_soon(self) -> None:
        """Sweep now: the watch has a gap."""
        self._sweep_now.set()

    async def sweep(self) -> None:
        """List everything, forget what is gone, look at everything again."""
        for kind in KINDS:
            before = self.world.cache.uids(kind)
            listed = [
                obj
                for namespace in self._namespaces
                async for obj in self.world.cluster.list(kind, namespace, _OURS.get(kind))
            ]
            self._compare(kind, listed)
            for obj in listed:
                self._take_in(kind, obj)
            for missed in self.world.cache.prune(kind, listed, before):
                self._take_in(kind, dict(missed), gone=True)
        for kind in (names.EXPERIMENT, names.TRIAL):
            for name in self.world.cache.names(kind):
                self.world.queue.add((kind, name))

    def _compare(self, kind: str, listed: Collection[Object]) -> None:
        """Note what the cluster knows and the cache does not: the watch must tell of it soon."""
        now, there = time.monotonic(), {name_of(obj) for obj in listed}
        for key in [k for k in self._missed if k[0] == kind and k[1] not in there]:
            del self._missed[key]
        for obj in listed:
            known = self.world.cache.raw(kind, name_of(obj))
            if known is None or version_of(known) < version_of(obj):
                self._missed.setdefault((kind, name_of(obj)), (version_of(obj), now))


def _age(message: Message) -> tuple[int, int, float]:
    return message.attempt, message.iteration, message.time
