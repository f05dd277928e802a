"""A node and its trainers, scripted: what a kubelet and the SDK do, without processes and in virtual time.

The store in here follows the same protocol as the real one: an attempt is claimed by one pod, begins from
the newest checkpoint of the branch that is visible to it, and what a fenced zombie writes stays unseen.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trialkeeper import contract
from trialkeeper.contract import CheckpointRef, Message, MetricSummary, Resumed
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import ClusterError, Conflict, Object


@dataclass(frozen=True)
class Script:
    """How one trial's trainer behaves.

    `mishaps`: attempt -> (reports of that attempt before it, what happens): an end, a disruption, or an act
    of the node's.
    """

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
    fork: Base | None = None  # the very checkpoint of another trial, that lives on, to begin from; attempt 0: whichever
    claims: dict[int, str] = field(default_factory=dict)
    bases: dict[int, Base] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)  # stated by each attempt
    before: dict[int, int] = field(default_factory=dict)  # the sum of all earlier statements, as stated by each
    manifests: set[tuple[int, int]] = field(default_factory=set)
    rows: list[tuple[int, int]] = field(default_factory=list)  # (attempt, iteration), raw
    fenced_rows: int = 0  # written by a zombie after its successor had begun
    complete: set[int] = field(default_factory=set)
    others: dict[str, Prefix] = field(default_factory=dict, repr=False)  # all prefixes of the store, by name
    inherited: bool = False  # whether somebody has begun from here

    def visible(self) -> Base:
        """The newest checkpoint of the newest claimed attempt's branch, or what that was begun from."""
        if not self.claims:
            begun = next((found for donor in self.donors if (found := donor.branch())[2]), START)
            return begun if begun[2] or self.fork is None else self.forked()
        newest = max(self.claims)
        own = [m for m in self.manifests if m[0] == newest]
        return ("", *max(own)) if own else self.bases.get(newest, START)

    def forked(self) -> Base:
        """The checkpoint that this one is forked at, in the branch of its donor that is visible now."""
        assert self.fork is not None
        where, wanted, iteration = self.fork
        donor = self.others[where]
        attempt, bound = max(donor.claims, default=0), iteration
        while attempt:
            if (attempt, iteration) in donor.manifests and iteration <= bound and wanted in (0, attempt):
                return where, attempt, iteration
            further, attempt, bound = donor.bases.get(attempt, START)
            if further and bound == iteration:
                return further, attempt, bound
            if further:
                where, wanted, donor = further, 0, self.others[further]
                attempt = max((a for a in donor.claims if (a, bound) in donor.manifests), default=0)
        return START

    def branch(self) -> Base:
        """What another trial finds under this prefix alone."""
        where, attempt, iteration = self.visible() if self.claims else START
        return START if where else (self.name, attempt, iteration)

    def reached(self) -> tuple[int, int]:
        """How far the newest claimed attempt came, in iterations of its branch; what has been stated as lost so far."""
        if not self.claims:
            begun = (self.fork[2] if self.fork else 0, 0)
            return next((donor.reached() for donor in self.donors if donor.claims), begun)
        newest = max(self.claims)
        came = max((i for a, i in self.rows if a == newest), default=self.bases.get(newest, START)[2])
        return came, self.lost[newest] + self.before[newest]


@dataclass
class Running:
    """One pod's trainer while it lives."""

    pod: Object
    order: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    alive: bool = False  # from when its node has it until its trainer has ended
    zombie: bool = False

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])


