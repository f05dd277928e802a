"""What several suites of the SDK stand on; each brings a `server` of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_s3 import Fake
from stores import opened
from trialkeeper.store import wire
from trialkeeper.store.s3 import S3Store


@pytest.fixture
def store(server: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """One trial's prefix on that server; nobody waits long before it is tried again."""
    monkeypatch.setattr(wire, "PAUSE_LIMIT", 0.02)
    with opened(server.url, tmp_path) as found:
        yield found
