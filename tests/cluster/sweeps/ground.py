"""A real API server as the simulation's node and people see it, and every change of it in order.

Here is what a namespace of its own is called `default`. The pods' node is a Node object that no kubelet stands behind.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

from cluster.sweeps.proxy import lines
from simulation.sweeps.history import History
from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.cluster.paths import path, told
from trialkeeper_operator.reconcile.loop import KINDS
from trialkeeper_operator.reconcile.ports import Event, Object


class Ground:
    """One namespace of a real API server, with the methods of a Memory."""

    def __init__(self, kube: Kube, session: aiohttp.ClientSession, namespace: str) -> None:
        self._kube, self._session, self.namespace = kube, session, namespace
        self.history = History()
        self.node = f"hand-{namespace}"

    async def begin(self) -> None:
        """Make the node: it is ready, and nothing is scheduled to it."""
        meta = {"name": self.node, "labels": {"kubernetes.io/hostname": self.node}}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": {"unschedulable": True}}
        ready = {"type": "Ready", "status": "True", "reason": "ByHand"}
        await self._kube.call("POST", path("Node"), node)
        merge = "application/merge-patch+json"
        await self._kube.call(
            "PATCH", path("Node", None, self.node, "status"), {"status": {"conditions": [ready]}}, content=merge
        )

    async def end(self) -> None:
        await self._kube.call("DELETE", path("Node", None, self.node))

    async def listen(self) -> None:
        """Write down every change, as the API server tells it, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for kind in KINDS:
                tasks.create_task(self._listen(kind))

    async def _listen(self, kind: str) -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        where, query = path(kind, self.namespace), {"watch": "1", "resourceVersion": "0"}
        async with self._session.get(where, params=query, timeout=timeout) as said:
            async for line in lines(said):
                event = json.loads(line)
                obj = told(kind, event["object"])
                self.history.committed("DELETE" if event["type"] == "DELETED" else "PUT", obj)
        raise ConnectionError(f"the watch of {kind} has ended")

    def events(self) -> AsyncIterator[Event]:
        return self.history.since(0, 0.0)

    def _here(self, namespace: str | None) -> str | None:
        return self.namespace if namespace == "default" else namespace

    def _placed(self, body: Object) -> Object:
        return {**body, "metadata": {**body["metadata"], "namespace": self.namespace}}

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return await self._kube.get(kind, self._here(namespace) or "", name)

    def list(
        self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Object]:
        return self._kube.list(kind, self.namespace, labels)

    async def create(self, body: Object) -> Object:
        return await self._kube.create(self._placed(body))

    async def put(self, body: Object) -> Object:
        return await self._kube.put(self._placed(body))

    async def put_status(self, body: Object) -> Object:
        """As a kubelet writes it, which merges: what others have changed meanwhile is no reason to come again."""
        meta = {name: value for name, value in body["metadata"].items() if name != "resourceVersion"}
        return await self._kube.put_status({**body, "metadata": meta})

    async def delete(self, kind: str, namespace: str, name: str, **how: Any) -> None:
        await self._kube.delete(kind, self._here(namespace) or "", name, **how)

    async def bind(self, namespace: str, name: str, node: str) -> Object:
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        await self._kube.call("POST", path(names.POD, namespace, name, "binding"), binding)
        return await self._kube.call("GET", path(names.POD, namespace, name), kind=names.POD)
