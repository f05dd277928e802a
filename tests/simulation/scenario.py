"""One whole story by one seed: an experiment, its trainers' mishaps, disruptions, operator crashes, faults.

Everything is real except time, processes and the network: the reconcilers, the decisions, the API server's
rules. The seed decides all; the same seed tells the same story, word by word, and `Story.trace` is what a
person reads when one ends badly.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from builders import NOW, experiment
from faults import Call, Crash, Fault, FaultyCluster, LossySource
from simulation.invariants import Watcher
from simulation.lineage import Lineage
from simulation.person import ACTS, Person
from simulation.trainer import Node, Prefix, Script
from trialkeeper import contract
from trialkeeper_operator.cluster.admission import admission
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.loop import Operator
from trialkeeper_operator.reconcile.ports import Object
from trialkeeper_operator.state.snapshot import owner_of

LIMIT = 3 * 86_400.0  # virtual seconds; a story that is not over by then never ends
MISHAPS = ("exit", "exception", "os._exit", "nan", "reschedule", "user error", "segfault", "killed")
DISRUPTIONS = ("evict", "delete", "vanish", "force", "zombie", "pressure", "kill")


class Deletion(NamedTuple):
    """When the experiment is deleted, how long after that the next one is made, and whether under another name."""

    at: float
    pause: float
    renamed: bool


@dataclass(frozen=True)
class Plot:
    """What a seed has drawn. Rates are probabilities of a fault per call."""

    seed: int
    trials: int
    parallelism: int
    scripts: tuple[Script, ...]
    disruptions: tuple[tuple[float, str], ...]  # (virtual seconds, how)
    restarts: tuple[float, ...]  # virtual seconds
    conflict: float
    unavailable: float
    crash: float
    dropped: float
    leaders: int
    max_failures: int
    deletions: tuple[Deletion, ...] = ()
    nodes: int = 1
    acts: tuple[tuple[float, str], ...] = ()  # (virtual seconds, what a person does by hand), see `person`


def draw_by_hand(seed: int) -> Plot:
    """The plot of a seed in which somebody pauses, suspends, stops, tries again and forks."""
    rng = random.Random(f"{seed}/by hand")
    acts = sorted((rng.uniform(0, 300), rng.choice(ACTS)) for _ in range(rng.randint(1, 6)))
    return replace(draw(seed), acts=tuple(acts))


def draw_groups(seed: int) -> Plot:
    """The plot of a seed in which each attempt is several pods; now and then somebody acts by hand, too."""
    rng = random.Random(f"{seed}/groups")
    drawn = draw_by_hand(seed) if rng.random() < 0.3 else draw(seed)
    return replace(drawn, nodes=rng.randint(2, 3))


def draw_restores(seed: int) -> Plot:
    """The plot of a seed in which the experiment is deleted, and another one goes on from its snapshot."""
    rng = random.Random(f"{seed}/restores")
    times = sorted(rng.uniform(0, 300) for _ in range(rng.randint(1, 3)))
    deletions = tuple(Deletion(at, rng.choice((0.0, 1.0, 60.0)), rng.random() < 0.3) for at in times)
    return replace(draw(seed), deletions=deletions, leaders=rng.choice((1, 2, 2)))


def draw(seed: int) -> Plot:
    """The plot of a seed."""
    rng = random.Random(seed)
    trials = rng.randint(1, 5)
    scripts = tuple(
        Script(
            iterations=rng.randint(1, 8),
            seconds=rng.choice((1.0, 10.0, 60.0)),
            every=rng.randint(1, 3),
            start=rng.choice((0.5, 3.0)),
            mishaps={a: (rng.randint(0, 4), rng.choice(MISHAPS)) for a in range(1, 4) if rng.random() < 0.15},
            obeys_sigterm=rng.random() < 0.8,
        )
        for _ in range(trials)
    )
    stormy = rng.random() < 0.8
    return Plot(
        seed=seed,
        trials=trials,
        parallelism=rng.randint(1, 3),
        scripts=scripts,
        disruptions=tuple(
            sorted((rng.uniform(0, 400), rng.choice(DISRUPTIONS)) for _ in range(rng.randint(0, 8) if stormy else 0))
        ),
        restarts=tuple(sorted(rng.uniform(0, 300) for _ in range(rng.randint(0, 4)))),
        conflict=rng.choice((0.0, 0.0, 0.05)),
        unavailable=rng.choice((0.0, 0.0, 0.05)),
        crash=rng.choice((0.0, 0.0, 0.03)),
        dropped=rng.choice((0.0, 0.0, 0.1)),
        leaders=rng.choice((1, 1, 1, 2)),
        max_failures=rng.randint(0, 3),
    )


@dataclass
class Story:
    """How it ended, and what is needed to judge it."""

    plot: Plot
    node: Node
    experiment: Object
    trials: list[Object]
    violations: list[str]
    snapshot: Object | None
    lineage: Lineage
    carried: dict[str, int]
    once: dict[str, int]
    scripts: dict[int, Script]
    trace: list[str] = field(default_factory=list)

    def prefixes(self, index: int) -> list[Prefix]:
        """A trial's part of the store and its predecessors', as far as anything is there, the newest first."""
        return [found for name in self.lineage.of(index) if (found := self.node.prefixes.get(name)) and found.claims]


async def tell(plot: Plot) -> Story:
    """Live through a plot; must run in a virtual loop."""
    loop = asyncio.get_running_loop()
    rng = random.Random(f"{plot.seed}/faults")
    numbers = itertools.count(1)

    def now() -> float:
        return NOW + loop.time()

    memory = Memory(now=now, ids=lambda: f"{next(numbers):08d}-uid", admit=admission())
    current: list[Operator] = []

    def hear(namespace: str, trial: str, message: Any) -> None:
        for operator in current:
            operator.reported(namespace, trial, message)

    # A person may ask for more trials than were drawn.
    scripts = {i: plot.scripts[i % plot.trials] for i in range(plot.trials + len(plot.acts))}
    node = Node(memory, random.Random(f"{plot.seed}/node"), lambda t: scripts[int(t[4:])], hear, now)
    watcher, lineage = Watcher(loop.time), Lineage()
    node.predecessors, watcher.pending = lineage.predecessors, len(plot.deletions) + len(plot.acts)
    watcher.trials = plot.trials

    def fault(call: Call) -> Fault | None:
        drawn = rng.random()
        for kind, rate in ((Fault.CONFLICT, plot.conflict), (Fault.UNAVAILABLE, plot.unavailable / 2),
                           (Fault.APPLIED_UNAVAILABLE, plot.unavailable / 2), (Fault.CRASH_BEFORE, plot.crash / 2),
                           (Fault.CRASH_AFTER, plot.crash / 2)):  # fmt: skip
            if drawn < rate:
                return kind if call.writes or kind is Fault.UNAVAILABLE else None
            drawn -= rate
        return None

    async def operators() -> None:
        """One operator after the other: each lives until it crashes or is restarted."""
        ends = [*plot.restarts, float("inf")]
        while True:
            source = LossySource(memory, lambda _: rng.random() < plot.dropped)
            operator = Operator(FaultyCluster(memory, fault), source, now=now, sweep_interval=300.0)
            current.append(operator)
            while ends[0] <= loop.time():
                ends.pop(0)
            # A task of its own for each life, so that its crash and our cancellation cannot be taken for each other.
            life = asyncio.ensure_future(operator.run())
            try:
                await asyncio.wait({life}, timeout=ends[0] - loop.time() if ends[0] < float("inf") else None)
            finally:
                life.cancel()
                await asyncio.wait({life})
                error = None if life.cancelled() else life.exception()  # collected also when the story is over
            if life.cancelled():
                watcher.note("operator restarted")
            else:
                _only_crashes(error)
                watcher.note("operator crashed")
            current.remove(operator)
            await asyncio.sleep(rng.uniform(0.1, 5.0))

    async def disruptions() -> None:
        for at, how in plot.disruptions:
            await asyncio.sleep(max(0.0, at - loop.time()))
            if await node.disrupt(how):
                watcher.note(f"disruption: {how}")

    spec = experiment(
        maxTrials=plot.trials,
        parallelism=plot.parallelism,
        checkpoint={"frequency": 1},
        nodes=plot.nodes,
        failurePolicy={"maxFailures": plot.max_failures, "maxDisruptions": 50},
    )
    name = "exp"
    await memory.create({**spec, "metadata": {"name": name, "namespace": "default"}})

    async def deletions() -> None:
        """A person deletes the experiment and goes on from its snapshot, or from the one before if there is none."""
        nonlocal name
        source = ""
        for number, deletion in enumerate(plot.deletions):
            await asyncio.sleep(max(0.0, deletion.at - loop.time()))
            old = await memory.get("Experiment", "default", name)
            assert old is not None
            await memory.delete("Experiment", "default", name)
            stored = await memory.get("ConfigMap", "default", f"{name}-snapshot")
            if stored is not None and owner_of(stored) == old["metadata"]["uid"]:
                source, lineage.source = f"{name}-snapshot", old["metadata"]["uid"]
            await asyncio.sleep(deletion.pause)
            name = f"ex{number}" if deletion.renamed else name
            restored = {"restoreFrom": {"configMap": source}} if source else {}
            body = {**spec, "spec": {**spec["spec"], **restored}}
            await memory.create({**body, "metadata": {"name": name, "namespace": "default"}})
            watcher.pending -= 1

    async def by_hand() -> None:
        person_rng = random.Random(f"{plot.seed}/person")
        person = Person(memory, node, person_rng, watcher.note, watcher.wrong, watcher.one_more)
        for at, what in plot.acts:
            await asyncio.sleep(max(0.0, at - loop.time()))
            await person.act(what)
            watcher.pending -= 1
            watcher.ended.set()

    async def end() -> None:
        """Cancel everything once the experiment has its verdict and every trial is over."""
        async for event in memory.events():
            lineage.see(event)
            watcher.see(event)
            fork = contract.parse_inherited_key((event.object.get("spec") or {}).get("fork") or "")
            if fork is not None:  # it goes on as its donor does
                scripts[event.object["spec"]["index"]] = scripts[int(fork[0].rpartition("/")[2])]
            if watcher.over():
                raise _Over

    async def end_after_acts() -> None:
        """The last act may be over when nothing happens any more."""
        while True:
            await watcher.ended.wait()
            watcher.ended.clear()
            if watcher.over():
                raise _Over

    try:
        async with asyncio.TaskGroup() as tasks:
            for part in (end(), *(operators() for _ in range(plot.leaders)), node.run(), disruptions(), deletions(),
                         by_hand(), end_after_acts()):  # fmt: skip
                tasks.create_task(part)
    except* _Over:
        pass
    trials = [t async for t in memory.list("Trial")]
    found = await memory.get("Experiment", "default", name)
    assert found is not None
    snapshot = await memory.get("ConfigMap", "default", f"{name}-snapshot")
    wrong = [*watcher.violations, *node.violations]
    return Story(
        plot, node, found, trials, wrong, snapshot, lineage, watcher.carried, watcher.once, scripts, watcher.trace
    )


def _only_crashes(error: BaseException | None) -> None:
    """An operator may die of nothing but the crashes that were drawn."""
    assert isinstance(error, BaseExceptionGroup), error
    _, others = error.split(Crash)
    if others is not None:
        raise others


class _Over(Exception):
    """The story has ended."""
