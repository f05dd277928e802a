"""One tree of cgroups for all that a cluster runs: a process may change its parent, its name and its session, not this.

Programs are put into the tree before they become themselves, so whatever they start is in it, too: shims, containers,
and what those leave behind. To end a cluster is to end everybody in its tree.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 30  # seconds within which a process that was sent SIGKILL must be gone


def _mounts() -> list[tuple[str, str, str]]:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [(kind, folder, options) for _, folder, kind, options, *_ in lines if kind in ("cgroup", "cgroup2")]


def hierarchies() -> list[Path]:
    """Every hierarchy of this machine; with version 2 there is one."""
    return [Path(folder) for _, folder, _ in _mounts()]


def tracker() -> Path:
    """The hierarchy that programs are put into: one in which container runtimes find no limits to set."""
    mounts = _mounts()
    if not mounts:
        raise RuntimeError("no cgroups are mounted: a cluster cannot be run here")
    return Path(min(mounts, key=lambda m: (m[0] != "cgroup2", "name=systemd" not in m[2]))[1])


class Tree:
    """The cgroups of one cluster, and below them those of its nodes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def group(self, path: str) -> Path:
        """A cgroup for programs, made if there is none."""
        folder = tracker() / self.name / path
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def root(self, path: str) -> None:
        """Make a cgroup in every hierarchy, for a program that will have groups of its own below it."""
        for hierarchy in hierarchies():
            (hierarchy / self.name / path).mkdir(parents=True, exist_ok=True)

    def folders(self, path: str = "") -> Iterator[Path]:
        """The cgroups below `path` in every hierarchy, leaves first."""
        for hierarchy in hierarchies():
            for folder, _, _ in os.walk(hierarchy / self.name / path, topdown=False):
                yield Path(folder)

    def pids(self, path: str = "") -> set[int]:
        """Every process below `path`."""
        found: set[int] = set()
        for folder in self.folders(path):
            with contextlib.suppress(OSError):
                found.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
        return found

    def kill(self, path: str = "") -> None:
        """End every process below `path`, and those that they start meanwhile.

        :raises TimeoutError: if one of them survives that.
        """
        deadline = time.monotonic() + PATIENCE
        while pids := self.pids(path):
            kill(*pids)
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {sorted(pids)} survive SIGKILL")

    def remove(self, path: str = "") -> None:
        """Remove the cgroups below `path`; a process that is just going away may hold one for a moment."""
        deadline = time.monotonic() + PATIENCE
        while folders := list(self.folders(path)):
            for folder in folders:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if time.monotonic() > deadline:
                raise TimeoutError(f"cgroups stay: {folders[0]}")


def kill(*pids: int, seconds: float = 5) -> None:
    """End processes by SIGKILL, and wait until they are gone; they are not our children, so nothing else tells."""
    with contextlib.ExitStack() as stack:
        descriptors = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                stack.callback(os.close, descriptor)
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                descriptors.append(descriptor)
        for descriptor in descriptors:
            select.select([descriptor], [], [], seconds)
