"""A namespace of a real cluster for one test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Kubectl(Protocol):
    """Whatever speaks to a cluster by kubectl."""

    def kubectl(self, *arguments: str) -> str: ...


@contextmanager
def own_namespace(cluster: Kubectl, prefix: str) -> Iterator[str]:
    """A namespace whose service account can be used, and that goes afterwards."""
    name = f"{prefix}-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
