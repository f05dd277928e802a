"""Where each kind lives in the Kubernetes API."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

from trialkeeper_operator.api import names
from trialkeeper_operator.reconcile.ports import Object


class Resource(NamedTuple):
    """One kind: its apiVersion, its name in a path, and whether it belongs to a namespace."""

    api_version: str
    plural: str
    namespaced: bool = True


RESOURCES = {
    names.EXPERIMENT: Resource(names.API_VERSION, "experiments"),
    names.TRIAL: Resource(names.API_VERSION, "trials"),
    names.POD: Resource("v1", "pods"),
    names.CONFIG_MAP: Resource("v1", "configmaps"),
    names.SERVICE: Resource("v1", "services"),
    "Event": Resource("v1", "events"),
    "Lease": Resource("coordination.k8s.io/v1", "leases"),
    "Node": Resource("v1", "nodes", namespaced=False),
    "Namespace": Resource("v1", "namespaces", namespaced=False),
}


def told(kind: str, obj: Object) -> Object:
    """An object as the ports tell it: lists and watches may leave its kind out, and nobody reads managedFields."""
    meta = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    return {"apiVersion": RESOURCES[kind].api_version, "kind": kind, **obj, "metadata": meta}


def path(kind: str, namespace: str | None = None, name: str = "", sub: str = "") -> str:
    """The path of a collection, of an object, or of its subresource; no namespace: of all namespaces."""
    resource = RESOURCES[kind]
    root = "/api/" if "/" not in resource.api_version else "/apis/"
    parts = [root + resource.api_version]
    if namespace and resource.namespaced:
        parts += ["namespaces", quote(namespace, safe="")]
    parts.append(resource.plural)
    if name:
        parts.append(quote(name, safe=""))
    if sub:
        parts.append(sub)
    return "/".join(parts)
