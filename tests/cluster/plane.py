"""A control plane with fake nodes, as tests of the operator see it: namespaces, objects, and the operator itself.

The operator runs in the test's own loop, over a real API server, and serves the namespaces of its test alone: so
tests of one session do not meet. A test that is about many namespaces says so.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from builders import experiment
from testbed import Cluster
from testbed.wait import awaited
from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.access import configuration
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.cluster.paths import path
from trialkeeper_operator.reconcile.loop import Operator
from trialkeeper_operator.reconcile.ports import Object
from trialkeeper_operator.serve.handlers import KopfSource

ENDS_AFTER = "testbed.trialkeeper.dev/ends-after"
MESSAGE = "testbed.trialkeeper.dev/message"
EXIT_CODE = "testbed.trialkeeper.dev/exit-code"
SCORE = '{"metrics": {"loss": 0.5}}'  # what a plain container may say

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass
class Count:
    """Calls of a Kube, by verb and kind; those that were refused as well."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    codes: Counter[tuple[str, str, int]] = field(default_factory=Counter)

    def __call__(self, verb: str, kind: str, code: int) -> None:
        self.calls[verb, kind] += 1
        self.codes[verb, kind, code] += 1

    def writes(self, *, but: Collection[str] = ("Event", "Lease")) -> int:
        """Writes of all kinds but those."""
        return sum(n for (verb, kind), n in self.calls.items() if verb in WRITES and kind not in but)

    def table(self) -> str:
        """For people."""
        return ", ".join(f"{verb} {kind or 'other'} {n}" for (verb, kind), n in sorted(self.calls.items()))


@dataclass
class Plane:
    """The control plane of a session. `kube` makes a client with all rights."""

    cluster: Cluster
    kubes: list[Kube] = field(default_factory=list)

    async def configuration(self) -> Configuration:
        return await configuration(str(self.cluster.kubeconfig))

    async def kube(self, **how: Any) -> Kube:
        """A client that is closed when the test ends."""
        made = Kube(await self.configuration(), **how)
        self.kubes.append(made)
        return made

    async def close(self) -> None:
        """Close all clients, and wait for the watches, which end by themselves: their connections are theirs."""
        while self.kubes:
            await self.kubes.pop().close()
        for thread in threading.enumerate():
            if thread.name == "watch":
                await asyncio.to_thread(thread.join, 15)

    async def namespace(self, kube: Kube, prefix: str = "t", labels: dict[str, str] | None = None) -> str:
        """A new namespace, its service account included."""
        name = f"{prefix}-{uuid.uuid4().hex[:8]}"
        meta = {"name": name, "labels": labels or {}}
        await kube.call("POST", path("Namespace"), {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        account = f"/api/v1/namespaces/{name}/serviceaccounts"

        async def made() -> bool:
            return bool((await kube.call("GET", account)).get("items"))

        await awaited(f"the service account of {name}", made, seconds=30)
        return name

    def login(self) -> kopf.ConnectionInfo:
        """How the watch reaches the cluster."""
        user = self.cluster.control.authority
        return kopf.ConnectionInfo(
            server=self.cluster.control.server,
            ca_path=str(user.certificate),
            certificate_path=str(user.file("admin")),
            private_key_path=str(user.key("admin")),
        )

    def source(self, namespaces: Collection[str]) -> KopfSource:
        return KopfSource(namespaces, login=self.login)

    @asynccontextmanager
    async def operator(self, kube: Kube, namespaces: Collection[str], **how: Any) -> AsyncIterator[Operator]:
        """The operator, for as long as the block lasts; a block whose operator ends by itself fails."""
        source = how.pop("source", None) or self.source(namespaces)
        running = Operator(kube, source, now=time.time, namespaces=namespaces, **how)
        source.relisted = running.sweep_soon
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(running.run(), name="operator")
            try:
                yield running
            finally:
                task.cancel()


def study(name: str, namespace: str, *, ends_after: str = "300ms", message: str = SCORE, **spec: Any) -> Object:
    """An Experiment whose fake pods end by themselves; `spec` replaces or adds fields."""
    template: dict[str, Any] = {
        "metadata": {"annotations": {ENDS_AFTER: ends_after, MESSAGE: message}},
        "spec": {"containers": [{"name": "trainer", "image": "t", "command": ["python", "t.py"]}]},
    }
    made = experiment(name, **{"template": template, **spec})
    return {**made, "metadata": {"name": name, "namespace": namespace}}


def conditions(obj: Object | None) -> dict[str, dict[str, Any]]:
    """An object's conditions by type."""
    return {c["type"]: c for c in ((obj or {}).get("status") or {}).get("conditions") or ()}


async def over(kube: Kube, namespace: str, name: str, *, seconds: float = 60) -> Object:
    """The Experiment once it has its verdict."""

    async def verdict() -> Object | None:
        found = await kube.get(names.EXPERIMENT, namespace, name)
        settled = conditions(found).get(names.SUCCEEDED, {}).get("status", "Unknown") != "Unknown"
        return found if settled else None

    found = await awaited(f"the verdict of {namespace}/{name}", verdict, seconds=seconds)
    assert found is not None
    return found
