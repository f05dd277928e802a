"""One installation for the whole session, and a namespace for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.installed import Installed, Named, install
from namespaces import own_namespace
from testbed import cluster, images


@pytest.fixture(scope="session")
def installed() -> Iterator[Installed]:
    """The chart on two real nodes, with the images of this very tree; a node that is silent for 12 s is Unknown.

    Or on the cluster that KUBECONFIG names, which has the images already.
    """
    named = os.environ.get("KUBECONFIG")
    if named:
        yield install(Named(Path(named)))
        return
    with cluster("e2e", nodes=2, node_grace=12) as running:
        for target in images.TARGETS:
            running.load(images.project(target))
        yield install(running)


@pytest.fixture
def namespace(installed: Installed) -> Iterator[str]:
    """A namespace that goes after the test."""
    with own_namespace(installed, "e2e") as name:
        yield name
