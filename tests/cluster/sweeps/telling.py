"""Living through one scenario on a real API server, in real time, with a proxy between it and the operator."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast

import aiohttp
import kopf
from kubernetes.aio.client import Configuration

from cluster.plane import Plane
from cluster.sweeps.ground import Ground
from cluster.sweeps.proxy import Proxy, session
from faults import Call, Fault
from simulation.sweeps.runner import Life, Trouble
from simulation.sweeps.scenarios import Scenario
from simulation.trainer import Node, Running, Script
from trialkeeper.contract import Message
from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.reconcile.loop import Operator
from trialkeeper_operator.reconcile.ports import ClusterError
from trialkeeper_operator.serve.handlers import KopfSource

SCALE = 10.0  # a trainer is so much faster than in the simulation
GRACE = 5  # seconds
PATIENCE = 100.0  # seconds that a telling may take
COLLECTOR = 40.0  # seconds until the cluster's collector has taken away what belonged to an experiment


@dataclass
class Broken:
    """What goes wrong: to a call of the operator's, to an event that it should hear, and to all its watches."""

    fault: Callable[[Call], Fault | None] = lambda call: None
    drop: Callable[[dict[str, Any]], bool] = lambda event: False
    closes: bool = False  # whether its watches are broken again and again


class Hand(Node):
    """The simulation's node; it comes too late to a pod that has been deleted before, as a kubelet may."""

    async def _bind(self, run: Running) -> bool:
        try:
            return await super()._bind(run)
        except ClusterError:
            return False


@dataclass
class Told(Life):
    """One telling. `began`: the loop's time at its beginning."""

    ground: Ground = field(kw_only=True)
    proxy: Proxy = field(kw_only=True)
    configuration: Configuration = field(kw_only=True)
    broken: Broken = field(kw_only=True)
    began: float = field(kw_only=True)
    sweep = 4.0  # seconds
    linger = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.history = self.ground.history
        self._dead = asyncio.Event()

    def world(self) -> tuple[Memory, Node]:
        memory = cast("Memory", self.ground)  # it has those methods that a story calls
        node = Hand(memory, random.Random(1), self._script, self._hear, self.now)
        node.where = lambda pod: self.ground.node
        return memory, node

    def now(self) -> float:
        return time.time()

    def _elapsed(self) -> float:
        return asyncio.get_running_loop().time() - self.began

    def _hear(self, namespace: str, trial: str, message: Message) -> None:
        super()._hear(self.ground.namespace, trial, message)

    def crashed(self) -> None:
        """The operator's process is gone."""
        self._dead.set()

    def decide(self, call: Call) -> Fault | None:
        """What happens to a call of the operator's, for the proxy."""
        if call.kind not in (names.EXPERIMENT, names.TRIAL, names.POD, names.CONFIG_MAP):
            return None
        return self.decided(call, self.broken.fault)

    def _source(self) -> KopfSource:
        server = self.proxy.url
        return KopfSource([self.ground.namespace], login=lambda: kopf.ConnectionInfo(server=server))

    async def _leader(self) -> None:
        """One operator after the other, as often as one dies."""
        for _ in itertools.count():
            self._dead.clear()
            kube, source = Kube(self.configuration), self._source()
            operator = Operator(
                kube,
                source,
                now=self.now,
                sweep_interval=self.sweep,
                site=Site() if self.plot.site else None,
                namespaces=[self.ground.namespace],
            )
            source.relisted = operator.sweep_soon
            try:
                work = await self.lived(operator, self._dead)
            finally:
                await kube.close()
            if not work.cancelled() and (error := work.exception()) is not None:
                raise error
            self.watcher.note("the operator has crashed")
            await asyncio.sleep(1.0)

    async def _begin(self, spec: Any) -> None:
        container = {"name": "trainer", "image": "t", "command": ["python", "t.py"]}
        pods = {"containers": [container], "schedulerName": "nobody", "terminationGracePeriodSeconds": GRACE}
        await super()._begin({"template": {"spec": pods}, "failurePolicy": {"backoffSeconds": 1}, **spec})

    async def _watch(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await super()._watch()

    async def _cut(self) -> None:
        deadline = self._elapsed() + COLLECTOR
        while self.plot.gone and self._elapsed() < deadline:
            if not [obj for kind in (names.TRIAL, names.POD) async for obj in self.memory.list(kind)]:
                break
            await asyncio.sleep(0.5)
        await super()._cut()

    async def tell(self) -> None:
        listening = asyncio.ensure_future(self.ground.listen())
        breaking = asyncio.ensure_future(self._breaks())
        try:
            await super().tell()
        finally:
            for task in (listening, breaking):
                task.cancel()
            await asyncio.wait({listening, breaking})

    async def _breaks(self) -> None:
        while self.broken.closes:
            await asyncio.sleep(1.5)
            self.proxy.close_watches()


def scaled(plot: Scenario) -> Scenario:
    """The same story, so much faster; its two trials run side by side as there."""

    def faster(script: Script) -> Script:
        return replace(script, seconds=script.seconds / SCALE, start=script.start / SCALE)

    return replace(plot, scripts=tuple(map(faster, plot.scripts)))


async def told(plane: Plane, plot: Scenario, broken: Broken) -> Told:
    """Live through a scenario on the control plane; whatever is wrong with it is in `violations`."""
    kube = await plane.kube()
    namespace = await plane.namespace(kube, "s")
    async with AsyncExitStack() as stack:
        upstream: aiohttp.ClientSession = await stack.enter_async_context(session(plane.cluster))
        ground = Ground(kube, upstream, namespace)
        lives: list[Told] = []
        proxy = Proxy(upstream, lambda call: lives[0].decide(call), lambda: lives[0].crashed(), broken.drop)
        await stack.enter_async_context(proxy.serving())
        configuration = Configuration(host=proxy.url)
        life = Told(
            scaled(plot),
            Trouble(),
            ground=ground,
            proxy=proxy,
            configuration=configuration,
            broken=broken,
            began=asyncio.get_running_loop().time(),
        )
        lives.append(life)
        await ground.begin()
        stack.push_async_callback(ground.end)
        try:
            await life.tell()
        except Exception as error:
            life.violations.append(f"the story broke off: {error!r}")
    life.violations += [*life.watcher.violations, *life.node.violations]
    return life
