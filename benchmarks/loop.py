"""A training that computes all the time, and saves; every benchmark of a training runs this one, whoever saves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

EVERY, LONG, LARGE = 5.0, 120.0, 100_000_000  # seconds; bytes
MIB = 1 << 20


def steps(seconds: float, stop: Callable[[], bool] = lambda: False) -> float:
    """Steps a second, for some seconds or until it is to stop; a step computes with numpy and without."""
    import numpy as np  # here, since cases without a training would have it in their memory, too

    weights = np.random.default_rng(1).standard_normal((200, 200))
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds and not stop():
        for _ in range(3):
            weights = np.tanh(weights @ weights / 200)
        sum(i * i for i in range(10_000))
        done += 1
    return done / (time.perf_counter() - start)


def long(noted: Path, save: Callable[[Callable[[Path], None]], object]) -> float:
    """Seconds for a fixed number of steps, with a checkpoint of four files every so many of them.

    `noted`: where all who are compared find the number of steps; whoever comes first measures it.
    """
    content = bytearray(os.urandom(LARGE // 4))

    def write(folder: Path) -> None:
        for i in range(4):
            for at in range(0, len(content) - 16, MIB):  # each save has other bytes in each part of each file
                content[at : at + 16] = os.urandom(16)
            (folder / str(i)).write_bytes(content)

    if not noted.exists():
        noted.write_text(str(int(steps(5.0) * EVERY)))
    number = int(noted.read_text())
    start = time.perf_counter()
    for _ in range(int(LONG / EVERY)):
        left = iter(range(number))
        steps(600.0, lambda left=left: next(left, None) is None)  # type: ignore[misc]
        save(write)
    return time.perf_counter() - start
