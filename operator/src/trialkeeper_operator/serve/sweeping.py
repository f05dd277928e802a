"""Sweeping the chart's store: orphans, budgets, and what deleted experiments want to be gone.

No finalizer keeps an Experiment until its checkpoints are deleted. Instead what it wants is written into the store as
soon as it is accepted, and each time it changes (`contract.policy_key`); whoever sweeps later finds it there. That an
Experiment is gone is believed after a live GET, once it has been gone for a while, and no pod of it is left.

Whatever waits for the store waits in a thread, for so long at most; a store that is away keeps nothing else from
going on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trialkeeper import contract, retention, sweep
from trialkeeper.store import AlreadyThere, Unreachable
from trialkeeper.store.tree import Tree
from trialkeeper.sweep import Rules, Swept
from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import holds
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.decide import ledger
from trialkeeper_operator.decide.fork import prefix_of
from trialkeeper_operator.decide.pods import settings as settings_of
from trialkeeper_operator.reconcile.ports import Object, Unavailable
from trialkeeper_operator.reconcile.world import World
from trialkeeper_operator.serve.credentials import NoKeys, pair
from trialkeeper_operator.serve.metrics import Metrics
from trialkeeper_operator.serve.settings import Settings, StoreSettings

log = logging.getLogger(__name__)

INTERVAL = 900.0  # seconds between two passes
RETRY = 60.0  # seconds until a pass that could not be made is tried again
NOTICE = 10.0  # seconds between two looks for Experiments whose wishes are not written yet
PASS = 300.0  # seconds that a pass may take; the next one goes on where it left off
GONE = 600.0  # seconds for which an Experiment must have been gone: a new one may go on from it at once


def swept(settings: Settings) -> bool:
    """Whether the operator sweeps: its own store alone, since another one may be another cluster's, too."""
    return settings.store.mode == "embedded" and settings.store.credentials_dir is not None


def folder_of(namespace: str, name: str, uid: str) -> str:
    """An Experiment's folder in the store."""
    return contract.prefix(namespace, name, uid, 0).rpartition("/")[0]


def wish(experiment: Experiment) -> bytes:
    """What is written in the store of what an Experiment wants."""
    checkpoint = experiment.spec.checkpoint
    return json.dumps(
        {
            "v": contract.VERSION,
            "namespace": experiment.namespace,
            "name": experiment.name,
            "uid": experiment.uid,
            "checkpoints": experiment.spec.deletion_policy.checkpoints,
            "budget": checkpoint.budget,
        }
    ).encode()


def rules(
    experiment: Experiment, phases: Mapping[str, str], held: Mapping[str, Collection[int]] | None = None
) -> Rules:
    """What a sweep has to know of an Experiment; `phases` of its trials by prefix, as they are now.

    `held`: iterations, by prefix, that forks are about to begin from.
    """
    budget = experiment.spec.checkpoint.budget
    final: Callable[[str], bool | None] = lambda prefix: phases[prefix] in ledger.FINAL if prefix in phases else None  # noqa: E731
    return Rules(
        sweep.bytes_of(budget) if budget else None, retention.parse(settings_of(experiment)), final, held or {}
    )


@dataclass
class Live:
    """What there is in the cluster, listed just now."""

    experiments: dict[str, Experiment] = field(default_factory=dict)  # by folder
    unread: set[str] = field(default_factory=set)  # folders of those that cannot be read
    phases: dict[str, dict[str, str]] = field(default_factory=dict)  # of trials, by folder and prefix
    held: dict[str, set[int]] = field(default_factory=dict)  # of trials, by prefix: what forks are about to begin from
    needed: set[str] = field(default_factory=set)  # folders that trials of others refer to
    restoring: set[str] = field(default_factory=set)  # namespaces in which it is not known yet what will be needed


