"""Waiting for something to become true: looked at often, for a limited time, with a sentence at the end of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

EVERY = 0.3  # seconds; a look is a program to be started, as a rule


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


async def awaited(what: str, look: Callable[[], Awaitable[T]], *, seconds: float = 60) -> T:
    """`until` for a look that is asked in an event loop, which goes on meanwhile.

    :raises TimeoutError: if `seconds` have passed; it says what was awaited.
    """
    deadline = time.monotonic() + seconds
    while True:
        seen = await look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        await asyncio.sleep(EVERY)
