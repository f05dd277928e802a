"""A real MinIO for each module of this suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minio_server import Minio, minio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    """A server with one bucket, as long as a module runs."""
    with minio(tmp_path_factory.mktemp("server")) as running:
        yield running
