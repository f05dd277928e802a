"""What the contract suites of the two ports work at: a cluster, its source, and objects that every one accepts.

A cluster joins by an entry in BENCHES and must start empty in a namespace of its own. What a suite may believe
of it is what the Protocols say: a resourceVersion and a uid are opaque, collection takes its time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from builders import experiment
from trialkeeper_operator.cluster.admission import admission
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import Cluster, Event, Object, Source

PATIENCE = 20.0  # seconds that a story may take
EVERY = 0.05  # seconds between two looks

EVERYWHERE = {"kube-root-ca.crt"}  # what a cluster puts into each namespace by itself

API_VERSION = "trialkeeper.dev/v1alpha1"


@dataclass(frozen=True)
class Bench:
    """One cluster under test. `bind` gives a pod (namespace, name) to a node."""

    cluster: Cluster
    source: Source
    bind: Callable[[str, str, str], Awaitable[object]]
    namespace: str

    # Objects.

    def meta(self, name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "namespace": self.namespace, **more}

    def experiment(self, name: str = "exp", **spec: Any) -> Object:
        return {**experiment(**spec), "metadata": self.meta(name)}

    def trial(self, owner: Object, index: int = 0) -> Object:
        of = owner["metadata"]["name"]
        labels = {"trialkeeper.dev/experiment": of, "app.kubernetes.io/managed-by": "trialkeeper"}
        return {
            "apiVersion": API_VERSION,
            "kind": "Trial",
            "metadata": self.meta(f"{of}-{index}", labels=labels, ownerReferences=[reference(owner)]),
            "spec": {
                "experiment": of,
                "experimentUid": owner["metadata"]["uid"],
                "index": index,
                "parameters": {"lr": 0.1},
            },
        }

    def pod(self, name: str = "p", *, owner: Object | None = None, grace: int = 30) -> Object:
        owners = {} if owner is None else {"ownerReferences": [reference(owner)]}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": self.meta(name, labels={"a": "b", "app.kubernetes.io/managed-by": "trialkeeper"}, **owners),
            "spec": {
                "terminationGracePeriodSeconds": grace,
                "restartPolicy": "Never",
                "schedulerName": "nobody",  # it is bound by hand, to a node that is none
                "containers": [{"name": "c", "image": "i"}],
            },
        }

    def config_map(self, name: str = "map", value: str = "1", **meta: Any) -> Object:
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": self.meta(name, **meta), "data": {"v": value}}

    # Doing.

    async def get(self, kind: str, name: str) -> Object:
        """An object that must be there."""
        found = await self.cluster.get(kind, self.namespace, name)
        assert found is not None, f"{kind} {name} is gone"
        return found

    async def gone(self, kind: str, name: str) -> bool:
        return await self.cluster.get(kind, self.namespace, name) is None

    async def names(self, kind: str, labels: Mapping[str, str] | None = None) -> list[str]:
        found = sorted([o["metadata"]["name"] async for o in self.cluster.list(kind, self.namespace, labels)])
        return [name for name in found if name not in EVERYWHERE]

    async def running_pod(self, name: str = "p", **how: Any) -> Object:
        """A pod that a node has."""
        await self.cluster.create(self.pod(name, **how))
        await self.bind(self.namespace, name, "node")
        return await self.get("Pod", name)

    async def delete(self, kind: str, name: str, **how: Any) -> None:
        await self.cluster.delete(kind, self.namespace, name, **how)

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Look often, until it holds: of a kind that is not served, as ConfigMaps are, no source need tell."""
        while True:
            if await holds():
                return
            await asyncio.sleep(EVERY)


class Recorder:
    """Writes down what a source tells of one namespace."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.events: list[Event] = []
        self._news = asyncio.Event()
        self._task = asyncio.ensure_future(self._record())

    async def _record(self) -> None:
        async for event in self._bench.source.events():
            if event.object["metadata"]["namespace"] == self._bench.namespace:
                self.events.append(event)
                self._news.set()

    async def until(self, type_: str, name: str) -> None:
        """Wait until this has been told of an object of this name."""
        while not any((e.type, e.object["metadata"]["name"]) == (type_, name) for e in self.events):
            self._news.clear()
            await self._news.wait()

    def told(self, name: str | None = None) -> list[tuple[str, str]]:
        """(type, name) of every event, or of those of one object."""
        pairs = [(e.type, str(e.object["metadata"]["name"])) for e in self.events]
        return [pair for pair in pairs if name in (None, pair[1])]

    def objects(self, name: str) -> list[Object]:
        return [e.object for e in self.events if e.object["metadata"]["name"] == name]

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


def reference(owner: Object, *, controller: bool = True) -> dict[str, Any]:
    """An ownerReference."""
    fields = {"apiVersion": owner["apiVersion"], "kind": owner["kind"]}
    return fields | {"name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], "controller": controller}


@asynccontextmanager
async def memory() -> AsyncIterator[Bench]:
    cluster = Memory(now=time.time, admit=admission())
    yield Bench(cluster, cluster, cluster.bind, "default")


BENCHES: dict[str, Callable[[], AbstractAsyncContextManager[Bench]]] = {"memory": memory}

Story = Callable[[Bench], Awaitable[None]]
Tell = Callable[[Story], None]
