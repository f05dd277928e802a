"""An asyncio loop whose time jumps to the next timer: hours pass in milliseconds, always in the same order."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
TURNS = 20_000  # of the loop at one and the same virtual time are no longer work, but a circle


class Stuck(RuntimeError):
    """Raised when nothing is left that could ever happen, or too much has."""


class _Jump(selectors.SelectSelector):
    """Never waits: what the loop would have slept is added to its clock."""

    loop: VirtualLoop
    turns = 0  # of the loop since time last moved

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("every task waits for something that nobody will do")
        self.turns += 1
        if timeout > 0:
            self.loop.elapsed += timeout
            self.turns = 0
        if self.turns > TURNS:
            raise Stuck(f"busy without end at {self.loop.elapsed:g} virtual seconds")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at zero; `time()` is virtual seconds."""

    def __init__(self) -> None:
        self.jump = _Jump()
        self.elapsed = 0.0
        super().__init__(self.jump)
        self.jump.loop = self

    def time(self) -> float:
        return self.elapsed


def run(main: Coroutine[Any, Any, T], *, limit: float) -> T:
    """Run a coroutine in virtual time; Stuck after `limit` virtual seconds."""
    loop = VirtualLoop()
    try:

        async def bounded() -> T:
            try:
                async with asyncio.timeout(limit):
                    return await main
            except TimeoutError as late:
                raise Stuck(f"not over after {limit:g} virtual seconds") from late

        return loop.run_until_complete(bounded())
    finally:
        _end(loop)
        loop.close()


def _end(loop: VirtualLoop) -> None:
    """Let what a broken story has left behind end, so that it is not heard of in another one."""
    loop.jump.turns = 0
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
