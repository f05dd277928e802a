"""Trialkeeper installed by helm on the testbed, and what a test does there: apply, wait, kill, look into the bucket."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed import Cluster
from testbed.programs import program
from testbed.shell import CommandFailed, run
from testbed.wait import until

ROOT = Path(__file__).parents[3]
SYSTEM = "trialkeeper-system"
INSTALL = ["install", "trialkeeper", "charts/trialkeeper", "-n", SYSTEM, "--create-namespace", "--wait"]
Object = dict[str, Any]


class Named:
    """A cluster that somebody else has made: kind on a laptop, or one in a cloud. Its nodes are not ours to kill."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        return run("kubectl", *arguments, stdin=stdin, timeout=timeout, env=self.environment())

    def helm(self, *arguments: str, timeout: float = 300) -> str:
        return run("helm", *arguments, timeout=timeout, env=self.environment())


@dataclass(frozen=True)
class Installed:
    """The installation under test."""

    cluster: Cluster | Named

    @property
    def hosts(self) -> Cluster:
        """The cluster, if its nodes are ours; else the test is not for this cluster, which pytest is told."""
        if isinstance(self.cluster, Named):
            pytest.skip("the nodes of a cluster that KUBECONFIG names are not this test's to kill")
        return self.cluster

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        return self.cluster.kubectl(*arguments, stdin=stdin, timeout=timeout)

    def get(self, what: str, namespace: str, *more: str) -> Object:
        found: Object = json.loads(self.kubectl("get", what, "-n", namespace, "-o", "json", *more))
        return found

    def items(self, kind: str, namespace: str, *more: str) -> list[Object]:
        items: list[Object] = self.get(kind, namespace, *more)["items"]
        return items

    def apply(self, namespace: str, *objects: Object) -> None:
        document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(document))

    def trial(self, namespace: str, name: str) -> Object:
        return self.get(f"trial/{name}", namespace)

    def until_trial(
        self, namespace: str, name: str, holds: Callable[[Object], bool], what: str, seconds: float = 90
    ) -> Object:
        """Wait until a trial's status is as wished; the trial.

        :raises TimeoutError: if it is not; it says what the status is instead.
        """
        found: list[Object] = []

        def look() -> bool:
            found[:] = self.items("trials", namespace, f"--field-selector=metadata.name={name}")
            return bool(found) and holds(found[0].get("status") or {})

        try:
            until(f"{name}: {what}", look, seconds=seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it is {json.dumps(found)}; its pod: {self._said(namespace, name)}") from None
        return found[0]

    def _said(self, namespace: str, trial: str) -> str:
        """What there is to read of a trial's pods."""
        pods = self.items("pods", namespace, "-l", f"trialkeeper.dev/trial={trial}")
        try:
            return json.dumps([pod["status"] for pod in pods]) + "".join(
                self.kubectl("logs", "-n", namespace, pod["metadata"]["name"], "--tail=50") for pod in pods
            )
        except CommandFailed as error:
            return str(error)

    def running(self, namespace: str, *, iteration: int = 2, off: str = "", seconds: float = 90) -> Object:
        """A trial in mid-training: of those with a checkpoint at or after an iteration, the least far; not on `off`."""

        def look() -> Object | None:
            found = [
                t
                for t in self.items("trials", namespace)
                if (s := t.get("status") or {}).get("phase") == "Running"
                and (s.get("checkpoint") or {}).get("iteration", 0) >= iteration
                and (s.get("checkpoint") or {}).get("attempt") == s.get("attempt")
                and (not off or self.node_of(namespace, s["pod"]["name"]) != off)
            ]
            return min(found, key=lambda t: int(t["status"]["checkpoint"]["iteration"])) if found else None

        trial = until("a trial in mid-training", look, seconds=seconds)
        assert trial is not None
        return trial

    def node_of(self, namespace: str, pod: str) -> str:
        found = self.items("pods", namespace, f"--field-selector=metadata.name={pod}")
        return str(found[0]["spec"].get("nodeName", "")) if found else ""

    def delete_pod(self, namespace: str, pod: str, *, force: bool = False) -> None:
        """`kubectl delete pod`, with the pod's grace or by force, which does not wait for its end."""
        how = ("--force", "--grace-period=0") if force else ()
        self.kubectl("delete", "pod", pod, "-n", namespace, "--wait=false", *how)

    def evict(self, namespace: str, pod: str) -> None:
        """Ask for a pod's eviction, as a drain does."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        where = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", where, "-f", "-", stdin=json.dumps(body))

    def await_success(self, namespace: str, experiment: str, seconds: int = 240) -> Object:
        """`kubectl wait` as people use it; the experiment."""
        self.kubectl(
            "wait",
            "-n",
            namespace,
            "--for=condition=Succeeded",
            f"exp/{experiment}",
            f"--timeout={seconds}s",
            timeout=seconds + 30,
        )
        return self.get(f"exp/{experiment}", namespace)

    def await_nodes(self) -> None:
        """Every node is ready, and free of the taints that it got while it was not."""
        self.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=90s")
        until("nodes without taints", lambda: not any(n["spec"].get("taints") for n in self.items("nodes", "default")))

    @contextmanager
    def tainted(self, node: str, taint: str) -> Iterator[None]:
        """A node with a taint, `key=value:effect`, which it has not for the tests that follow, whatever happens."""
        self.kubectl("taint", "node", node, taint)
        try:
            yield
        finally:
            self.kubectl("taint", "node", node, f"{taint.partition('=')[0]}-")

    @contextmanager
    def drained(self, node: str, selector: str) -> Iterator[None]:
        """A node that gave away its pods of a label and takes none, until this is over."""
        options = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", f"--pod-selector={selector}")
        try:
            self.kubectl("drain", node, *options)
            yield
        finally:
            self.kubectl("uncordon", node)

    def upgrade(self, *options: str) -> None:
        """`helm upgrade` to the same chart with other values, until all that is new is ready."""
        chart = str(ROOT / "charts" / "trialkeeper")
        arguments = ("upgrade", "trialkeeper", chart, "-n", SYSTEM, "--reuse-values", "--wait", "--timeout=180s")
        self.cluster.helm(*arguments, *options)

    def leader(self) -> Object:
        """The operator's pod that leads, once there is exactly one."""

        def look() -> Object | None:
            pods = self.items("pods", SYSTEM, "-l", "trialkeeper.dev/leader=true")
            return pods[0] if len(pods) == 1 else None

        pod = until("one leader", look)
        assert pod is not None
        return pod

    def process(self, wanted: Callable[[dict[str, str]], bool]) -> int:
        """The first process of a container whose environment is as wished, on whichever node of this machine."""
        for entry in sorted(Path("/proc").iterdir(), key=lambda p: p.name.zfill(10)):
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                raw = (entry / "environ").read_bytes()
            except OSError:
                continue
            pairs = (v.partition("=") for v in raw.decode("utf-8", "replace").split("\0") if "=" in v)
            if wanted({name: value for name, _, value in pairs}):
                return int(entry.name)
        raise ProcessLookupError("no such process in any container")

    def kill_trainer(self, pod_uid: str) -> None:
        """SIGKILL to the first process of a trial's container, as the kernel's OOM killer or a crash would."""
        os.kill(self.process(lambda env: env.get("TRIALKEEPER_POD_UID") == pod_uid), signal.SIGKILL)

    def holder(self) -> str:
        """Who has the Lease."""
        return str(self.get("lease/trialkeeper-leader", SYSTEM)["spec"].get("holderIdentity") or "")

    def kill_operator(self) -> str:
        """SIGKILL to the leader's process, or to its pod where the process is out of reach; what it called itself."""
        holder = self.holder()
        if isinstance(self.cluster, Named):
            self.kubectl("delete", "pod", "-n", SYSTEM, holder.rpartition("_")[0], "--force", "--grace-period=0")
            return holder
        ours = {"POD_NAME": holder.rpartition("_")[0], "POD_NAMESPACE": SYSTEM}
        os.kill(self.process(lambda env: ours.items() <= env.items()), signal.SIGKILL)
        return holder

    @contextmanager
    def forwarded(self, what: str, port: int) -> Iterator[int]:
        """A port of loopback that leads to a Service."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            local = free.getsockname()[1]
        kubectl = "kubectl" if isinstance(self.cluster, Named) else str(program("kubectl"))
        command = [kubectl, "port-forward", "-n", SYSTEM, what, f"{local}:{port}"]
        forward = subprocess.Popen(command, env=self.cluster.environment(), stdout=subprocess.DEVNULL)
        try:
            until("the forwarded port", lambda: _answers(local), seconds=20)
            yield local
        finally:
            forward.terminate()
            forward.wait(10)

    def store_keys(self) -> tuple[str, str]:
        """Access key and secret key of the chart's store."""
        secret = self.items("secrets", SYSTEM, "-l", "app.kubernetes.io/component=store")[0]["data"]
        access, secret_key = (base64.b64decode(secret[k]).decode() for k in ("access-key", "secret-key"))
        return access, secret_key

    def mirror(self, prefix: str, folder: Path) -> Path:
        """Everything below a prefix of the chart's bucket, laid out as a directory store is; the prefix's folder."""
        from minio import Minio

        access, secret_key = self.store_keys()
        with self.forwarded("service/trialkeeper-store", 9000) as port:
            client = Minio(
                f"127.0.0.1:{port}", access_key=access, secret_key=secret_key, secure=False, region="us-east-1"
            )
            for entry in sorted(
                client.list_objects("trialkeeper", prefix, recursive=True), key=lambda o: o.object_name
            ):
                key = str(entry.object_name)
                answer = client.get_object("trialkeeper", key)
                try:
                    data = answer.read()
                finally:
                    answer.close()
                    answer.release_conn()
                _keep(folder, key, data)
        return folder / prefix


def _keep(folder: Path, key: str, data: bytes) -> None:
    """Segments of results become one file again; everything else is a file of its own."""
    head, _, tail = key.partition(".jsonl/")
    path = folder / (f"{head}.jsonl" if tail else key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def install(cluster: Cluster | Named) -> Installed:
    """`helm install` as the README has it, and wait until both replicas and the store are there."""
    arguments = [str(ROOT / a) if a.startswith("charts/") else a for a in INSTALL]
    cluster.helm(*arguments, "--timeout=180s")
    installed = Installed(cluster)
    began = time.monotonic()
    installed.leader()
    assert time.monotonic() - began < 60
    return installed
