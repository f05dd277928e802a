"""The process kubelet: pods are processes of this machine.

It does what a kubelet does and nothing more: takes each pod, starts its trainer, says how it ended, and ends
it with its grace when it is deleted. It gives its kills the evidence that a cluster would give, so that the
endings table judges both worlds alike; it never judges itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import Literal

from trialkeeper.contract import Message
from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.decide import evidence
from trialkeeper_operator.local import environment, podstatus, process
from trialkeeper_operator.local.environment import CannotStart
from trialkeeper_operator.local.gpus import Gpus
from trialkeeper_operator.local.place import Place
from trialkeeper_operator.local.running import NoRoom, Running, start
from trialkeeper_operator.reconcile.ports import Conflict, NotFound, Object

NODE = "local"
REPORT_POLL = 0.1  # seconds
SWEEP_INTERVAL = 1.0  # seconds at least between two looks for what has outlived its trainer
ORPHAN_GRACE = 10.0  # seconds at most for the trainers of a dead runner to save, while the next one waits
PREEMPTED = "trialkeeper run --preempt"  # stands in the messages of our own kills

How = Literal["SIGTERM", "SIGKILL"]


class Kubelet:
    """Runs the pods of a Memory. `flush` makes the journal durable; `on_report` gets (namespace, trial, message).

    `replaced` says whether the run's folder may be another runner's by now: what is there is left alone then.
    """

    def __init__(
        self,
        memory: Memory,
        place: Place,
        *,
        now: Callable[[], float],
        flush: Callable[[], None],
        on_report: Callable[[str, str, Message], None],
        gpus: Gpus,
        replaced: Callable[[], bool] = lambda: False,
    ) -> None:
        self._memory, self._place, self._now, self._flush = memory, place, now, flush
        self._on_report, self._gpus, self._replaced = on_report, gpus, replaced
        self._pods: dict[str, Running] = {}
        self._swept = float("-inf")
        self._stopping = False
        self._empty = asyncio.Event()
        self._empty.set()
        place.make()

    async def run(self) -> None:
        """Run until cancelled; the pods of a dead runner are ended first."""
        await self._recover()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll_reports())
            async for event in self._memory.events():
                if event.kind != names.POD:
                    continue
                meta = event.object["metadata"]
                running = self._pods.get(meta["uid"])
                if event.type == "DELETED":
                    if running is not None and not running.vanished:
                        running.orders.put_nowait(0.0)
                elif running is None and event.type == "ADDED" and not evidence.is_terminal(event.object):
                    running = self._pods[meta["uid"]] = Running(event.object)
                    self._empty.clear()
                    tasks.create_task(self._live(running))
                elif running is not None and meta.get("deletionTimestamp"):
                    running.orders.put_nowait(float(meta.get("deletionGracePeriodSeconds", 30)))
                elif running is None and meta.get("deletionTimestamp") and evidence.is_terminal(event.object):
                    await self._remove(meta["namespace"], meta["name"], meta["uid"])

    # One pod's life.

    async def _live(self, running: Running) -> None:
        try:
            async with self._gpus.lend(environment.gpus(running.container)) as visible:
                if self._stopping or not running.orders.empty():
                    return  # it belongs to no node yet: whoever comes next may begin it, or it is gone already
                # A pod is bound when it is about to begin, so that one that waits can be deleted at once.
                running.pod = await self._memory.bind(running.namespace, running.name, NODE)
                self._flush()  # a process that runs must be known after a reboot
                running.process = start(running, self._place, visible)
                running.started = self._now()
                await self._running(running)
                code = await self._until_ended(running)
            await self._finish(running, code)
        except NotFound:
            return  # deleted before it began
        except CannotStart as error:
            await self._ended(running, 128, str(error), reason="StartError")
        except NoRoom as error:
            await self._over(running, podstatus.never_started(f"this machine has no room for a process: {error}"))
        finally:
            if running.process is not None and running.process.returncode is None:
                process.end(running.process)
            self._pods.pop(running.uid, None)
            if not self._pods:
                self._empty.set()
            if not self._replaced():
                self._sweep_soon()
                await asyncio.to_thread(self._place.clear, running.name)  # the disk may take its time

    async def _until_ended(self, running: Running) -> int:
        """Wait for the process, and end it when told to: SIGTERM, the grace, SIGKILL."""
        assert running.process is not None
        loop = asyncio.get_running_loop()
        end = asyncio.ensure_future(process.ended(running.process))
        order: asyncio.Task[float] = asyncio.ensure_future(running.orders.get())
        limit = running.pod["spec"].get("activeDeadlineSeconds")
        kill_at = float("inf")
        deadline = loop.time() + float(limit) if limit else float("inf")
        try:
            while not end.done():
                until = min(kill_at, deadline)
                timeout = None if until == float("inf") else max(0.0, until - loop.time())
                await asyncio.wait({end, order}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if end.done():
                    break
                if order.done():
                    grace = order.result()
                    order = asyncio.ensure_future(running.orders.get())
                    if kill_at == float("inf") and grace > 0:
                        process.signal_process(running.process, signal.SIGTERM)
                    kill_at = min(kill_at, loop.time() + grace)
                if loop.time() >= deadline and kill_at == float("inf"):
                    running.deadline_passed, kill_at = True, loop.time() + podstatus.grace(running.pod)
                    deadline = float("inf")
                    process.signal_process(running.process, signal.SIGTERM)
                if loop.time() >= kill_at:
                    process.end_group(running.process.pid)
                    kill_at = loop.time() + 1.0
            return end.result()
        finally:
            order.cancel()
            end.cancel()

    # What is said about it.

    async def _running(self, running: Running) -> None:
        assert running.process is not None
        await self._say(running, podstatus.running(running.container["name"], running.process.pid, running.started))

    async def _finish(self, running: Running, code: int) -> None:
        extra: podstatus.Status = {}
        if running.deadline_passed:
            extra = {"phase": "Failed", "reason": "DeadlineExceeded"}
        elif self._stopping:
            extra = {"phase": "Failed", "reason": "Terminated"}
            extra |= podstatus.disruption("TerminationByKubelet", "the runner was stopped")
        await self._ended(running, code, self._last_words(running, code), pod=extra)

    def _last_words(self, running: Running, code: int) -> str:
        self._read_report(running)
        fallback = running.container.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        return self._place.last_words(running.name, or_log=fallback and code != 0)

    async def _ended(
        self, running: Running, code: int, message: str, *, reason: str = "", pod: podstatus.Status | None = None
    ) -> None:
        """Say that the container has ended, for this reason, and what there is to say about the `pod` besides."""
        name = running.container["name"]
        status = podstatus.ended(name, code, message, running.started, self._now(), reason)
        await self._over(running, status | (pod or {}))

    async def _over(self, running: Running, status: podstatus.Status) -> None:
        """Say a pod's last word; a pod that somebody has deleted goes with it."""
        stored = await self._say(running, status)
        if stored is not None and (stored["metadata"].get("deletionTimestamp") or running.vanished):
            await self._remove(running.namespace, running.name, running.uid)

    async def _say(self, running: Running, status: podstatus.Status) -> Object | None:
        """Put a pod's status over the stored one; the first disruption it has had is the one that counts."""
        while True:
            stored = await self._memory.get(names.POD, running.namespace, running.name)
            if stored is None or stored["metadata"]["uid"] != running.uid:
                return None
            known = stored.get("status") or {}
            first = {"conditions": known["conditions"]} if known.get("conditions") else {}
            with contextlib.suppress(Conflict):
                return await self._memory.put_status({**stored, "status": known | status | first})

    async def _remove(self, namespace: str, name: str, uid: str) -> None:
        with contextlib.suppress(NotFound, Conflict):
            await self._memory.delete(names.POD, namespace, name, uid=uid, grace_seconds=0)

    # Live reports.

    async def _poll_reports(self) -> None:
        while True:
            await asyncio.sleep(REPORT_POLL)
            for running in list(self._pods.values()):
                if running.process is not None:
                    self._read_report(running)

    def _read_report(self, running: Running) -> None:
        running.report_seen, message = self._place.report(running.name, running.report_seen)
        trial = (running.pod["metadata"].get("labels") or {}).get(names.LABEL_TRIAL)
        if message is not None and trial is not None:
            self._on_report(running.namespace, trial, message)

    # Disruptions.

    async def preempt(self, namespace: str, pod: str, how: How) -> bool:
        """Take the node from a pod, with notice (SIGTERM and its grace) or without; False if it does not run."""
        running = next((r for r in self._pods.values() if (r.namespace, r.name) == (namespace, pod)), None)
        if running is None or running.process is None or not process.alive(running.process.pid):
            return False
        if how == "SIGTERM":
            await self._say(running, podstatus.disruption("EvictionByEvictionAPI", f"{PREEMPTED}: evicted with notice"))
            with contextlib.suppress(NotFound, Conflict):
                await self._memory.delete(names.POD, namespace, pod, uid=running.uid)
            return True
        message = f"{PREEMPTED}: the node vanished without notice"
        await self._say(running, podstatus.disruption("DeletionByPodGC", message))
        running.vanished = True
        process.end_group(running.process.pid)
        return True

    @property
    def grace(self) -> float:
        """Seconds that `stop` takes at most; 0 if no trainer is here."""
        return max((podstatus.grace(running.pod) for running in self._pods.values()), default=0.0)

    async def stop(self) -> None:
        """As a node shuts down: every trainer gets SIGTERM and its grace; returns when all have ended."""
        self._stopping = True
        for running in self._pods.values():
            running.orders.put_nowait(podstatus.grace(running.pod))
        await self._empty.wait()

    def kill(self) -> None:
        """End every trainer at once."""
        for running in self._pods.values():
            running.orders.put_nowait(0.0)

    def _sweep_soon(self) -> None:
        """End what has left its trainer's process group and lives on, unless that was done a moment ago."""
        now = asyncio.get_running_loop().time()
        if now - self._swept >= SWEEP_INTERVAL:
            self._swept = now
            process.signal_all(self._outlived(), signal.SIGKILL)

    def _outlived(self) -> list[int]:
        alive = {running.name for running in self._pods.values()}
        return [pid for name, pids in process.of_run(self._place.pods).items() if name not in alive for pid in pids]

    async def sweep(self) -> None:
        """After `run`: end everything that has outlived its trainer, and clear away what is left of its pods."""
        if not self._replaced():
            await process.end_all(self._outlived(), 0.0)
            self._place.clear_all()

    async def _recover(self) -> None:
        """End what a dead runner left running, and say of its pods that their node is gone."""
        pods = [p async for p in self._memory.list(names.POD) if not evidence.is_terminal(p)]
        # By uid too, since the run's folder may have been moved.
        left = [
            *process.of_run(self._place.pods).values(),
            *process.of_pods(p["metadata"]["uid"] for p in pods).values(),
        ]
        grace = max((min(podstatus.grace(p), ORPHAN_GRACE) for p in pods), default=0.0)
        await process.end_all(sorted({pid for pids in left for pid in pids}), grace)
        for pod in pods:
            if not pod["spec"].get("nodeName"):
                continue  # it never began: it is started like any new pod
            running = Running(pod)
            gone = podstatus.disruption("DeletionByPodGC", "the runner died, and its processes were ended")
            words = self._last_words(running, 0)
            await self._ended(running, 137, words, reason="ContainerStatusUnknown", pod=gone)
        self._place.clear_all()
