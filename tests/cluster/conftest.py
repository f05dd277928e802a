"""What these suites work at: the cluster that KUBECONFIG names."""

from __future__ import annotations

import asyncio
import os

import pytest

from cluster.bench import kube
from contract.bench import PATIENCE, Story, Tell


@pytest.fixture(scope="session")
def kubeconfig() -> str:
    return os.environ["KUBECONFIG"]


@pytest.fixture
def tell(kubeconfig: str) -> Tell:
    """Runs a story at the real API server, in a namespace of its own."""

    def run(story: Story) -> None:
        async def main() -> None:
            async with asyncio.timeout(PATIENCE), kube(kubeconfig) as bench:
                await story(bench)

        asyncio.run(main())

    return run
