"""The probes' answers, and a bound on connections: nobody outside may use up the operator's memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from trialkeeper_operator.serve import health
from trialkeeper_operator.serve.health import Health, listen
from trialkeeper_operator.serve.metrics import Metrics

Story = Callable[[int, Health], Awaitable[None]]


def served(story: Story) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def main() -> None:
        asked = Health(Metrics())
        runner = await listen(asked.application(), port)
        try:
            async with asyncio.timeout(20):
                await story(port, asked)
        finally:
            await runner.cleanup()

    asyncio.run(main())


async def answer(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    return raw.decode()


def test_trouble_is_told_to_the_liveness_probe_alone() -> None:
    async def story(port: int, asked: Health) -> None:
        assert "200 OK" in await answer(port, "/healthz")
        asked.trouble = lambda: "the watch is deaf"
        assert "500 Internal" in await answer(port, "/healthz")
        assert "200 OK" in await answer(port, "/readyz")
        assert "trialkeeper_leader 0.0" in await answer(port, "/metrics")

    served(story)


def test_connections_beyond_the_limit_are_closed_and_the_others_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CONNECTIONS", 2)

    async def story(port: int, asked: Health) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for _, writer in idle:
            writer.write(b"GET /healthz HTTP/1.1\r\n")
            await writer.drain()
        await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            reply = await answer(port, "/healthz")
            if not reply:
                raise ConnectionResetError
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()
        while "200 OK" not in await reply_of(port):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def reply_of(port: int) -> str:
        try:
            return await answer(port, "/healthz")
        except ConnectionError:
            return ""

    served(story)
