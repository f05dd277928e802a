"""A real MinIO on this machine, for the suites that ask for one; never reached from anywhere else."""

from __future__ import annotations

import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from trialkeeper.store.address import bucket_of
from trialkeeper.store.keys import Keys
from trialkeeper.store.wire import Wire

STARTUP = 30  # seconds that it may take to come up
KEYS = {"AWS_ACCESS_KEY_ID": "trialkeeper", "AWS_SECRET_ACCESS_KEY": "not-a-secret-at-all"}


@dataclass(frozen=True)
class Minio:
    """A running server with one bucket."""

    endpoint: str
    data: Path
    bucket: str = "trials"

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}?endpoint={self.endpoint}"


def program() -> Path | None:
    """Where MinIO is on this machine."""
    named = os.environ.get("TRIALKEEPER_MINIO")
    if named:
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return next(iter(sorted(cache.glob("trialkeeper/programs/minio-*/minio"))), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def minio(folder: Path, *, lifetime: int = 900, yielding: bool = False) -> Iterator[Minio]:
    """A server that keeps its data below a folder, until it is left, or for so many seconds if we are killed.

    `yielding`: it takes what others leave of this machine's cores, as if it were on another one.
    """
    found = program()
    if found is None:
        pytest.fail("there is no MinIO: set TRIALKEEPER_MINIO to its program")
    address = f"127.0.0.1:{_free_port()}"
    data = folder / "minio"
    data.mkdir()
    prefix = ["timeout", str(lifetime), *(["chrt", "--idle", "0"] if yielding else ())]
    server = subprocess.Popen(
        [*prefix, found, "server", "--quiet", "--address", address, data],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "MINIO_ROOT_USER": KEYS["AWS_ACCESS_KEY_ID"],
            "MINIO_ROOT_PASSWORD": KEYS["AWS_SECRET_ACCESS_KEY"],
            "MINIO_BROWSER": "off",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await(server, f"http://{address}/minio/health/cluster")
        running = Minio(f"http://{address}", data)
        make_bucket(running)
        yield running
    finally:
        server.terminate()
        server.wait(30)


def _await(server: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(STARTUP * 20):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            try:
                server.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            break
    pytest.fail("MinIO does not come up")


def make_bucket(running: Minio) -> None:
    """Create the server's bucket."""
    from trialkeeper import environment

    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        bucket = bucket_of(running.url)
        env = environment.read({"TRIALKEEPER_STORE": running.url, "TRIALKEEPER_ATTEMPT": "1"})
        wire = Wire(bucket, Keys(bucket, env))
        wire.request("PUT")
        wire.close()
