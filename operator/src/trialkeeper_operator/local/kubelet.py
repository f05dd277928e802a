"""The process kubelet: pods are processes of this machine.

It does what a kubelet does and nothing more: takes each pod, starts its trainer, says how it ended, and ends
it with its grace when it is deleted. It gives its kills the evidence that a cluster would give, so that the
endings table judges both worlds alike; it never judges itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trialkeeper import contract
from trialkeeper.contract import Message
from trialkeeper_operator.api import names
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.local import environment, process
from trialkeeper_operator.local.environment import CannotStart
from trialkeeper_operator.local.gpus import Gpus
from trialkeeper_operator.reconcile.ports import Conflict, NotFound, Object

NODE = "local"
REPORT_POLL = 0.1  # seconds
MESSAGE_LIMIT = 4096  # bytes of a termination message
LOG_TAIL = 2048  # bytes of the log that stand in for one
SHUTDOWN_GRACE = 10.0  # seconds at most for a trainer to save when the runner goes

How = Literal["SIGTERM", "SIGKILL"]
CannotStartOrOS = (CannotStart, OSError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Place:
    """Where things are: the YAML file's folder, the run's folder, and the shell's variables."""

    base: Path
    run: Path
    shell: Mapping[str, str]

    def pod(self, name: str) -> Path:
        return self.run / "pods" / name

    def log(self, name: str) -> Path:
        return self.run / "logs" / f"{name}.log"


@dataclass
class Running:
    """One pod while it is ours. `orders`: grace in seconds until SIGKILL, 0 at once."""

    pod: Object
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    orders: asyncio.Queue[float] = field(default_factory=asyncio.Queue)
    deadline_passed: bool = False
    vanished: bool = False  # its object is removed by whoever kills it
    report_seen: int = 0

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])


