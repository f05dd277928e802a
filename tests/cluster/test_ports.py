"""The contract suites of both ports, at a real API server."""

import pytest

from contract.test_cluster import *  # noqa: F403
from contract.test_source import *  # noqa: F403

# A ConfigMap of a mebibyte is what aiohttp calls a large body.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