class StoreSweep:
    """Sweeps one store, which no other installation has, for one operator.

    `serves` says whether a namespace is ours, `namespaces` are all that may be looked at, empty: every one. `clock`
    gives seconds since the epoch.
    """

    def __init__(
        self,
        world: World,
        tree: Tree,
        metrics: Metrics,
        serves: Callable[[str], Awaitable[bool]],
        namespaces: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._namespaces = namespaces
        self._world, self._tree, self._metrics, self._serves, self._clock = world, tree, metrics, serves, clock
        self._written: set[tuple[str, int]] = set()  # uid and generation of what is in the store
        self._gone: dict[str, float] = {}  # by folder: when its Experiment was found gone first
        self._after = ""  # the folder that the last pass came to
        self._said: set[str] = set()  # of what it has been said that it does not go

    async def run(self) -> None:
        """Until cancelled. What Experiments want is written while a pass goes on, too."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._again(self.write_wishes, NOTICE), name="wishes")
            tasks.create_task(self._again(self.sweep, INTERVAL), name="sweep")

    async def _again(self, work: Callable[[], Awaitable[None]], interval: float) -> None:
        while True:
            wait = interval
            try:
                await work()
                self._said.discard(work.__name__)
            except (OSError, Unavailable) as error:
                wait = min(interval, RETRY)
                if work.__name__ not in self._said:
                    log.warning("the store is not swept now: %s", error)
                self._said.add(work.__name__)
            except Exception:
                log.exception("sweeping the store failed")  # it comes again, and nothing else waits for it
            await asyncio.sleep(wait)

    # What Experiments want.

    async def write_wishes(self) -> None:
        """Write down what Experiments want that have been accepted or changed since.

        :raises OSError: if the store cannot be written.
        """
        cache, wanted = self._world.cache, []
        for name in cache.names(names.EXPERIMENT):
            experiment = cache.experiment(name)
            if experiment is None or experiment.deleting or experiment.spec.storage is not None:
                continue
            key = experiment.uid, experiment.generation
            accepted = holds(experiment.status.conditions, names.ACCEPTED)
            if accepted and key not in self._written and await self._serves(experiment.namespace):
                wanted.append(experiment)
        for experiment in wanted:
            await asyncio.to_thread(self._write, experiment)
            self._written.add((experiment.uid, experiment.generation))

    def _write(self, experiment: Experiment) -> None:
        folder = folder_of(experiment.namespace, experiment.name, experiment.uid)
        try:
            self._tree.at(folder).put_new(contract.policy_key(experiment.generation), wish(experiment))
        except AlreadyThere:
            pass  # by an operator before this one

    # A pass.

    async def sweep(self) -> None:
        """One pass, or as much of it as there is time for.

        :raises OSError: if the store cannot be listed.
        :raises Unavailable: if the cluster cannot be.
        """
        live = await self._live()
        with _until(PASS) as stop:
            wanted = await asyncio.to_thread(self._pass, live, stop)
        for folder, said in wanted.items():
            if await self._is_gone(folder, said, live):
                with _until(PASS) as stop:
                    await asyncio.to_thread(self._remove, folder, stop)

    async def _live(self) -> Live:
        live = Live()
        async for raw in self._listed(names.EXPERIMENT):
            meta = raw["metadata"]
            folder = folder_of(meta.get("namespace", ""), meta["name"], meta["uid"])
            try:
                live.experiments[folder] = found = Experiment.from_object(raw)
            except ValueError:
                live.unread.add(folder)
                continue
            if found.spec.restore_from is not None and found.status.restored is None:
                live.restoring.add(found.namespace)
        async for raw in self._listed(names.TRIAL):
            spec, status = raw.get("spec") or {}, raw.get("status") or {}
            namespace, index = raw["metadata"].get("namespace", ""), spec.get("index")
            owner = namespace, str(spec.get("experiment")), str(spec.get("experimentUid"))
            if isinstance(index, int):
                prefix = contract.prefix(*owner, index)
                live.phases.setdefault(folder_of(*owner), {})[prefix] = str(status.get("phase"))
            for key in [*(spec.get("base") or ()), spec.get("fork"), (status.get("checkpoint") or {}).get("key")]:
                inherited = contract.parse_inherited_key(key) if isinstance(key, str) else None
                if inherited is not None:
                    live.needed.add(inherited[0].rpartition("/")[0])
        for experiment in live.experiments.values():
            for trial in self._world.cache.trials_of(experiment):
                if iterations := self._world.awaited(experiment, trial.name):
                    live.held[prefix_of(experiment, trial)] = set(iterations)
        return live

    async def _listed(self, kind: str) -> AsyncIterator[Object]:
        for namespace in self._namespaces or (None,):
            async for raw in self._world.cluster.list(kind, namespace):
                yield raw

    def _pass(self, live: Live, stop: Callable[[], bool]) -> dict[str, dict[str, Any]]:
        """Sweep folder by folder; those that belong to no Experiment and say that they want to go."""
        namespaces = [n for n in self._tree.folders() if not self._namespaces or n in self._namespaces]
        folders = [f"{namespace}/{name}" for namespace in namespaces for name in self._tree.folders(f"{namespace}/")]
        later = [f for f in folders if f > self._after]
        wanted, total = {}, Swept()
        for folder in [*later, *(f for f in folders if f <= self._after)]:
            if stop():
                total.whole = False
                break
            try:
                if folder not in live.experiments and folder not in live.unread:
                    said = sweep.written_policy(self._tree, folder)
                    if said.get("checkpoints") == "Delete":
                        wanted[folder] = said
                        continue
                self._add(total, self._swept(folder, live, stop))
            except OSError as error:
                total.trouble.append(f"{folder}: {error}")
                break  # the store is away: the next pass goes on here
            self._after = folder
        self._count(total)
        return wanted

    def _swept(self, folder: str, live: Live, stop: Callable[[], bool]) -> Swept:
        experiment = live.experiments.get(folder)
        wants = rules(experiment, live.phases.get(folder, {}), live.held) if experiment is not None else Rules()
        tell: Callable[[str], object] = lambda sentence: log.debug("swept %s", sentence)  # noqa: E731
        return sweep.Sweep(self._tree, now=self._clock(), rules=lambda _: wants, tell=tell, stop=stop).run(f"{folder}/")

    @staticmethod
    def _add(total: Swept, one: Swept) -> None:
        total.objects += one.objects
        total.bytes += one.bytes
        total.checkpoints += one.checkpoints
        total.left += one.left
        total.over |= one.over
        total.trouble += one.trouble
        total.whole = total.whole and one.whole

    def _count(self, swept: Swept) -> None:
        metrics = self._metrics
        metrics.sweeps.labels("trouble" if swept.trouble else "whole" if swept.whole else "part").inc()
        metrics.swept_objects.inc(swept.objects)
        metrics.swept_bytes.inc(swept.bytes)
        if swept.whole and not swept.trouble:
            metrics.stored_bytes.set(swept.left)
            metrics.over_budget.set(sum(swept.over.values()))
        if swept.objects:
            log.info(
                "swept the store: %d objects, %s, %d checkpoints",
                swept.objects,
                sweep.written(swept.bytes),
                swept.checkpoints,
            )
        if swept.trouble:
            log.warning("the store was not swept everywhere: %s", "; ".join(swept.trouble[:3]))
        for experiment, size in swept.over.items():
            log.info("%s is %s beyond its budget: the rest of it is needed", experiment, sweep.written(size))

    # Experiments that are gone.

    async def _is_gone(self, folder: str, said: Mapping[str, Any], live: Live) -> bool:
        """Whether a folder that wants to go may: its Experiment is gone for a while, and nobody needs it."""
        namespace, name, uid = (str(said.get(field)) for field in ("namespace", "name", "uid"))
        if folder_of(namespace, name, uid) != folder:
            return False  # it speaks of another one
        there = await self._world.cluster.get(names.EXPERIMENT, namespace, name)
        needed = folder in live.needed or namespace in live.restoring
        if (
            needed
            or (there is not None and there["metadata"]["uid"] == uid)
            or await self._has_pods(namespace, name, folder)
        ):
            self._gone.pop(folder, None)
            return False
        since = self._gone.setdefault(folder, self._clock())
        return self._clock() - since >= GONE

    async def _has_pods(self, namespace: str, name: str, folder: str) -> bool:
        pods = self._world.cluster.list(names.POD, namespace, {names.LABEL_EXPERIMENT: name})
        return any([_prefix_of(pod).startswith(f"{folder}/") async for pod in pods])

    def _remove(self, folder: str, stop: Callable[[], bool]) -> None:
        try:
            gone = sweep.remove(self._tree, folder, stop=stop)
        except ValueError as kept:
            log.info("%s", kept)
            return
        if gone.whole:
            self._gone.pop(folder, None)
        self._metrics.swept_objects.inc(gone.objects)
        self._metrics.swept_bytes.inc(gone.bytes)
        log.info("removed of %s, whose Experiment is gone: %s", folder, sweep.written(gone.bytes))


def _prefix_of(pod: Object) -> str:
    """The prefix in the store that a pod was given, empty if none."""
    variables = (v for container in pod["spec"].get("containers") or () for v in container.get("env") or ())
    return next((str(v.get("value")) for v in variables if v.get("name") == contract.ENV_PREFIX), "")


@contextmanager
def _until(seconds: float) -> Iterator[Callable[[], bool]]:
    """Whether time is up, or whoever waits for the work has left."""
    left, end = threading.Event(), time.monotonic() + seconds
    try:
        yield lambda: left.is_set() or time.monotonic() >= end
    finally:
        left.set()


def tree_of(store: StoreSettings, scratch: Path) -> Tree:
    """The chart's store as a whole, by the operator's own keys. `scratch` is never written to."""
    from minio.credentials.credentials import Credentials

    from trialkeeper.environment import read
    from trialkeeper.store.address import Bucket
    from trialkeeper.store.keys import Keys
    from trialkeeper.store.tree import BucketTree
    from trialkeeper.store.wire import Wire

    assert store.credentials_dir is not None
    folder: Path = store.credentials_dir
    bucket = Bucket(store.bucket, endpoint=store.endpoint, region=store.region)

    class Own(Keys):
        """The keys in a folder, read for every request: whoever renews them replaces the files."""

        def get(self) -> Credentials:
            try:
                return Credentials(*pair(folder))
            except NoKeys as error:
                raise Unreachable(str(error)) from error

    env = read({contract.ENV_STORE: bucket.url, contract.ENV_ATTEMPT: "1", contract.ENV_SCRATCH: str(scratch)})
    ca = Path(store.ca_file).read_text() if store.ca_file else ""
    return BucketTree(Wire(bucket, Own(bucket, env), ca=ca), "", scratch)
