"""Waiting for something to become true: looked at often, for a limited time, with a sentence at the end of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

EVERY = 0.1


def until(what: str, look: Callable[[], T], *, seconds: float = 60) -> T:
    """Look until what is seen is true in Python's sense, and return that.

    :raises TimeoutError: if `seconds` have passed; it says what was awaited.
    """
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(EVERY)
