"""Living through one scenario with one trouble: the real reconcilers in virtual time, and how it ended."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from builders import NOW, experiment
from faults import Call, Crash, Fault, FaultyCluster
from simulation import virtual
from simulation.invariants import Watcher
from simulation.lineage import Lineage
from simulation.sweeps.ends import End, end_of, phase_of
from simulation.sweeps.history import History, Telling
from simulation.sweeps.scenarios import Scenario
from simulation.sweeps.surroundings import Errors, Surroundings
from simulation.trainer import Node, Prefix, Running, Script
from trialkeeper.contract import Message
from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.admission import admission
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.decide import evidence
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.reconcile.loop import Operator
from trialkeeper_operator.reconcile.ports import Cluster, Object, Source
from trialkeeper_operator.state.snapshot import owner_of

SWEEP = 300.0  # virtual seconds between two sweeps of the operator
LINGER = SWEEP + 100.0  # seconds for which it is watched on, once all is over
OUTAGE = 120.0  # seconds for which nobody is there
LIMIT = 15_000.0  # seconds; what is not over by then never ends


@dataclass
class Trouble:
    """What goes wrong in a telling: for each call, for each life of an operator, and with its clock."""

    fault: Callable[[Call], Fault | None] = lambda call: None
    source: Callable[[History, int], Source] = lambda history, life: Telling(history)
    cluster: Callable[[Cluster], Cluster] = lambda cluster: cluster
    ahead: Callable[[], float] = lambda: 0.0  # seconds by which the operators' clock is ahead
    leaders: int = 1


class Cut(Exception):
    """The story is told."""


@dataclass
class Life:
    """One telling. What `judge` asks for is here, too."""

    plot: Scenario
    trouble: Trouble
    experiment: Object = field(default_factory=dict)
    trials: list[Object] = field(default_factory=list)
    snapshot: Object | None = None
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0  # until all was over
    writes: int = 0
    events: int = 0  # that the watch had to tell
    pods: list[Object] = field(default_factory=list)
    services: list[Object] = field(default_factory=list)
    sweep = SWEEP
    linger = LINGER

    def __post_init__(self) -> None:
        self.history = History()
        self.memory, self.node = self.world()
        self.node.rivals = self.trouble.leaders > 1
        self.node.acts = {
            "unseen": self._unseen,
            "unseen death": self._unseen_death,
            "alone": self._alone,
            "pause": self._pause,
            "stop": self._stop,
            "restore": self._restore,
            "delete the experiment": self._delete,
            "evict another": partial(self._another, "evict"),
            "kill another": partial(self._another, "kill"),
            "kill another, unseen": self._another_unseen,
            "force another": partial(self._another, "force"),
        }
        self.lineage, self.watcher = Lineage(), Watcher(self._elapsed)
        self.node.predecessors, self.watcher.pending = self.lineage.predecessors, self.plot.deletions
        self.watcher.trials = self.plot.trials
        self.cluster = Surroundings(self.memory, self.node, self.plot.quota)
        self._operators: list[Operator] = []
        self._away = asyncio.Event()
        self._back = 0.0
        self._tasks: asyncio.TaskGroup | None = None

    def world(self) -> tuple[Memory, Node]:
        """What it is told in."""
        numbers = itertools.count(1)
        memory = Memory(
            now=self.now, ids=lambda: f"{next(numbers):08d}-uid", admit=admission(), commit=self.history.committed
        )
        node = Node(memory, random.Random(1), self._script, self._hear, self.now)
        node.where = lambda pod: f"node-of-{pod['metadata']['name']}"
        return memory, node

    @property
    def carried(self) -> dict[str, int]:
        return self.watcher.carried

    @property
    def once(self) -> dict[str, int]:
        return self.watcher.once

    @property
    def scripts(self) -> Mapping[int, Script]:
        return dict(enumerate(self.plot.scripts))

    @property
    def trace(self) -> list[str]:
        return self.watcher.trace

    def prefixes(self, index: int) -> list[Prefix]:
        return [p for name in self.lineage.of(index) if (p := self.node.prefixes.get(name)) and p.claims]

    def _elapsed(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> float:
        return NOW + self._elapsed()

    def _script(self, trial: str) -> Script:
        return self.plot.scripts[int(trial.rpartition("-")[2])]

    def _hear(self, namespace: str, trial: str, message: Message) -> None:
        for operator in self._operators:
            operator.reported(namespace, trial, message)

    # What trainers set off.

    async def _unseen(self, run: Running) -> None:
        await self._alone(run)
        await self.node.hit(run, "evict")

    async def _unseen_death(self, run: Running) -> None:
        await self._alone(run)
        await self.node.hit(run, "vanish")

    async def _another(self, how: str, run: Running) -> None:
        """What happens to rank 1 of an attempt of several pods."""
        await self.node.hit(self.node.ranks(run)[1], how)

    async def _another_unseen(self, run: Running) -> None:
        await self._alone(run)
        await self._another("kill", run)

    async def _alone(self, run: Running) -> None:
        self.watcher.note(f"nobody is there for {OUTAGE:g} s")
        self._back = self._elapsed() + OUTAGE
        self._away.set()
        await asyncio.sleep(1.0)

    async def _desire(self, name: str, desired: str) -> None:
        self.watcher.note(f"{name}: somebody wants {desired}")
        trial = await self.memory.get(names.TRIAL, "default", name)
        assert trial is not None
        await self.memory.put({**trial, "spec": {**trial["spec"], "desired": desired}})

    async def _pause(self, run: Running) -> None:
        name = run.pod["metadata"]["labels"][names.LABEL_TRIAL]
        await self._desire(name, "Pause")

        async def later() -> None:
            await asyncio.sleep(2 * self.sweep)
            await self._desire(name, "Run")

        assert self._tasks is not None
        self._tasks.create_task(later())

    async def _stop(self, run: Running) -> None:
        await self._desire(run.pod["metadata"]["labels"][names.LABEL_TRIAL], "Stop")

    async def _delete(self, run: Running) -> None:
        await self.memory.delete(names.EXPERIMENT, "default", "exp")

    async def _restore(self, run: Running) -> None:
        old = await self.memory.get(names.EXPERIMENT, "default", "exp")
        assert old is not None
        await self.memory.delete(names.EXPERIMENT, "default", "exp")
        kept = await self.memory.get(names.CONFIG_MAP, "default", "exp-snapshot")
        spec = dict(self.plot.spec)
        if kept is not None and owner_of(kept) == old["metadata"]["uid"]:
            self.lineage.source = old["metadata"]["uid"]
            spec |= {"restoreFrom": {"configMap": "exp-snapshot"}}
        self.watcher.pending -= 1
        await self._begin(spec)

    async def _begin(self, spec: Mapping[str, Any]) -> None:
        whole = {
            "maxTrials": self.plot.trials,
            "parallelism": 2,
            "checkpoint": {"frequency": 1},
            "failurePolicy": {},
            **spec,
        }
        body = experiment(**whole)
        await self.memory.create({**body, "metadata": {"name": "exp", "namespace": "default"}})

    # The operators.

    def decided(self, call: Call, fault_of: Callable[[Call], Fault | None]) -> Fault | None:
        """What happens to a call; a write is noted with its number."""
        fault = fault_of(call)
        if call.writes:
            self.watcher.note(
                f"    write {self.writes}: {call.verb} {call.kind} {call.name} {fault.name if fault else ''}"
            )
            self.writes += 1
        return fault

    async def lived(self, operator: Operator, gone: asyncio.Event) -> asyncio.Future[None]:
        """An operator's life as a task that is over: by itself, or cancelled since it is gone."""
        self._operators.append(operator)
        work, end = asyncio.ensure_future(operator.run()), asyncio.ensure_future(gone.wait())
        try:
            await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, end):
                task.cancel()
            await asyncio.wait({work, end})
            self._operators.remove(operator)
        return work

    async def _leader(self) -> None:
        """One operator after the other, as often as one dies or is not there."""
        for life in itertools.count():
            operator = Operator(
                FaultyCluster(self.trouble.cluster(self.cluster), partial(self.decided, fault_of=self.trouble.fault)),
                self.trouble.source(self.history, life),
                now=lambda: self.now() + self.trouble.ahead(),
                sweep_interval=self.sweep,
                site=Site() if self.plot.site else None,
            )
            work = await self.lived(operator, self._away)
            if not work.cancelled():
                _only_crashes(work.exception())
                self.watcher.note("the operator has crashed")
            await asyncio.sleep(max(1.0, self._back - self._elapsed()))
            self._away.clear()

    # The telling.

    async def tell(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                parts: list[Awaitable[None]] = [self._watch(), self.node.run(), self._begin(self.plot.spec)]
                for part in (*parts, *(self._leader() for _ in range(self.trouble.leaders))):
                    tasks.create_task(part)  # type: ignore[arg-type]
        except* Cut:
            pass

    async def _watch(self) -> None:
        over = False
        async for event in self.memory.events():
            self.lineage.see(event)
            self.watcher.see(event)
            if self.watcher.violations or self.node.violations:
                raise Cut  # its trace ends where it went wrong
            done = event.kind == names.EXPERIMENT and event.type == "DELETED"
            if not over and (done if self.plot.gone else self.watcher.over()):
                over, self.seconds = True, self._elapsed()
                self.watcher.note("all is over")
                assert self._tasks is not None
                self._tasks.create_task(self._cut())

    async def _cut(self) -> None:
        await asyncio.sleep(self.linger)
        self.trials = sorted([t async for t in self.memory.list(names.TRIAL)], key=lambda t: t["spec"]["index"])
        self.pods = [p async for p in self.memory.list(names.POD)]
        self.services = [s async for s in self.memory.list(names.SERVICE)]
        self.experiment = await self.memory.get(names.EXPERIMENT, "default", "exp") or {}
        self.snapshot = await self.memory.get(names.CONFIG_MAP, "default", "exp-snapshot")
        self.events = len(self.history)
        raise Cut

    def end(self) -> End:
        """How it ended."""
        conditions = (self.experiment.get("status") or {}).get("conditions", ())
        verdict = next((c["reason"] for c in conditions if c["type"] == names.SUCCEEDED), "")
        left = [p["metadata"]["name"] for p in self.pods if not self._may_stay(p)]
        left += [f"Service {s['metadata']['name']}" for s in self.services]
        return End(verdict, tuple(map(end_of, self.trials)), tuple(left))

    def _may_stay(self, pod: Object) -> bool:
        """Whether nobody can end a pod, or it is kept for its log: the last one of a trial that failed."""
        if pod["spec"].get("nodeName") in self.node.silent:
            return "deletionTimestamp" in pod["metadata"]
        failed = [f"{t['metadata']['name']}-a{t['status']['closed']}" for t in self.trials if phase_of(t) == "Failed"]
        return evidence.ended(pod, "trainer") and pod["metadata"]["name"].partition("-r")[0] in failed


def _only_crashes(error: BaseException | None) -> None:
    """An operator may die of nothing but the crashes that were wanted."""
    assert isinstance(error, BaseExceptionGroup), error
    _, others = error.split(Crash)
    if others is not None:
        raise others


def live(scenario: Scenario, trouble: Trouble) -> Life:
    """Live through a scenario; whatever is wrong with it is in `violations`."""
    errors, logger = Errors(), logging.getLogger("trialkeeper_operator")
    found: list[Life] = []

    async def whole() -> None:
        found.append(Life(scenario, trouble))
        await found[0].tell()

    logger.addHandler(errors)
    try:
        virtual.run(whole(), limit=LIMIT)
    except Exception as broken:
        found[0].violations.append(f"the story broke off: {broken!r}")
    finally:
        logger.removeHandler(errors)
    life = found[0]
    life.violations += [*life.watcher.violations, *life.node.violations, *errors.found]
    return life
