"""Two real clusters for the whole session, one of real nodes and one of fake ones, and a namespace for each test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from cluster.bench import kube
from cluster.plane import Plane
from contract.bench import PATIENCE, Story, Tell
from namespaces import own_namespace
from testbed import Cluster, cluster, images
from testbed.wait import until
from trialkeeper_operator.serve.handlers import CLOSING

CRDS = Path(__file__).parents[2] / "crds"


@pytest.fixture(scope="session")
def testbed() -> Iterator[Cluster]:
    """Two nodes that have the image with Python; our kinds are known."""
    with cluster("test", nodes=2) as running:
        running.load(images.base())
        running.kubectl("apply", "-f", str(CRDS))
        running.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
        yield running


@pytest.fixture
def namespace(testbed: Cluster) -> Iterator[str]:
    """A namespace of the cluster whose service account can be used, and that goes after the test."""
    with own_namespace(testbed, "t") as name:
        yield name


@pytest.fixture
def tell(testbed: Cluster) -> Tell:
    """Runs a story at the real API server, in a namespace of its own; its collector may not know a kind for 30 s."""

    def run(story: Story) -> None:
        async def main() -> None:
            async with asyncio.timeout(4 * PATIENCE), kube(str(testbed.kubeconfig)) as bench:
                await story(bench)
            await asyncio.sleep(CLOSING)

        asyncio.run(main())

    return run


@pytest.fixture(scope="session")
def fakes() -> Iterator[Cluster]:
    """A control plane with fake nodes; our kinds are known."""
    with cluster("suite", nodes=0, kwok=4) as running:
        running.kubectl("apply", "-f", str(CRDS))
        running.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
        api = running.control.api()

        def served() -> bool:
            """A kind that is established may still be answered by 429 for a moment."""
            try:
                return [api.items(f"/apis/trialkeeper.dev/v1alpha1/{kind}") for kind in ("experiments", "trials")] == [
                    [],
                    [],
                ]
            except OSError:
                return False

        until("our kinds to be served", served, seconds=30)
        yield running


Play = Callable[[Callable[[Plane], Awaitable[None]]], None]


@pytest.fixture
def play(fakes: Cluster, request: pytest.FixtureRequest) -> Play:
    """Runs a test's own coroutine in a loop, with the control plane at hand."""
    marked = request.node.get_closest_marker("timeout")
    patience = marked.args[0] - 5 if marked else 100

    def run(story: Callable[[Plane], Awaitable[None]]) -> None:
        async def main() -> None:
            plane = Plane(fakes)
            try:
                async with asyncio.timeout(patience):
                    await story(plane)
            finally:
                await plane.close()
                await asyncio.sleep(CLOSING)

        asyncio.run(main())

    return run
