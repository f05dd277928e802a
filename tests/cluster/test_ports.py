"""The contract suites of both ports, at a real API server and its collector."""

import gc
import threading
from collections.abc import Iterator

import pytest

from contract.test_cluster import *  # noqa: F403
from contract.test_source import *  # noqa: F403

# A ConfigMap of a mebibyte is what aiohttp calls a large body. kopf's watches end when they like, which in a process
# that serves is with it: their connections are left to the collector of garbage.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def watches_end() -> Iterator[None]:
    """No watch of these tests lives on into the next ones."""
    yield
    for thread in threading.enumerate():
        if thread.name == "watch":
            thread.join(20)
    gc.collect()
