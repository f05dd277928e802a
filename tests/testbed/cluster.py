"""A cluster: brought up, used by tests, and taken down without a trace."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from testbed import cache, fakes, mounts, network, packages
from testbed.control import GROUP, Control
from testbed.node import Node
from testbed.plan import NUMBERS, ClusterRefused, Plan, Wishes, find, folder, reserve, tree
from testbed.processes import Processes
from testbed.programs import program
from testbed.shell import CommandFailed, run
from testbed.wait import until

log = logging.getLogger("testbed")

HERE = Path(__file__).parent


class Cluster:
    """A cluster of this machine, whoever started it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.processes = Processes(plan.folder, plan.tree)
        self.control = Control(plan, self.processes)
        self.nodes = {name: Node(name, self.control, self.processes) for name in plan.nodes}

    @property
    def kubeconfig(self) -> Path:
        return self.plan.kubeconfig

    def environment(self) -> dict[str, str]:
        """The variables under which a program finds this cluster, and no proxy in between."""
        homes = {f"HELM_{kind}_HOME": str(self.plan.folder / "helm") for kind in ("CACHE", "CONFIG", "DATA")}
        direct = f"{self.plan.control},{self.plan.services},{self.plan.all_pods}"
        return {**os.environ, **homes, "KUBECONFIG": str(self.kubeconfig), "NO_PROXY": direct, "no_proxy": direct}

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """What kubectl says, as a user with all rights.

        :raises CommandFailed: if it fails.
        """
        return run(program("kubectl"), *arguments, stdin=stdin, timeout=timeout, env=self.environment())

    def helm(self, *arguments: str, timeout: float = 300) -> str:
        """What helm says.

        :raises CommandFailed: if it fails.
        """
        return run(program("helm"), *arguments, timeout=timeout, env=self.environment())

    def node(self, name: str) -> Node:
        return self.nodes[name]

    def load(self, archive: Path) -> None:
        """Put the images of an archive into every node."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.load(archive), self.nodes.values()))

    def restart_apiserver(self) -> None:
        """End the API server by SIGKILL, start it again, and wait until it is ready."""
        self.processes.restart("kube-apiserver")
        self.control.wait()

    def ready(self) -> bool:
        """Whether the API answers and every node is ready."""
        try:
            return self.control.api().ready() and all(node.ready() for node in self.nodes.values())
        except (OSError, RuntimeError):
            return False

    def start(self) -> None:
        """Bring up what was planned, and wait until all nodes are ready."""
        network.make(self.plan)
        self.control.certify()
        with ThreadPoolExecutor() as pool:  # nodes get ready while the control plane starts
            if self.nodes:
                mounts.points()
            starting = [pool.submit(node.start) for node in self.nodes.values()]
            self.control.start()
            self.kubectl("apply", "-f", str(HERE / "manifests" / "cluster.yaml"))
            if self.nodes:
                self.control.dns()
            if self.plan.wishes.storage_class:
                self._storage()
            if self.plan.wishes.kwok:
                fakes.start(self.control, self.plan.wishes.kwok)
            for future in starting:
                future.result()
        for node in self.nodes.values():
            until(f"{node.name} to be ready", node.ready, seconds=90)
        api = self.control.api()
        until("service accounts", lambda: api.items("/api/v1/namespaces/default/serviceaccounts"))

    def _storage(self) -> None:
        self.kubectl("apply", "-f", str(HERE / "manifests" / "storage.yaml"))
        module = [sys.executable, "-m", "testbed.provisioner"]
        arguments = [self.control.server, str(self.control.authority.folder), str(self.plan.folder / "volumes")]
        command = [*self.plan.enter("control"), *module, *arguments]
        self.processes.start("provisioner", command, group=GROUP, env={"PYTHONPATH": str(HERE.parent)})


def up(name: str, wishes: Wishes) -> Cluster:
    """Bring a cluster up, or find the one of this name that runs already.

    :raises ClusterRefused: if it runs otherwise than wished, or cannot run here.
    """
    packages.check()
    with cache.locked(f"cluster-{name}"):
        begun = find(name)
        if begun and Cluster(begun).ready():
            if begun.wishes != wishes:
                raise ClusterRefused(f"the cluster {name} runs already, but otherwise than wished: take it down first")
            return Cluster(begun)
        return _begin(name, wishes)


def _begin(name: str, wishes: Wishes) -> Cluster:
    _end(name)
    began = time.monotonic()
    cluster = Cluster(reserve(name, wishes))
    try:
        cluster.start()
    except Exception:
        for path in sorted(cluster.processes.logs.glob("*.log")):
            log.error("%s said last:\n%s", path.stem, cluster.processes.tail(path.stem, 8))
        raise
    log.info("the cluster %s is up after %.0f s", name, time.monotonic() - began)
    return cluster


def down(name: str) -> None:
    """Take a cluster down, whatever has become of it: its processes, network, mounts, cgroups and files."""
    with cache.locked(f"cluster-{name}"):
        _end(name)


def _end(name: str) -> None:
    """All by name: there may be no plan, if its folder was removed by somebody, or was never finished."""
    tree(name).kill()
    tree(name).remove()
    network.remove(name)
    _unmount(folder(name))
    cache.throw_away(folder(name))
    mounts.remove_points()


@contextlib.contextmanager
def cluster(
    name: str = "test", *, nodes: int = 1, kwok: int = 0, storage_class: bool = True, node_grace: int = 40
) -> Iterator[Cluster]:
    """A new cluster for as long as the block lasts; without nodes a control plane, with `kwok` fake nodes if wished.

    Whoever uses the same name at the same time gets another cluster, with a number behind its name; what somebody left
    who was killed is replaced.

    :raises ClusterRefused: if it cannot run here.
    """
    packages.check()
    names = [f"session-{name}", *(f"session-{name}-{number}" for number in NUMBERS)]
    with cache.locked_one_of(names) as taken:
        own = taken.removeprefix("session-")
        try:
            with cache.locked(f"cluster-{own}"):
                running = _begin(own, Wishes(nodes, kwok, storage_class, node_grace))
            yield running
        finally:
            down(own)


def _unmount(path: Path) -> None:
    """Unmount whatever is mounted below a folder; there is nothing unless somebody mounted it by hand."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in sorted((m for m in mounted if m.startswith(f"{path}/")), reverse=True):
        with contextlib.suppress(CommandFailed):
            run("umount", "--lazy", point)
