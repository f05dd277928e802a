"""A node and its trainers, scripted: what a kubelet and the SDK do, without processes and in virtual time.

The store in here follows the same protocol as the real one: an attempt is claimed by one pod, begins from
the newest checkpoint of the branch that is visible to it, and what a fenced zombie writes stays unseen.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from trialkeeper import contract
from trialkeeper.contract import CheckpointRef, Message, MetricSummary, Resumed
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import ClusterError, Conflict, Object


@dataclass(frozen=True)
class Script:
    """How one trial's trainer behaves. `mishaps`: attempt -> (reports of that attempt before it, what happens)."""

    iterations: int = 6
    seconds: float = 10.0  # an iteration
    every: int = 2  # iterations between checkpoints
    start: float = 3.0  # seconds from container start to the first SDK call
    mishaps: dict[int, tuple[int, str]] = field(default_factory=dict)
    obeys_sigterm: bool = True


Base = tuple[str, int, int]  # another prefix or "" for the own one, attempt, iteration
START: Base = ("", 0, 0)


@dataclass
class Prefix:
    """One trial's part of the store. `donors`: where its first attempt was told to begin from, the nearest first."""

    donors: list[Prefix] = field(default_factory=list)
    name: str = ""
    claims: dict[int, str] = field(default_factory=dict)
    bases: dict[int, Base] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)  # stated by each attempt
    before: dict[int, int] = field(default_factory=dict)  # the sum of all earlier statements, as stated by each
    manifests: set[tuple[int, int]] = field(default_factory=set)
    rows: list[tuple[int, int]] = field(default_factory=list)  # (attempt, iteration), raw
    fenced_rows: int = 0  # written by a zombie after its successor had begun
    complete: set[int] = field(default_factory=set)
    inherited: bool = False  # whether somebody has begun from here

    def visible(self) -> Base:
        """The newest checkpoint of the newest claimed attempt's branch, or what that was begun from."""
        if not self.claims:
            return next((found for donor in self.donors if (found := donor.branch())[2]), START)
        newest = max(self.claims)
        own = [m for m in self.manifests if m[0] == newest]
        return ("", *max(own)) if own else self.bases.get(newest, START)

    def branch(self) -> Base:
        """What another trial finds under this prefix alone."""
        where, attempt, iteration = self.visible() if self.claims else START
        return START if where else (self.name, attempt, iteration)

    def reached(self) -> tuple[int, int]:
        """How far the newest claimed attempt came, in iterations of its branch; what has been stated as lost so far."""
        if not self.claims:
            return next((donor.reached() for donor in self.donors if donor.claims), (0, 0))
        newest = max(self.claims)
        came = max((i for a, i in self.rows if a == newest), default=self.bases.get(newest, START)[2])
        return came, self.lost[newest] + self.before[newest]


@dataclass
class Running:
    """One pod's trainer while it lives."""

    pod: Object
    order: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    alive: bool = True
    zombie: bool = False

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])


