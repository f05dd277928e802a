"""What a trainer and its upload process say to each other: a JSON object a line, over a pair of pipes.

The trainer asks: `Save`, `sync`, `retry`, `leaveBy`; the end of its pipe asks to finish and to go. The process answers
with what is an `Answer` below.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from trialkeeper.contract import CheckpointRef
from trialkeeper.environment import Environment

MOUTHFUL = 1 << 16  # bytes read from a pipe at once


@dataclass(frozen=True)
class Save:
    """One save, on its way: the folder is the upload process's from now on.

    `instead`: the number of a save that need not be sent if it was not begun, 0 for none. `claim`: the record that
    has to be in the store before, None if it is. `again`: it may have been committed by a process that is gone.
    `keep`: how many checkpoints stay, and by which score; `base`: the manifest's key this attempt began from.
    `nonce`: what all ranks know it by, empty if there is one; `resharding`: whether any number of them can load it.
    """

    number: int
    folder: str
    kind: str
    why: str
    progress: Mapping[str, Any]
    metrics: Mapping[str, Any]
    reported: float
    instead: int = 0
    claim: Mapping[str, Any] | None = None
    again: bool = False
    keep: Mapping[str, Any] | None = None
    base: str | None = None
    nonce: str = ""
    resharding: bool = False

    @property
    def iteration(self) -> int:
        """Of the trial's visible history."""
        found: int = self.progress["iteration"]
        return found


@dataclass(frozen=True)
class Committed:
    """Save number `number` is in the store: what it took, in seconds and bytes sent."""

    number: int
    reference: CheckpointRef
    seconds: float
    sent: int


@dataclass(frozen=True)
class Failed:
    """Save number `number` is not in the store yet, and tried `again` later, or lost.

    `kind`: `unreachable` or `denied` as `store` tells them apart, else `failed`.
    """

    number: int
    kind: str
    text: str
    again: bool


@dataclass(frozen=True)
class Dropped:
    """Save number `number` was replaced by a newer one before it was begun."""

    number: int


@dataclass(frozen=True)
class Refused:
    """Save number `number` cannot be a checkpoint on this store: the trainer's own error."""

    number: int
    text: str


@dataclass(frozen=True)
class Fenced:
    """A later attempt, or another pod of this one, has the trial."""

    text: str


@dataclass(frozen=True)
class Synced:
    """The raw results up to a byte are in the store; an `error` if more there is and could not be sent."""

    size: int
    error: str = ""


Answer = Committed | Failed | Dropped | Refused | Fenced | Synced
_ANSWERS: dict[str, type[Any]] = {c.__name__: c for c in (Committed, Failed, Dropped, Refused, Fenced, Synced)}


def written(words: Any) -> bytes:
    """One line."""
    said = {"is": type(words).__name__, **vars(words)}  # as they are: a copy of many metrics takes seconds
    return json.dumps(said, separators=(",", ":"), default=asdict).encode() + b"\n"


def answer(line: bytes) -> Answer:
    """The answer in a line."""
    value = json.loads(line)
    kind = _ANSWERS[value.pop("is")]
    if kind is Committed:
        value["reference"] = CheckpointRef(**value["reference"])
    found: Answer = kind(**value)
    return found


def asked(line: bytes) -> dict[str, Any]:
    """What a trainer asks for; `is` says what it is."""
    found: dict[str, Any] = json.loads(line)
    return found


def packed(env: Environment) -> bytes:
    """The trainer's environment, which it may have changed or wiped since it was read."""
    values = {f.name: getattr(env, f.name) for f in fields(env)}
    return json.dumps({k: {"path": str(v)} if isinstance(v, Path) else v for k, v in values.items()}).encode() + b"\n"


def unpacked(line: bytes) -> Environment:
    """As it was packed."""
    values = json.loads(line)
    paths = {f.name for f in fields(Environment) if "Path" in str(f.type)}
    values = {k: Path(v["path"]) if k in paths and v is not None else v for k, v in values.items()}
    return Environment(**{**values, "base": tuple(values["base"])})


class Words:
    """Lines into a pipe whose other end may not read: what does not fit waits, and goes before what comes later."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._unsaid = bytearray()

    def say(self, line: bytes, timeout: float) -> bool:
        """Whether this line and all before it have gone, after so many seconds at the latest.

        :raises BrokenPipeError: if nobody is there any more.
        """
        self._unsaid += line
        end = time.monotonic() + timeout
        while self._unsaid:
            try:
                del self._unsaid[: os.write(self._descriptor, self._unsaid[:MOUTHFUL])]
            except BlockingIOError:
                left = end - time.monotonic()
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                if left <= 0 or not poll.poll(left * 1000):
                    return False
        return True


class Lines:
    """Whole lines from a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self.ended = False

    def wait(self, timeout: float | None) -> bool:
        """Whether there is something to read, or the end, after so many seconds at the latest."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        found = poll.poll(None if timeout is None else max(timeout, 0.0) * 1000)
        return bool(found) and not found[0][1] & select.POLLNVAL  # closed by another thread

    def read(self) -> Iterator[bytes]:
        """What is there by one read, which blocks if nothing is; none at the end."""
        try:
            found = os.read(self._descriptor, MOUTHFUL)
        except BlockingIOError:
            return
        self.ended = not found
        *lines, self._rest = (self._rest + found).split(b"\n")
        yield from lines
