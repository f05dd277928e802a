"""Living through one scenario with one trouble: the real reconcilers in virtual time, and how it ended."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from builders import NOW, experiment
from faults import Call, Crash, Fault, FaultyCluster
from simulation import virtual
from simulation.invariants import Watcher, judge
from simulation.lineage import Lineage
from simulation.sweeps.history import History, Telling
from simulation.sweeps.scenarios import Scenario
from simulation.trainer import Node, Prefix, Running, Script
from trialkeeper.contract import Message
from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.admission import admission
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.decide import endings, evidence
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.reconcile.loop import Operator
from trialkeeper_operator.reconcile.ports import Cluster, Object, QuotaExceeded, Source
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


class TrialEnd(NamedTuple):
    """How a trial ended; `lost` are the iterations that are said to have been run again."""

    phase: str
    closed: int
    classes: str
    failures: int
    disruptions: int
    iteration: int
    lost: int


class End(NamedTuple):
    """How a story ended; `left` are pods that are there although nobody wants them."""

    verdict: str
    trials: tuple[TrialEnd, ...]
    left: tuple[str, ...]


class Cut(Exception):
    """The story is told."""


class Surroundings:
    """A Memory as a cluster: with nodes, and with room for so many pods."""

    def __init__(self, memory: Memory, node: Node, quota: int | None) -> None:
        self._memory, self._node, self._quota = memory, node, quota
        self.list, self.put = memory.list, memory.put
        self.put_status, self.delete = memory.put_status, memory.delete

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        if kind != names.NODE:
            return await self._memory.get(kind, namespace, name)
        ready = {"type": "Ready", "status": "Unknown" if name in self._node.silent else "True"}
        return {"kind": kind, "metadata": {"name": name}, "status": {"conditions": [ready]}}

    async def create(self, body: Object, *, dry_run: bool = False) -> Object:
        if body["kind"] == names.POD and self._quota is not None and not dry_run:
            pods = [p async for p in self._memory.list(names.POD) if not evidence.ended(p, "trainer")]
            there = await self._memory.get(names.POD, body["metadata"]["namespace"], body["metadata"]["name"])
            if len(pods) >= self._quota and there is None:
                raise QuotaExceeded(f"exceeded quota: pods={self._quota}")
        return await self._memory.create(body, dry_run=dry_run)


class _Errors(logging.Handler):
    """What the operator logs as an error is a bug."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.found.append(f"logged: {record.getMessage()}: {error!r}")


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

    def __post_init__(self) -> None:
        numbers = itertools.count(1)
        self.history = History()
        self.memory = Memory(
            now=self.now, ids=lambda: f"{next(numbers):08d}-uid", admit=admission(), commit=self.history.committed
        )
        self.node = Node(self.memory, random.Random(1), self._script, self._hear, self.now)
        self.node.where = lambda pod: f"node-of-{pod['metadata']['name']}"
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
            await asyncio.sleep(2 * SWEEP)
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

    def _decide(self, call: Call) -> Fault | None:
        fault = self.trouble.fault(call)
        if call.writes:
            self.watcher.note(
                f"    write {self.writes}: {call.verb} {call.kind} {call.name} {fault.name if fault else ''}"
            )
            self.writes += 1
        return fault

    async def _leader(self) -> None:
        """One operator after the other, as often as one dies or is not there."""
        for life in itertools.count():
            operator = Operator(
                FaultyCluster(self.trouble.cluster(self.cluster), self._decide),
                self.trouble.source(self.history, life),
                now=lambda: self.now() + self.trouble.ahead(),
                sweep_interval=SWEEP,
                site=Site() if self.plot.site else None,
            )
            self._operators.append(operator)
            work, away = asyncio.ensure_future(operator.run()), asyncio.ensure_future(self._away.wait())
            try:
                await asyncio.wait({work, away}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (work, away):
                    task.cancel()
                await asyncio.wait({work, away})
                self._operators.remove(operator)
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
        await asyncio.sleep(LINGER)
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
        return End(verdict, tuple(map(_end_of, self.trials)), tuple(left))

    def _may_stay(self, pod: Object) -> bool:
        """Whether nobody can end a pod, or it is kept for its log: the last one of a trial that failed."""
        if pod["spec"].get("nodeName") in self.node.silent:
            return "deletionTimestamp" in pod["metadata"]
        failed = [f"{t['metadata']['name']}-a{t['status']['closed']}" for t in self.trials if _phase(t) == "Failed"]
        return evidence.ended(pod, "trainer") and pod["metadata"]["name"].partition("-r")[0] in failed


def _phase(trial: Object) -> str:
    return str((trial.get("status") or {}).get("phase", ""))


def _end_of(trial: Object) -> TrialEnd:
    status = trial.get("status") or {}
    classes = " ".join(record["class"] for record in status.get("history", ()))
    return TrialEnd(
        phase=_phase(trial),
        closed=status.get("closed", 0),
        classes=classes,
        failures=status.get("failures", 0),
        disruptions=status.get("disruptions", 0),
        iteration=status.get("iteration", 0),
        lost=(status.get("lostWork") or {}).get("iterations", 0),
    )


def _only_crashes(error: BaseException | None) -> None:
    """An operator may die of nothing but the crashes that were wanted."""
    assert isinstance(error, BaseExceptionGroup), error
    _, others = error.split(Crash)
    if others is not None:
        raise others


def live(scenario: Scenario, trouble: Trouble) -> Life:
    """Live through a scenario; whatever is wrong with it is in `violations`."""
    errors, logger = _Errors(), logging.getLogger("trialkeeper_operator")
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


def wrong(life: Life, model: Life | None = None) -> list[str]:
    """What is wrong with how a story ended, by itself, and compared with how it ends without any trouble."""
    if life.violations:
        return life.violations
    lines = [] if life.plot.gone else judge(life)
    end = life.end()
    if end.left:
        lines.append(f"left over: {end.left}")
    if life.plot.gone:
        there = [*life.trials, *life.pods] + ([life.experiment] if life.experiment else [])
        return [*lines, *(f"{obj['kind']} {obj['metadata']['name']} is left" for obj in there)]
    if end.verdict != life.plot.verdict:
        lines.append(f"the verdict is {end.verdict} instead of {life.plot.verdict}")
    if model is not None:
        lines += _otherwise(end, model.end(), life.plot.loose)
        if life.seconds > model.seconds + life.plot.patience:
            lines.append(f"it took {life.seconds:.0f} s instead of {model.seconds:.0f} s")
    return lines


def _otherwise(end: End, model: End, loose: tuple[str, ...]) -> list[str]:
    """Where two ends differ."""
    lines = []
    for index, (one, other) in enumerate(zip(end.trials, model.trials, strict=False)):
        for name in TrialEnd._fields:
            got, want = getattr(one, name), getattr(other, name)
            if got != want and name not in loose and not (name == "classes" and _as_good(got, want)):
                lines.append(f"trial {index}: {name} is {got} instead of {want}")
    if len(end.trials) != len(model.trials):
        lines.append(f"{len(end.trials)} trials instead of {len(model.trials)}")
    return lines


def _as_good(got: str, want: str) -> bool:
    """Whether these are the same endings, some of which nobody saw."""
    pairs = list(zip(got.split(), want.split(), strict=False))
    same = all(one == other or {one, other} == {endings.LOST, endings.PREEMPTED} for one, other in pairs)
    return same and len(got.split()) == len(want.split())
