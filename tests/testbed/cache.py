"""What is expensive to make is made once, under a name that tells what it was made from."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from testbed.shell import run

HALF = ".half"  # behind the name of what is still being made


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


def forget(pattern: str, *, keep: int) -> None:
    """Throw away the cache's folders of a kind, except for those that were used last."""
    used = []
    for folder in home().glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # somebody else forgets the same ones
            used.append((folder.stat().st_mtime, folder))
    for _, folder in sorted(u for u in used if u[1].suffix != HALF)[: -keep or None]:
        throw_away(folder)


def throw_away(folder: Path) -> None:
    """Make a folder disappear at once; its files follow, since a node's images are more than one wants to wait for."""
    trash = home() / "trash"
    trash.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(trash / uuid.uuid4().hex)
    # Also what an earlier one did not get to the end of.
    run("setsid", "--fork", "nice", "-n", "19", "sh", "-c", 'exec rm -rf "$1"/* > /dev/null 2>&1', "sh", trash)


def once(name: str, make: Callable[[Path], None]) -> Path:
    """The cache's folder `name`, filled by `make` if there is none yet; nobody ever sees it half full."""
    folder = home() / name
    if folder.is_dir():
        os.utime(folder)  # it was used: what was not for long, may be forgotten
        return folder
    with locked(name.replace("/", "-")):
        if not folder.is_dir():
            half = folder.with_name(f"{folder.name}{HALF}")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True)
            make(half)
            half.rename(folder)
    return folder