class Kubelet:
    """Runs the pods of a Memory. `flush` makes the journal durable; `on_report` gets (namespace, trial, message)."""

    def __init__(
        self,
        memory: Memory,
        place: Place,
        *,
        now: Callable[[], float],
        flush: Callable[[], None],
        on_report: Callable[[str, str, Message], None],
        gpus: Gpus,
    ) -> None:
        self._memory, self._place, self._now, self._flush = memory, place, now, flush
        self._on_report, self._gpus = on_report, gpus
        self._pods: dict[str, Running] = {}
        self._started: list[str] = []  # uids of all pods that ran a process
        self._stopping = False
        self._empty = asyncio.Event()
        self._empty.set()
        for folder in ("pods", "logs", "store"):
            (place.run / folder).mkdir(parents=True, exist_ok=True)

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
                elif running is None and event.type == "ADDED" and not _terminal(event.object):
                    running = self._pods[meta["uid"]] = Running(event.object)
                    tasks.create_task(self._live(running))
                elif running is not None and meta.get("deletionTimestamp"):
                    running.orders.put_nowait(float(meta.get("deletionGracePeriodSeconds", 30)))
                elif running is None and meta.get("deletionTimestamp") and _terminal(event.object):
                    await self._remove(meta["namespace"], meta["name"], meta["uid"])

    # One pod's life.

    async def _live(self, running: Running) -> None:
        self._empty.clear()
        try:
            await self._memory.bind(running.pod["metadata"]["namespace"], running.name, NODE)
            async with self._gpus.lend(running.uid, self._container(running.pod)) as visible:
                if self._stopping:
                    return
                if not self._start(running, visible):
                    await self._remove(running.pod["metadata"]["namespace"], running.name, running.uid)
                    return
                await self._running(running)
                code = await self._until_ended(running)
            await self._finish(running, code)
        except NotFound:
            return  # deleted before it began
        except CannotStartOrOS as error:
            await self._report_start_error(running, error)
        finally:
            if running.process is not None:
                process.end_group(running.process.pid)
            self._pods.pop(running.uid, None)
            if not self._pods:
                self._empty.set()
            shutil.rmtree(self._place.pod(running.name), ignore_errors=True)

    def _container(self, pod: Object) -> Mapping[str, Any]:
        return environment.trainer(pod, (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_TRAINER))

    def _start(self, running: Running, visible: str | None) -> bool:
        """Start the trainer; False if the pod has been deleted meanwhile."""
        if not running.orders.empty():
            return False
        pod, place = running.pod, self._place
        container, folder = self._container(pod), place.pod(running.name)
        (folder / "scratch").mkdir(parents=True, exist_ok=True)
        (folder / "termination").touch()
        shell = {k: v for k, v in place.shell.items() if not k.startswith("TRIALKEEPER_")}
        own = environment.variables(container, pod, place.shell)
        given = {
            contract.ENV_SCRATCH: str(folder / "scratch"),
            contract.ENV_TERMINATION_LOG: str(folder / "termination"),
            contract.ENV_REPORT: (folder / "report.json").as_uri(),
            contract.ENV_STORE: (place.run / "store").as_uri(),
        }
        env = shell | own | given
        env["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), env.get("PATH", os.defpath)])
        if visible is not None:
            env["CUDA_VISIBLE_DEVICES"] = visible
        command = environment.command(container, own)
        if shutil.which(command[0], path=env["PATH"]) is None and os.sep not in command[0]:
            raise CannotStart(f"{command[0]}: no such command: install it, or mend template.spec.containers[].command")
        self._flush()  # a process that runs must be known after a reboot
        where = environment.folder(container, place.base)
        running.process = process.start(command, env=env, folder=where, log=place.log(running.name))
        running.started = self._now()
        self._started.append(running.uid)
        return True

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
                if order.done():
                    grace = order.result()
                    order = asyncio.ensure_future(running.orders.get())
                    if kill_at == float("inf") and grace > 0:
                        process.signal_process(running.process, signal.SIGTERM)
                    kill_at = min(kill_at, loop.time() + grace)
                if loop.time() >= deadline and kill_at == float("inf"):
                    running.deadline_passed, kill_at = True, loop.time() + _grace(running.pod)
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
        state = {"running": {"startedAt": stamp(running.started)}}
        entry = {"name": self._container(running.pod)["name"], "state": state}
        entry["containerID"] = f"process://{running.process.pid}"
        await self._say(
            running, {"phase": "Running", "startTime": stamp(running.started), "containerStatuses": [entry]}
        )

    async def _finish(self, running: Running, code: int) -> None:
        self._read_report(running)
        reason = "Completed" if code == 0 else "Error"
        status: dict[str, Any] = {"phase": "Succeeded" if code == 0 else "Failed"}
        if running.deadline_passed:
            status = {"phase": "Failed", "reason": "DeadlineExceeded"}
        elif self._stopping:
            status = {"phase": "Failed", "reason": "Terminated"}
        if self._stopping:
            status["conditions"] = [_disruption("TerminationByKubelet", "the runner was stopped")]
        await self._terminated(running, code, reason, self._last_words(running, code), status)

    async def _report_start_error(self, running: Running, error: Exception) -> None:
        message = str(error)
        if isinstance(error, OSError):
            message = f"{error.filename or 'the command'} could not be started: {error.strerror}"
        await self._terminated(running, 128, "StartError", message, {"phase": "Failed"})

    async def _terminated(self, running: Running, code: int, reason: str, message: str, status: dict[str, Any]) -> None:
        state: dict[str, Any] = {"exitCode": code, "reason": reason, "finishedAt": stamp(self._now())}
        state |= {"message": message[:MESSAGE_LIMIT]} if message else {}
        state |= {"startedAt": stamp(running.started)} if running.started else {}
        entry = {"name": self._container(running.pod)["name"], "state": {"terminated": state}}
        stored = await self._say(running, {**status, "containerStatuses": [entry]})
        if stored is not None and (stored["metadata"].get("deletionTimestamp") or running.vanished):
            await self._remove(stored["metadata"]["namespace"], running.name, running.uid)

    def _last_words(self, running: Running, code: int) -> str:
        """The termination message, or the log's tail if there is none and the trainer failed."""
        with contextlib.suppress(OSError):
            text = (self._place.pod(running.name) / "termination").read_bytes()[:MESSAGE_LIMIT]
            if text:
                return text.decode(errors="replace")
        policy = self._container(running.pod).get("terminationMessagePolicy")
        if code != 0 and policy == "FallbackToLogsOnError":
            with contextlib.suppress(OSError), self._place.log(running.name).open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - LOG_TAIL))
                return log.read(LOG_TAIL).decode(errors="replace")
        return ""

    async def _say(self, running: Running, status: dict[str, Any]) -> Object | None:
        """Put a pod's status over the stored one, which others may have added conditions to."""
        while True:
            stored = await self._memory.get(names.POD, running.pod["metadata"]["namespace"], running.name)
            if stored is None or stored["metadata"]["uid"] != running.uid:
                return None
            with contextlib.suppress(Conflict):
                merged = {**stored.get("status", {}), **status}
                return await self._memory.put_status({**stored, "status": merged})

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
        path = self._place.pod(running.name) / "report.json"
        try:
            changed = path.stat().st_mtime_ns
            if changed == running.report_seen:
                return
            running.report_seen = changed
            with path.open("rb") as file:
                message = Message.decode(file.read(16 << 10))
        except OSError:
            return
        trial = (running.pod["metadata"].get("labels") or {}).get(names.LABEL_TRIAL)
        if message is not None and trial is not None:
            self._on_report(running.pod["metadata"]["namespace"], trial, message)

    # Disruptions.

    async def preempt(self, namespace: str, pod: str, how: How) -> bool:
        """Take the node from a pod, with notice (SIGTERM and its grace) or without; False if it does not run."""
        running = next((r for r in self._pods.values() if r.name == pod and r.process is not None), None)
        if running is None or running.process is None or running.process.poll() is not None:
            return False
        if how == "SIGTERM":
            condition = _disruption("EvictionByEvictionAPI", "trialkeeper run --preempt: evicted with notice")
            await self._say(running, {"conditions": [condition]})
            with contextlib.suppress(NotFound, Conflict):
                await self._memory.delete(names.POD, namespace, pod, uid=running.uid)
            return True
        condition = _disruption("DeletionByPodGC", "trialkeeper run --preempt: the node vanished without notice")
        await self._say(running, {"conditions": [condition]})
        running.vanished = True
        process.end_group(running.process.pid)
        return True

    async def stop(self) -> None:
        """As a node shuts down: every trainer gets SIGTERM and a short grace; returns when all have ended."""
        self._stopping = True
        for running in self._pods.values():
            running.orders.put_nowait(min(_grace(running.pod), SHUTDOWN_GRACE))
        await self._empty.wait()

    async def sweep(self) -> None:
        """End what has left its trainer's process group and lives on, found by its environment."""
        left = process.of_pods(self._started)
        await process.end_all([pid for pids in left.values() for pid in pids], 0.0)

    def kill(self) -> None:
        """End every trainer at once."""
        for running in self._pods.values():
            running.orders.put_nowait(0.0)

    async def _recover(self) -> None:
        """End what a dead runner left running, and say of its pods that their node is gone."""
        pods = [p async for p in self._memory.list(names.POD) if not _terminal(p)]
        left = process.of_pods(p["metadata"]["uid"] for p in pods)
        grace = max((min(_grace(p), SHUTDOWN_GRACE) for p in pods), default=0.0)
        await process.end_all([pid for pids in left.values() for pid in pids], grace)
        for pod in pods:
            if not pod["spec"].get("nodeName"):
                continue  # it never began: it is started like any new pod
            running = Running(pod)
            condition = _disruption("DeletionByPodGC", "the runner died, and its processes were ended")
            status = {"phase": "Failed", "conditions": [condition]}
            words = self._last_words(running, 0)
            self._read_report(running)
            await self._terminated(running, 137, "ContainerStatusUnknown", words, status)
            shutil.rmtree(self._place.pod(running.name), ignore_errors=True)


def _terminal(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _grace(pod: Object) -> float:
    return float(pod["spec"].get("terminationGracePeriodSeconds", 30))


def _disruption(reason: str, message: str) -> dict[str, str]:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}
