"""A real cluster for the whole session, and a namespace for each test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from testbed import Cluster, cluster, images


@pytest.fixture(scope="session")
def testbed() -> Iterator[Cluster]:
    """Two nodes that have the image with Python."""
    with cluster("test", nodes=2) as running:
        running.load(images.base())
        yield running


@pytest.fixture
def namespace(testbed: Cluster) -> Iterator[str]:
    """A namespace of the cluster whose service account can be used, and that goes after the test."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    testbed.kubectl("create", "namespace", name)
    testbed.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
    yield name
    testbed.kubectl("delete", "namespace", name, "--wait=false")
