"""The operator's loop: events into the cache, keys out of the queue, a sweep for what the watch missed.

Nothing in it knows what a trial is. A key that fails is logged and comes again later, alone; a Cluster that
cannot be reached is no reason to stop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from trialkeeper.contract import Message
from trialkeeper_operator.api import names
from trialkeeper_operator.reconcile import experiment, trial
from trialkeeper_operator.reconcile.ports import Cluster, Source, Unavailable
from trialkeeper_operator.reconcile.queue import KeyedQueue
from trialkeeper_operator.reconcile.world import Key, Outcome, World
from trialkeeper_operator.state.cache import Name

log = logging.getLogger(__name__)

KINDS = (names.EXPERIMENT, names.TRIAL, names.POD)
_RECONCILERS: dict[str, Callable[[World, Name], Awaitable[Outcome]]] = {
    names.EXPERIMENT: experiment.reconcile,
    names.TRIAL: trial.reconcile,
}


class Operator:
    """Runs the reconcilers over one Cluster and one Source.

    `now` gives seconds since the epoch. At most `workers` keys are worked on at once. A trial's live values
    are stored at most every `status_interval` seconds; every `sweep_interval` seconds everything is listed.
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
    ) -> None:
        self.world = World(cluster, now, KeyedQueue(), status_interval)
        self._source = source
        self._workers = workers
        self._sweep_interval = sweep_interval

    def reported(self, namespace: str, trial_name: str, message: Message) -> None:
        """Hand in a live report of a trial, authenticated by whoever received it. Older ones are ignored."""
        name = (namespace, trial_name)
        known = self.world.reports.get(name)
        if known is not None and (known[0].attempt, known[0].time) > (message.attempt, message.time):
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
            if event.type == "DELETED":
                self.world.vanished(event.kind, event.object)
            else:
                self.world.seen(event.kind, event.object)

    async def _dispatch(self, tasks: asyncio.TaskGroup) -> None:
        free = asyncio.Semaphore(self._workers)
        while True:
            await free.acquire()
            key = await self.world.queue.take()
            tasks.create_task(self._work(key, free), name=f"{key[0]} {key[1][1]}")

    async def _work(self, key: Key, free: asyncio.Semaphore) -> None:
        kind, name = key
        failed = False
        try:
            wait = await _RECONCILERS[kind](self.world, name)
        except Unavailable as unavailable:
            log.warning("%s %s/%s: %s", kind, *name, unavailable)
            failed = True
        except Exception:
            # One object's bug must not stop another's reconcile: it is logged and tried again, later each time.
            log.exception("%s %s/%s: reconciling failed", kind, *name)
            failed = True
        else:
            if wait is not None:
                self.world.queue.add(key, wait)
        finally:
            self.world.queue.done(key, failed=failed)
            free.release()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_interval)
            try:
                await self.sweep()
            except Unavailable as unavailable:
                log.warning("sweep: %s", unavailable)

    async def sweep(self) -> None:
        """List everything, forget what is gone, look at everything again."""
        for kind in KINDS:
            before = self.world.cache.uids(kind)
            listed = [obj async for obj in self.world.cluster.list(kind)]
            for obj in listed:
                self.world.seen(kind, obj)
            for missed in self.world.cache.prune(kind, listed, before):
                self.world.vanished(kind, dict(missed))
        for kind in (names.EXPERIMENT, names.TRIAL):
            for name in self.world.cache.names(kind):
                self.world.queue.add((kind, name))