class Node:
    """Runs every pod of a Memory; `hear` gets live reports; `now` is seconds since the epoch."""

    def __init__(
        self,
        memory: Memory,
        rng: random.Random,
        scripts: Callable[[str], Script],
        hear: Callable[[str, str, Message], None],
        now: Callable[[], float],
    ) -> None:
        self.memory, self._rng, self._scripts, self._hear, self._now = memory, rng, scripts, hear, now
        self.prefixes: dict[str, Prefix] = {}
        self.running: dict[str, Running] = {}
        self.started: list[tuple[str, str]] = []  # (pod name, uid), in order
        self.mtbf: list[float] = []  # seconds between disruptions, as each of them was told
        self.violations: list[str] = []
        self.predecessors: Callable[[str], list[str]] = lambda _: []  # of a prefix, the nearest first

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            async for event in self.memory.events():
                if event.kind != "Pod":
                    continue
                uid = event.object["metadata"]["uid"]
                run = self.running.get(uid)
                if event.type == "ADDED" and run is None:
                    self.running[uid] = Running(event.object)
                    tasks.create_task(self._pod(self.running[uid]))
                elif event.type == "DELETED" and run is not None and not run.zombie:
                    run.order.put_nowait("kill")
                elif event.object["metadata"].get("deletionTimestamp") and run is not None and not run.zombie:
                    run.order.put_nowait("term")
                    grace = event.object["metadata"]["deletionGracePeriodSeconds"]
                    asyncio.get_running_loop().call_later(grace, run.order.put_nowait, "kill")

    async def _pod(self, run: Running) -> None:
        meta = run.pod["metadata"]
        trial, attempt = meta["labels"]["trialkeeper.dev/trial"], int(meta["labels"]["trialkeeper.dev/attempt"])
        for other in self.running.values():
            if other is not run and other.alive and not other.zombie:
                labels = other.pod["metadata"]["labels"]
                if labels["trialkeeper.dev/trial"] == trial:
                    self.violations.append(f"{meta['name']} started while {other.pod['metadata']['name']} was alive")
        self.started.append((meta["name"], run.uid))
        told = {e["name"]: e.get("value", "") for e in run.pod["spec"]["containers"][0]["env"]}
        self.mtbf.append(float(told[contract.ENV_MTBF_SECONDS]))
        if not await self._bind(run):
            run.alive = False
            return
        try:
            code, message = await self._train(run, trial, attempt)
        finally:
            run.alive = False
        if code is not None and not run.zombie:
            await self._finish(run, code, message)

    async def _bind(self, run: Running) -> bool:
        """Take the pod; False if it was deleted before."""
        meta = run.pod["metadata"]
        stored = await self.memory.get("Pod", meta["namespace"], meta["name"])
        if stored is None or stored["metadata"]["uid"] != run.uid:
            return False
        await self.memory.bind(meta["namespace"], meta["name"], "node")
        return True

    async def _wait(self, run: Running, seconds: float) -> str:
        """What came within so many seconds: term, kill, or nothing."""
        try:
            async with asyncio.timeout(seconds):
                return await run.order.get()
        except TimeoutError:
            return ""

    async def _train(self, run: Running, trial: str, attempt: int) -> tuple[int | None, Message | None]:
        script, prefix = self._scripts(trial), self._prefix(run)
        started = self._now() + script.start
        if await self._wait(run, script.start):
            return 137, None
        base = prefix.visible()
        if attempt in prefix.claims or any(a > attempt for a in prefix.claims):
            return 75, Message(end=contract.END_FENCED, attempt=attempt, podUid=run.uid, time=self._now())
        reached, before = prefix.reached()
        lost = reached - base[2]
        if not prefix.claims:
            for donor in prefix.donors:
                donor.inherited = True
            self._first(prefix, base)
        prefix.claims[attempt], prefix.bases[attempt] = run.uid, base
        prefix.lost[attempt], prefix.before[attempt] = lost, before
        other, wrote, iteration = base
        key = contract.inherited_key(other, wrote, iteration) if other else contract.manifest_key(wrote, iteration)
        message = Message(
            attempt=attempt,
            podUid=run.uid,
            started=started,
            time=started,
            iteration=iteration,
            trainedSeconds=iteration * script.seconds,
            resumed=Resumed(0 if other else wrote, iteration, self._now(), lost, before),
            checkpoint=CheckpointRef(wrote, iteration, key, started) if iteration else None,
        )
        return await self._iterate(run, script, prefix, trial, message)

    def _prefix(self, run: Running) -> Prefix:
        """The pod's part of the store, as its environment says."""
        env = {e["name"]: e.get("value", "") for e in run.pod["spec"]["containers"][0]["env"]}
        name = env[contract.ENV_PREFIX]
        if name not in self.prefixes:
            told = [contract.parse_inherited_key(key) for key in env.get(contract.ENV_BASE, "").split(",") if key]
            donors = [self.prefixes.setdefault(key[0], Prefix(name=key[0])) for key in told if key]
            self.prefixes[name] = Prefix(donors, name)
        return self.prefixes[name]

    def _first(self, prefix: Prefix, base: Base) -> None:
        """A trial begins under a new prefix: at the newest checkpoint that any of its predecessors has left."""
        for name in self.predecessors(prefix.name):
            older = self.prefixes.get(name)
            found = older.branch() if older else START
            if found[2]:
                if base != found:
                    self.violations.append(f"{prefix.name} began from {base}, but there was {found}")
                return

    async def _iterate(
        self, run: Running, script: Script, prefix: Prefix, trial: str, message: Message
    ) -> tuple[int | None, Message | None]:
        attempt, first, terminated = message.attempt, message.iteration, False
        for iteration in range(first + 1, script.iterations + 1):
            order = await self._wait(run, script.seconds)
            if order == "kill":
                return 137, message
            if order == "term" and not terminated:
                terminated = True
                if script.obeys_sigterm:
                    order = await self._wait(run, script.seconds / 2)
                if order == "kill" or not script.obeys_sigterm:
                    order = order if order == "kill" else await self._wait(run, 1e6)
                    return 137, message
            message = self._report(run, script, prefix, message, iteration)
            reports, what = script.mishaps.get(attempt, (0, ""))
            if what and iteration - first >= reports:
                return self._mishap(what, message)
            due = iteration % script.every == 0 or terminated or iteration == script.iterations
            if due:
                if any(a > attempt for a in prefix.claims):
                    return 75, _with(message, end=contract.END_FENCED)
                prefix.manifests.add((attempt, iteration))
                ref = CheckpointRef(attempt, iteration, contract.manifest_key(attempt, iteration), self._now())
                message = _with(message, checkpoint=ref)
            if terminated and iteration < script.iterations:
                return 143, _with(message, end=contract.END_PREEMPTED)
            if self._rng.random() < 0.7:
                self._hear("default", trial, message)
        prefix.complete.add(attempt)
        return 0, _with(message, end=contract.END_COMPLETE, time=self._now())

    def _report(self, run: Running, script: Script, prefix: Prefix, message: Message, iteration: int) -> Message:
        if prefix.inherited or any(a > message.attempt for a in prefix.claims):
            prefix.fenced_rows += 1
        else:
            prefix.rows.append((message.attempt, iteration))
        loss = 1.0 / iteration
        return _with(
            message,
            iteration=iteration,
            time=self._now(),
            firstReport=message.firstReport or self._now(),
            trainedSeconds=iteration * script.seconds,
            metrics={"loss": MetricSummary(loss, loss, 1.0)},
        )

    def _mishap(self, what: str, message: Message) -> tuple[int, Message | None]:
        """Exit code and last words of the ways to go wrong."""
        table: dict[str, tuple[int, Message | None]] = {
            "exit": (3, message),
            "exception": (1, _with(message, end=contract.END_ERROR, reason="Exception", text="ValueError: no")),
            "os._exit": (0, message),
            "nan": (0, _with(message, end=contract.END_STOPPED, reason="NonFinite", text="loss was NaN")),
            "reschedule": (75, message),
            "user error": (78, message),
            "segfault": (139, message),
            "killed": (137, message),
        }
        return table[what]

    async def _finish(self, run: Running, code: int, message: Message | None) -> None:
        """The kubelet's last words about a pod; then it clears away what is being deleted."""
        meta = run.pod["metadata"]
        while True:
            stored = await self.memory.get("Pod", meta["namespace"], meta["name"])
            if stored is None or stored["metadata"]["uid"] != run.uid:
                return
            state = {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "finishedAt": stamp(self._now()),
            }
            state |= {"message": message.encode()} if message else {}
            status: dict[str, Any] = {
                **stored.get("status", {}),
                "phase": "Succeeded" if code == 0 else "Failed",
                "containerStatuses": [{"name": "trainer", "state": {"terminated": state}}],
            }
            try:
                stored = await self.memory.put_status({**stored, "status": status})
                break
            except Conflict:
                continue
            except ClusterError:
                return
        if stored["metadata"].get("deletionTimestamp"):
            await self._remove(run)

    async def _remove(self, run: Running) -> None:
        meta = run.pod["metadata"]
        try:
            await self.memory.delete("Pod", meta["namespace"], meta["name"], uid=run.uid, grace_seconds=0)
        except ClusterError:
            return

    async def disrupt(self, how: str) -> bool:
        """Hit one running pod, drawn; False if there is none."""
        alive = sorted((r for r in self.running.values() if r.alive and not r.zombie), key=lambda r: r.uid)
        if not alive:
            return False
        run = self._rng.choice(alive)
        meta = run.pod["metadata"]
        reasons = {"evict": "EvictionByEvictionAPI", "vanish": "DeletionByPodGC", "pressure": "TerminationByKubelet"}
        if how in reasons and not await self._condition(run, reasons[how]):
            return False
        if how in ("evict", "delete"):
            try:
                await self.memory.delete("Pod", meta["namespace"], meta["name"], uid=run.uid)
            except ClusterError:
                return False
        elif how in ("vanish", "force", "zombie"):
            run.zombie = how == "zombie"
            await self._remove(run)
        else:
            run.order.put_nowait("kill")
        return True

    async def _condition(self, run: Running, reason: str) -> bool:
        meta = run.pod["metadata"]
        while True:
            stored = await self.memory.get("Pod", meta["namespace"], meta["name"])
            if stored is None or stored["metadata"]["uid"] != run.uid:
                return False
            condition = {"type": "DisruptionTarget", "status": "True", "reason": reason}
            try:
                await self.memory.put_status(
                    {**stored, "status": {**stored.get("status", {}), "conditions": [condition]}}
                )
                return True
            except Conflict:
                continue
            except ClusterError:
                return False


def _with(message: Message, **changes: Any) -> Message:
    return replace(message, **changes)
