"""Where a case of `checkpoint.py` runs, and what it measures."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from minio import Minio as Client

from minio_server import KEYS
from stores import environment_of
from trialkeeper.store.address import bucket_of
from trialkeeper.store.opening import open_store
from trialkeeper.store.s3 import S3Store

Measured = dict[str, float]


@dataclass(frozen=True)
class Place:
    """Where a case runs: the bucket's URL, a folder that all cases share, and one of its own."""

    url: str
    shared: Path
    own: Path
    mib: int

    @property
    def source(self) -> Path:
        """A file of `mib` MiB that nothing compresses."""
        return self.shared / "source"

    def store(self) -> S3Store:
        found = open_store(environment_of(self.url, self.own))
        assert isinstance(found, S3Store)
        return found

    def client(self) -> Client:
        access, secret = KEYS.values()
        host = urlsplit(bucket_of(self.url).endpoint).netloc
        return Client(host, access_key=access, secret_key=secret, secure=False)

    def folder(self, name: str, *files: Path) -> Path:
        """A folder that may be handed over, with links to files."""
        made = self.own / name
        made.mkdir()
        for file in files:
            os.link(file, made / file.name)
        return made


@contextmanager
def measured(into: Measured) -> Iterator[None]:
    """What is done inside: its seconds, CPU seconds of this process and its children, and cores that others used."""

    def spent() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    servers = [path for path in Path("/proc").glob("[0-9]*") if _reads(path / "comm").strip() == "minio"]
    cpu, all_cpu, served, start = spent(), busy(), sum(map(_used, servers)), time.perf_counter()
    yield
    into["seconds"], into["cpu"] = time.perf_counter() - start, spent() - cpu
    foreign = busy() - all_cpu - (sum(map(_used, servers)) - served) - into["cpu"]
    into["foreign"] = max(foreign / into["seconds"], 0.0)


def _reads(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def busy() -> float:
    """CPU seconds of the whole machine since it was started, and those that its host has taken."""
    user, nice, system, _, _, irq, softirq, steal = map(int, _reads(Path("/proc/stat")).split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _used(process: Path) -> float:
    fields = _reads(process / "stat").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0
