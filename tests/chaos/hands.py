"""What is done to a cluster, and undone. Only processes of the cluster itself are touched, by their numbers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from chaos.story import Act, Done
from e2e.cluster.installed import SYSTEM, Installed
from testbed import Cluster
from testbed.shell import CommandFailed
from trialkeeper_operator.api import names

Object = dict[str, Any]
Undo = Callable[[], None]


class Hands:
    """Does acts to the trials of one namespace and to what they stand on."""

    def __init__(self, installed: Installed, cluster: Cluster, namespace: str) -> None:
        self._installed, self._cluster, self._namespace = installed, cluster, namespace
        self._pods: list[Object] = []
        self._hit: set[str] = set()
        self.done: list[Done] = []

    def look(self) -> None:
        """Remember the trials' pods, which cannot be asked for while the API server is away."""
        with contextlib.suppress(CommandFailed):
            self._pods = self._installed.items("pods", self._namespace, "--request-timeout=5s")

    def hit(self, act: Act) -> Done:
        """End one running pod that has not been hit yet."""
        if act.what != "sigkill":
            self.look()
        there = sorted((p for p in self._pods if self._fair(p)), key=lambda p: str(p["metadata"]["name"]))
        began = time.time()
        if not there:
            return self._book(Done(act.what, "", began, began, missed=True))
        pod = there[int(act.pick * len(there))]
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        try:
            self._end(act.what, name, uid)
        except (ProcessLookupError, CommandFailed):
            return self._book(Done(act.what, name, began, time.time(), missed=True))
        self._hit.add(uid)
        return self._book(Done(act.what, name, began, time.time()))

    def _fair(self, pod: Object) -> bool:
        meta, status = pod["metadata"], pod.get("status") or {}
        running = status.get("phase") == "Running" and any(
            "running" in (c.get("state") or {}) for c in status.get("containerStatuses") or ()
        )
        ours = names.LABEL_TRIAL in meta.get("labels", {})
        return bool(ours and running and not meta.get("deletionTimestamp") and meta["uid"] not in self._hit)

    def _end(self, what: str, name: str, uid: str) -> None:
        if what == "sigkill":
            _signal(self._first(lambda env: env.get("TRIALKEEPER_POD_UID") == uid), signal.SIGKILL)
        elif what == "evict":
            self._installed.evict(self._namespace, name)
        else:
            self._installed.delete_pod(self._namespace, name, force=what == "force")

    def begin(self, act: Act) -> Callable[[], Done]:
        """Take something away; what brings it back when its time is over."""
        began = time.time()
        try:
            to, undo = getattr(self, f"_{act.what.replace('-', '_')}")(act)
        except (ProcessLookupError, CommandFailed, OSError):
            missed = Done(act.what, "", began, began, missed=True)
            return lambda: self._book(missed)
        begun = Done(act.what, to, began, began)

        def over() -> Done:
            undo()
            return self._book(replace(begun, end=time.time()))

        return over

    def _book(self, done: Done) -> Done:
        self.done.append(done)
        return done

    def _node(self, act: Act) -> str:
        nodes = sorted(self._cluster.nodes)
        return nodes[int(act.pick * len(nodes))]

    def _kubelet_killed(self, act: Act) -> tuple[str, Undo]:
        node = self._cluster.node(self._node(act))
        node.stop_kubelet()
        return node.name, node.start

    _node_lost = _kubelet_killed

    def _kubelet_frozen(self, act: Act) -> tuple[str, Undo]:
        node = self._node(act)
        return node, _freeze(self._program(f"{node}-kubelet"))

    def _apiserver_killed(self, act: Act) -> tuple[str, Undo]:
        self._cluster.processes.kill("kube-apiserver")
        return "kube-apiserver", self._cluster.restart_apiserver

    def _apiserver_frozen(self, act: Act) -> tuple[str, Undo]:
        return "kube-apiserver", _freeze(self._program("kube-apiserver"))

    def _operator_killed(self, act: Act) -> tuple[str, Undo]:
        name, pid = self._operator(act)
        _signal(pid, signal.SIGKILL)
        return name, lambda: None

    def _operator_frozen(self, act: Act) -> tuple[str, Undo]:
        name, pid = self._operator(act)
        return name, _freeze(pid)

    def _store_killed(self, act: Act) -> tuple[str, Undo]:
        _signal(self._store(), signal.SIGKILL)
        return "store", lambda: None

    def _store_frozen(self, act: Act) -> tuple[str, Undo]:
        return "store", _freeze(self._store())

    def _operator(self, act: Act) -> tuple[str, int]:
        """The one that leads, twice out of three times; else the one that waits."""
        leader = self._installed.holder().rpartition("_")[0]
        pods = self._installed.items("pods", SYSTEM, "-l", "app.kubernetes.io/component=operator")
        others = sorted(p["metadata"]["name"] for p in pods if p["metadata"]["name"] != leader)
        name = others[0] if others and act.pick > 2 / 3 else leader
        ours = {"POD_NAME": name, "POD_NAMESPACE": SYSTEM}
        return name, self._first(lambda env: ours.items() <= env.items())

    def _store(self) -> int:
        return self._first(lambda env: "MINIO_ROOT_USER_FILE" in env)

    def _program(self, name: str) -> int:
        pid = self._cluster.processes.pid(name)
        if pid is None:
            raise ProcessLookupError(name)
        return pid

    def _first(self, wanted: Callable[[dict[str, str]], bool]) -> int:
        """The first process of a container of this cluster whose environment is as wished."""
        for pid in sorted(self._cluster.plan.tree.pids()):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                raw = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace")
            except OSError:
                continue
            inside = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
            pairs = (v.partition("=") for v in raw.split("\0") if "=" in v)
            if len(inside) > 1 and inside[-1] == "1" and wanted({name: value for name, _, value in pairs}):
                return pid
        raise ProcessLookupError("no such process in any container")


def _signal(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)


def _freeze(pid: int) -> Undo:
    """Stop a process; what lets it go on, and nobody else who may have its number by then."""
    descriptor = os.pidfd_open(pid)
    signal.pidfd_send_signal(descriptor, signal.SIGSTOP)

    def thaw() -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGCONT)
        os.close(descriptor)

    return thaw
