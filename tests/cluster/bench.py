"""The contract's bench at a real API server: a namespace of its own for each story."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contract.bench import Bench
from trialkeeper_operator.cluster.access import connect
from trialkeeper_operator.cluster.paths import path
from trialkeeper_operator.serve.handlers import KopfSource


@asynccontextmanager
async def kube(kubeconfig: str) -> AsyncIterator[Bench]:
    """A bench whose source is kopf's watch of this namespace alone."""
    cluster = await connect(kubeconfig)
    namespace = f"t{uuid.uuid4().hex[:10]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    await cluster.call("POST", path("Namespace"), body)

    async def bind(where: str, name: str, node: str) -> object:
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        return await cluster.call("POST", path("Pod", where, name, "binding"), binding)

    try:
        yield Bench(cluster, KopfSource([namespace]), bind, namespace)
    finally:
        await cluster.close()
