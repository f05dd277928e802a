"""A road to the API server that somebody can close: bytes go through it, or stand still on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from testbed import Cluster


class Road:
    """A TCP proxy on the loopback. Frozen, it takes connections and bytes, and hands none of them on."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            await self._open.wait()
            there, back = await asyncio.open_connection(*self._target)
            writers.append(back)
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
        except (OSError, asyncio.CancelledError):
            pass  # whoever was connected, and whatever was on its way, is told nothing more
        finally:
            for each in writers:
                each.transport.abort()
            self._tasks.discard(task)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._open.wait()
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError  # one end has closed; the other is of no use

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Road]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            waiting = list(self._tasks)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


def road(cluster: Cluster) -> Road:
    """A road to a cluster's API server, to be opened by `served`."""
    server = urlsplit(cluster.control.server)
    return Road(str(server.hostname), int(server.port or 443))


def over(cluster: Cluster, road: Road, file: Path) -> Path:
    """A kubeconfig that leads over a road."""
    config = json.loads(cluster.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{road.port}"
    file.write_text(json.dumps(config))
    return file
