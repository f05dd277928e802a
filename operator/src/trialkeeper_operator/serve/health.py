"""Health, readiness and metrics over plain HTTP. Standbys are ready: they wait for the Lease and for nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from trialkeeper_operator.serve.metrics import Metrics

LOOP_LIMIT = 30.0  # seconds that the event loop may be silent
LINGER = 1.0  # seconds that the rest of a refused body is read and forgotten, so that the refusal can be heard
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


async def listen(app: web.Application, port: int, **how: object) -> web.AppRunner:
    """Serve an application on all of the pod's addresses; `how` goes to the site (ssl_context)."""
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, keepalive_timeout=IDLE_LIMIT, lingering_time=LINGER
    )
    await runner.setup()
    await web.TCPSite(runner, None, port, **how).start()  # type: ignore[arg-type]
    return runner
