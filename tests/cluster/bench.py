"""The contract's bench at a real API server: a namespace of its own for each story."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import Configuration

from contract.bench import Bench
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.cluster.paths import path
from trialkeeper_operator.serve.handlers import KopfSource


async def configuration(kubeconfig: str) -> Configuration:
    """The client's configuration that a kubeconfig file names."""
    made = Configuration()
    await kubernetes_config.load_kube_config(kubeconfig, client_configuration=made)
    return made


@asynccontextmanager
async def kube(kubeconfig: str) -> AsyncIterator[Bench]:
    """A bench whose source is kopf's watch of this namespace alone."""
    cluster = Kube(await configuration(kubeconfig))
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