ATTEMPT, RANK = "trialkeeper.dev/attempt", "trialkeeper.dev/rank"
BROKEN = "ConnectionError: another rank is gone"  # how a rank fails whose group is broken
DISRUPTIONS = ("evict", "delete", "vanish", "force", "zombie", "pressure", "kill", "lost")
_CONDITIONS = {
    "evict": "EvictionByEvictionAPI",
    "vanish": "DeletionByPodGC",
    "pressure": "TerminationByKubelet",
    "lost": "DeletionByTaintManager",
}


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
        self.acts: Mapping[str, Callable[[Running], Awaitable[None]]] = {}  # by the name of a mishap
        self.where: Callable[[Object], str] = lambda pod: "node"
        self.rivals = False  # whether fenced pods may start beside the one that counts: two lead at once
        self.silent: set[str] = set()  # nodes that are not heard of any more

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
        if not await self._bind(run):
            return
        run.alive = True
        for other in self.running.values():
            if other is not run and other.alive and not other.zombie:
                labels = other.pod["metadata"]["labels"]
                ranks = labels["trialkeeper.dev/attempt"] == str(attempt) and labels.get(RANK) != meta["labels"].get(
                    RANK
                )
                if labels["trialkeeper.dev/trial"] == trial and not ranks and not self.rivals:
                    self.violations.append(f"{meta['name']} started while {other.pod['metadata']['name']} was alive")
        self.started.append((meta["name"], run.uid))
        told = {e["name"]: e.get("value", "") for e in run.pod["spec"]["containers"][0]["env"]}
        self.mtbf.append(float(told[contract.ENV_MTBF_SECONDS]))
        try:
            train = self._follow if int(meta["labels"].get(RANK, "0")) else self._train
            code, message = await train(run, trial, attempt)
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
        bound = await self.memory.bind(meta["namespace"], meta["name"], self.where(run.pod))
        begun = {"phase": "Running", "containerStatuses": [{"name": "trainer", "state": {"running": {}}}]}
        await self.memory.put_status({**bound, "status": {**(bound.get("status") or {}), **begun}})
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
        if not await self._gathered(run):
            return 137, None
        base = prefix.visible()
        if prefix.fork is not None and not prefix.claims and base == START:
            self.violations.append(f"{prefix.name} is forked at {prefix.fork}, which is not there")
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

    def ranks(self, run: Running) -> dict[int, Running]:
        """The pods of this one's attempt that are alive, by rank, this one included."""
        mine = run.pod["metadata"]["labels"]
        group = [("trialkeeper.dev/trial", mine["trialkeeper.dev/trial"]), (ATTEMPT, mine[ATTEMPT])]
        found = {}
        for other in self.running.values():
            labels = other.pod["metadata"]["labels"]
            if all(labels[name] == value for name, value in group) and (
                (other.alive and not other.zombie) or other is run
            ):
                found[int(labels.get(RANK, "0"))] = other
        return found

    async def _gathered(self, run: Running) -> bool:
        """Wait for the other ranks, as collectives do; False if this one is ended meanwhile."""
        while not self._whole(run):
            if await self._wait(run, 1.0):
                return False
        return True

    async def _follow(self, run: Running, trial: str, attempt: int) -> tuple[int | None, Message | None]:
        """Another rank: it lives as long as rank 0 does, and has it save and leave when it is asked to go."""
        leave, prefix = False, self._prefix(run)
        began = False
        while True:
            order = await self._wait(run, 1.0)
            if order == "kill":
                return 137, None
            first = self.ranks(run).get(0)
            if order == "term" and not leave:
                leave = True
                if first is not None:
                    first.order.put_nowait("term")
            began = began or first is not None
            if first is None and (began or leave):
                return (0 if attempt in prefix.complete else 143 if leave else 75), None

    def _prefix(self, run: Running) -> Prefix:
        """The pod's part of the store, as its environment says."""
        env = {e["name"]: e.get("value", "") for e in run.pod["spec"]["containers"][0]["env"]}
        name = env[contract.ENV_PREFIX]
        if name not in self.prefixes:
            told = [contract.parse_inherited_key(key) for key in env.get(contract.ENV_BASE, "").split(",") if key]
            donors = [self.prefixes.setdefault(key[0], Prefix(name=key[0])) for key in told if key]
            fork = contract.parse_inherited_key(env.get(contract.ENV_FORK, ""))
            self.prefixes[name] = Prefix(donors, name, fork, others=self.prefixes)
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
        attempt, first, terminated, acted = message.attempt, message.iteration, False, False
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
            if not self._whole(run):
                return 1, _with(message, end=contract.END_ERROR, reason="Exception", text=BROKEN)
            message = self._report(run, script, prefix, message, iteration)
            reports, what = script.mishaps.get(attempt, (0, ""))
            if what and not acted and iteration - first >= reports:
                acted = await self._act(run, what)
                if not acted:
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

    def _whole(self, run: Running) -> bool:
        """Whether all ranks of a pod's attempt are alive."""
        told = {e["name"]: e.get("value", "") for e in run.pod["spec"]["containers"][0]["env"]}
        return len(self.ranks(run)) >= int(told.get("WORLD_SIZE", "1"))

    async def _act(self, run: Running, what: str) -> bool:
        """Do what happens to a trainer while it runs on; False if that is how it ends."""
        if what == "hang":
            while await self._wait(run, 1e9) != "kill":
                pass
            run.order.put_nowait("kill")
        elif what in DISRUPTIONS:
            await self.hit(run, what)
        elif what in self.acts:
            await self.acts[what](run)
        else:
            return False
        return True

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
        return await self.hit(self._rng.choice(alive), how)

    async def hit(self, run: Running, how: str) -> bool:
        """Disrupt this pod; False if it is gone. `lost`: its node is not heard of any more, and trains on."""
        meta = run.pod["metadata"]
        if how in _CONDITIONS and not await self._condition(run, _CONDITIONS[how]):
            return False
        if how == "lost":
            run.zombie = True
            self.silent.add(self.where(run.pod))
        if how in ("evict", "delete", "lost"):
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
