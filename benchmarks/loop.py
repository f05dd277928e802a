"""A training that computes all the time, and saves; every benchmark of a training runs this one, whoever saves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

EVERY, LONG, LARGE = 5.0, 120.0, 100_000_000  # seconds; bytes
LOOKS = 16  # steps between two looks whether it is to stop
MIB = 1 << 20


def training() -> Iterator[None]:
    """Steps without an end; each computes with numpy and without."""
    import numpy as np  # here, since cases without a training would have it in their memory, too

    weights = np.random.default_rng(1).standard_normal((200, 200))
    while True:
        for _ in range(3):
            weights = np.tanh(weights @ weights / 200)
        sum(i * i for i in range(10_000))
        yield


def speed(seconds: float, stop: Callable[[], bool] = lambda: False) -> float:
    """Steps a second, for some seconds or until it is to stop."""
    start = time.perf_counter()
    for done, _ in enumerate(training(), 1):
        took = time.perf_counter() - start
        if took >= seconds or (done % LOOKS == 0 and stop()):
            break
    return done / took


def change(content: bytearray) -> None:
    """Other bytes in each MiB, since nothing is sent twice."""
    for at in range(0, len(content) - 16, MIB):
        content[at : at + 16] = os.urandom(16)


def long(noted: Path, save: Callable[[Callable[[Path], None]], object]) -> float:
    """Seconds for a fixed number of steps, with a checkpoint of four files every so many of them.

    `noted`: where all who are compared find the number of steps; whoever comes first measures it.
    """
    content = bytearray(os.urandom(LARGE // 4))

    def write(folder: Path) -> None:
        for i in range(4):
            change(content)
            (folder / str(i)).write_bytes(content)

    if not noted.exists():
        noted.write_text(str(int(speed(5.0) * EVERY)))
    number = int(noted.read_text())
    start = time.perf_counter()
    for _ in range(int(LONG / EVERY)):
        for _ in islice(training(), number):
            pass
        save(write)
    return time.perf_counter() - start
