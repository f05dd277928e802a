"""Runs a story at every cluster there is."""

from __future__ import annotations

import asyncio

import pytest

from contract.bench import BENCHES, PATIENCE, Story, Tell


@pytest.fixture(params=sorted(BENCHES))
def tell(request: pytest.FixtureRequest) -> Tell:
    """Runs a story on a fresh cluster, and fails if it hangs."""

    def run(story: Story) -> None:
        async def main() -> None:
            async with asyncio.timeout(PATIENCE), BENCHES[request.param]() as bench:
                await story(bench)

        asyncio.run(main())

    return run
