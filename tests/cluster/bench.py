"""The contract's bench at a real API server: a namespace of its own for each story."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import kopf

from contract.bench import Bench
from trialkeeper_operator.cluster.access import configuration, connect
from trialkeeper_operator.cluster.paths import path
from trialkeeper_operator.serve.handlers import KopfSource


async def source(kubeconfig: str, namespaces: Collection[str]) -> KopfSource:
    """kopf's watches of the cluster that a kubeconfig file names."""
    found = await configuration(kubeconfig)

    def login() -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(
            server=found.host,
            ca_path=found.ssl_ca_cert,
            certificate_path=found.cert_file,
            private_key_path=found.key_file,
        )

    return KopfSource(namespaces, login=login)


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
        yield Bench(cluster, await source(kubeconfig, [namespace]), bind, namespace)
    finally:
        await cluster.close()
