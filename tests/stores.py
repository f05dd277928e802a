"""The stores that a suite can be asked to run on, each as a context manager that gives an empty one.

`make test` asks for those that need nothing, `make test-store` for a real MinIO.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from fake_s3 import fake_s3
from minio_server import KEYS, minio
from trialkeeper import environment
from trialkeeper.store import Store, s3
from trialkeeper.store.opening import open_store

ASKED = os.environ.get("TRIALKEEPER_TEST_STORES", "directory,fake").split(",")


def environment_of(url: str, folder: Path, **more: str) -> environment.Environment:
    """An attempt's environment with a store, and with a scratch folder of its own."""
    return environment.read(
        {
            "TRIALKEEPER_STORE": url,
            "TRIALKEEPER_ATTEMPT": "1",
            "TRIALKEEPER_PREFIX": "space/exp-1/00000",
            "TRIALKEEPER_SCRATCH": str(folder / "scratch"),
            **more,
        }
    )


@contextmanager
def opened(url: str, folder: Path, **more: str) -> Iterator[s3.S3Store]:
    """The store of a bucket's URL."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        store = open_store(environment_of(url, folder, **more))
        assert isinstance(store, s3.S3Store)
        try:
            yield store
        finally:
            store.close()


@contextmanager
def _directory(folder: Path) -> Iterator[Store]:
    yield open_store(environment_of((folder / "store").as_uri(), folder))


@contextmanager
def _fake(folder: Path) -> Iterator[Store]:
    """On a server that ignores conditions, and lists two keys at a time."""
    with fake_s3() as server, opened(server.url, folder) as store:
        server.page = 2
        yield store


@contextmanager
def _minio(folder: Path) -> Iterator[Store]:
    with minio(folder) as server, opened(server.url, folder) as store:
        yield store


STORES: dict[str, Callable[[Path], AbstractContextManager[Store]]] = {
    "directory": _directory,
    "fake": _fake,
    "minio": _minio,
}
