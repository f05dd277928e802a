"""The keyed queue: once in it, one at a time, when due."""

from __future__ import annotations

import asyncio

import pytest

from simulation.virtual import run
from trialkeeper_operator.reconcile.queue import KeyedQueue


def test_a_key_is_in_the_queue_once() -> None:
    async def main() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        for key in "abab":
            queue.add(key)
        assert [await queue.take(), await queue.take()] == ["a", "b"]
        assert len(queue) == 0

    run(main(), limit=1)


def test_a_key_added_while_it_is_worked_on_comes_again_afterwards() -> None:
    async def main() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        queue.add("a")
        await queue.take()
        queue.add("a")
        assert len(queue) == 0
        queue.done("a")
        assert await queue.take() == "a"

    run(main(), limit=1)


def test_a_delayed_key_is_due_at_its_earliest_time() -> None:
    async def main() -> None:
        queue: KeyedQueue[str] = KeyedQueue()
        loop = asyncio.get_running_loop()
        queue.add("a", 10)
        queue.add("a", 3)
        queue.add("b", 5)
        assert (await queue.take(), loop.time()) == ("a", 3)
        queue.done("a")
        assert (await queue.take(), loop.time()) == ("b", 5)
        queue.done("b")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await queue.take()

    run(main(), limit=1000)


def test_a_failing_key_waits_longer_each_time_and_alone() -> None:
    async def main() -> list[float]:
        queue: KeyedQueue[str] = KeyedQueue()
        loop, times = asyncio.get_running_loop(), []
        queue.add("a")
        for _ in range(5):
            await queue.take()
            times.append(loop.time())
            queue.done("a", failed=True)
        return times

    assert run(main(), limit=1000) == [0.0, 0.5, 1.5, 3.5, 7.5]


def test_success_forgets_the_failures() -> None:
    async def main() -> float:
        queue: KeyedQueue[str] = KeyedQueue()
        loop = asyncio.get_running_loop()
        for failed in (True, True, False, True):
            queue.add("a")
            await queue.take()
            queue.done("a", failed=failed)
        start = loop.time()
        await queue.take()
        return loop.time() - start

    assert run(main(), limit=1000) == 0.5
