"""What is expensive to make is made once, under a name that tells what it was made from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def home() -> Path:
    """The folder of everything that the testbed keeps."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "trialkeeper"


def digest(*parts: bytes | str) -> str:
    """Twelve characters that stand for the parts, and for where one ends and the next begins."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()[:12]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock among all processes of this cache; the kernel takes it from those that die."""
    with _file(name) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _file(name: str) -> IO[str]:
    path = home() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w")


@contextmanager
def locked_one_of(names: Iterable[str]) -> Iterator[str]:
    """Hold the first of the locks that nobody holds.

    :raises BlockingIOError: if all of them are held.
    """
    for name in names:
        with _file(name) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield name
            return
    raise BlockingIOError("each of the names is in use by somebody")


def once(name: str, make: Callable[[Path], None]) -> Path:
    """The cache's folder `name`, filled by `make` if there is none yet; nobody ever sees it half full."""
    folder = home() / name
    if folder.is_dir():
        return folder
    with locked(name.replace("/", "-")):
        if not folder.is_dir():
            half = folder.with_name(f"{folder.name}.half")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            make(half)
            half.rename(folder)
    return folder
