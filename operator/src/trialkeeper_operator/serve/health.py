"""Health, readiness and metrics over plain HTTP. Standbys are ready: they wait for the Lease and for nothing else."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable

from aiohttp import web

from trialkeeper_operator.serve.metrics import Metrics

LOOP_LIMIT = 30.0  # seconds that the event loop may be silent
LINGER = 1.0  # seconds that the rest of a refused body is read and forgotten, so that the refusal can be heard
CONNECTIONS = 1000  # at once; a TLS connection costs 0.3 MB
HANDSHAKE = 5.0  # seconds
IDLE_LIMIT = 60.0  # seconds after which a connection is closed that brings no whole request


class Health:
    """What the probes are told. `trouble` answers a sentence, or None while all is well."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.trouble: Callable[[], str | None] = lambda: None
        self.refresh: Callable[[], None] = lambda: None  # brings gauges up to date before they are read
        self._beat = time.monotonic()

    async def run(self) -> None:
        """Show that the loop turns, until cancelled."""
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(1)

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/healthz", self._healthy)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._text)
        return app

    async def _healthy(self, _: web.Request) -> web.Response:
        trouble = self.trouble()
        if trouble is None and time.monotonic() - self._beat > LOOP_LIMIT:
            trouble = f"the event loop was silent for {time.monotonic() - self._beat:.0f} s"
        return web.Response(text=trouble or "ok", status=500 if trouble else 200)

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _text(self, _: web.Request) -> web.Response:
        self.refresh()
        return web.Response(body=self._metrics.text(), content_type="text/plain", charset="utf-8")


class _TooMany(asyncio.Protocol):
    """A connection beyond the limit: closed as soon as it is made, without a word."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


async def listen(app: web.Application, port: int, context: ssl.SSLContext | None = None) -> web.AppRunner:
    """Serve an application on all of the pod's addresses, to so many connections as memory is there for."""
    listening: list[asyncio.Server] = []

    async def stop(_: web.Application) -> None:
        for server in listening:
            server.close()

    app.on_shutdown.append(stop)
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, keepalive_timeout=IDLE_LIMIT, lingering_time=LINGER
    )
    await runner.setup()
    served = runner.server
    assert served is not None

    def protocol() -> asyncio.BaseProtocol:
        return served() if len(served.connections) < CONNECTIONS else _TooMany()

    handshake = HANDSHAKE if context is not None else None
    loop = asyncio.get_running_loop()
    listening.append(
        await loop.create_server(protocol, None, port, ssl=context, ssl_handshake_timeout=handshake, reuse_address=True)
    )
    return runner
