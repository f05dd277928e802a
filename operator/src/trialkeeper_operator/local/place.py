"""A run's folder: where pods live, what they are told of it, and what they leave there.

Everything below a pod's folder is the trainer's to write, so it is read with a limit and never waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trialkeeper import contract
from trialkeeper.contract import Message

MESSAGE_LIMIT = 4096  # bytes of a termination message, as a kubelet has it
REPORT_LIMIT = 16 << 10  # bytes of a live report
TAIL_LIMIT = 2048  # bytes of the log that stand in for a termination message
TAIL_LINES = 80


class RunBusy(RuntimeError):
    """Raised when another runner has the run's folder."""

    def __init__(self, folder: Path, owner: str) -> None:
        super().__init__(f"{folder} is in use by process {owner or '?'}: wait for it, or end it")


def lock(run: Path) -> int:
    """Take the run's folder for this process; the descriptor holds it.

    :raises RunBusy: if another process has it.
    """
    run.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise RunBusy(run, owner) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def runner_of(run: Path) -> int | None:
    """The process that carries out what is in a run's folder, None if there is none; the lock is left alone."""
    try:
        process = int((run / "lock").read_text())
        os.kill(process, 0)
    except PermissionError:
        return process
    except (OSError, ValueError, OverflowError):
        return None
    return process


def _read(path: Path, limit: int, *, tail: bool = False) -> bytes:
    """At most `limit` bytes of a regular file, from its start or its end; nothing if there is none."""
    with contextlib.suppress(OSError):
        # Without O_NONBLOCK a trainer that leaves a pipe under this name would hang everybody's reports.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if tail:
                os.lseek(descriptor, max(0, os.fstat(descriptor).st_size - limit), os.SEEK_SET)
            return os.read(descriptor, limit)
        finally:
            os.close(descriptor)
    return b""


@dataclass(frozen=True)
class Place:
    """Where things are: the YAML file's folder, the run's folder, and the shell's variables."""

    base: Path
    run: Path
    shell: Mapping[str, str]

    @property
    def pods(self) -> Path:
        """All pods' folders; whatever process has its scratch below it is ours."""
        return self.run / "pods"

    def pod(self, name: str) -> Path:
        return self.pods / name

    def log(self, name: str) -> Path:
        return self.run / "logs" / f"{name}.log"

    def make(self) -> None:
        """Make the folders that every pod needs."""
        for folder in (self.pods, self.run / "logs", self.run / "store"):
            folder.mkdir(parents=True, exist_ok=True)

    def prepare(self, name: str) -> dict[str, str]:
        """Make a pod's folder; the variables by which the SDK finds it."""
        folder = self.pod(name)
        self.log(name).parent.mkdir(parents=True, exist_ok=True)  # people clear logs away while a run goes on
        (folder / "scratch").mkdir(parents=True, exist_ok=True)
        (folder / "termination").touch()
        return {
            contract.ENV_SCRATCH: str(folder / "scratch"),
            contract.ENV_TERMINATION_LOG: str(folder / "termination"),
            contract.ENV_REPORT: (folder / "report.json").as_uri(),
            contract.ENV_STORE: (self.run / "store").as_uri(),
        }

    def clear(self, name: str) -> None:
        """Remove a pod's folder; its log stays."""
        shutil.rmtree(self.pod(name), ignore_errors=True)

    def clear_all(self) -> None:
        """Remove the folder of every pod: none of them lives."""
        for folder in self.pods.iterdir() if self.pods.is_dir() else ():
            shutil.rmtree(folder, ignore_errors=True)

    def last_words(self, name: str, *, or_log: bool) -> str:
        """A pod's termination message, or, if it left none and `or_log`, the end of its log."""
        words = _read(self.pod(name) / "termination", MESSAGE_LIMIT)
        if not words and or_log:
            words = b"\n".join(_read(self.log(name), TAIL_LIMIT, tail=True).split(b"\n")[-TAIL_LINES:])
        return words.decode(errors="replace")

    def report(self, name: str, seen: int) -> tuple[int, Message | None]:
        """(version, report) of a pod; the report is None if there is none newer than version `seen`."""
        path = self.pod(name) / "report.json"
        try:
            version = path.stat().st_mtime_ns
        except OSError:
            return seen, None
        if version == seen:
            return seen, None
        return version, Message.decode(_read(path, REPORT_LIMIT))
