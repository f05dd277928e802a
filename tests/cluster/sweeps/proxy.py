"""A proxy in front of a real API server that does to a call what a network, a server or a crash can do to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from faults import Call, Fault
from testbed import Cluster
from trialkeeper_operator.cluster.paths import RESOURCES

KINDS = {resource.plural: kind for kind, resource in RESOURCES.items()}
VERBS = {"GET": "get", "POST": "create", "PUT": "put", "DELETE": "delete", "PATCH": "patch"}
PASSED = ("Accept", "Content-Type", "User-Agent")  # of a request's headers


@asynccontextmanager
async def session(cluster: Cluster) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the API server with all rights; its paths begin there."""
    authority = cluster.control.authority
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(authority.file("admin"), authority.key("admin"))
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    async with aiohttp.ClientSession(cluster.control.server, connector=connector) as found:
        yield found


class Proxy:
    """Passes on what `decide` has no fault for; `drop` takes events out of watches.

    A fault that is a crash leaves the call without an answer and calls `crashed`. `calls` has all but watches.
    """

    def __init__(
        self,
        upstream: aiohttp.ClientSession,
        decide: Callable[[Call], Fault | None],
        crashed: Callable[[], None],
        drop: Callable[[dict[str, Any]], bool] = lambda event: False,
    ) -> None:
        self._upstream, self._decide, self._crashed, self._drop = upstream, decide, crashed, drop
        self.calls: list[Call] = []
        self._watches: set[asyncio.Transport] = set()
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Proxy]:
        """Listen on a port of this machine; `url` says where."""
        application = web.Application(client_max_size=8 << 20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request)
        body = await request.read()
        call = _call(len(self.calls), request, body)
        self.calls.append(call)
        fault = self._decide(call)
        if fault is Fault.CONFLICT and call.writes:
            return _refusal(409, "Conflict", "the object has been modified; please apply your changes: drawn")
        if fault is Fault.THROTTLED:
            return _refusal(429, "TooManyRequests", "too many requests: drawn", {"Retry-After": "1"})
        if fault is Fault.UNAVAILABLE:
            return _refusal(500, "InternalError", "etcdserver: request timed out: drawn")
        if fault is Fault.CRASH_BEFORE:
            return self._gone(request)
        answer = await self._passed(request, body)
        if fault is Fault.CRASH_AFTER:
            return self._gone(request)
        if fault is Fault.APPLIED_UNAVAILABLE:
            return _refusal(504, "Timeout", "the server was unable to return a response in time: drawn")
        return answer

    async def _passed(self, request: web.Request, body: bytes) -> web.Response:
        async with self._upstream.request(
            request.method, request.path_qs, data=body or None, headers=_headers(request)
        ) as said:
            kept = {name: said.headers[name] for name in ("Content-Type", "Retry-After") if name in said.headers}
            return web.Response(status=said.status, body=await said.read(), headers=kept)

    def _gone(self, request: web.Request) -> web.Response:
        """No answer: who has asked is no more."""
        self._crashed()
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=503)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._upstream.get(request.path_qs, headers=_headers(request), timeout=timeout) as said:
            stream = web.StreamResponse(status=said.status, headers={"Content-Type": "application/json"})
            await stream.prepare(request)
            transport = request.transport
            assert transport is not None
            self._watches.add(transport)
            try:
                async for line in lines(said):
                    if not self._drop(json.loads(line)):
                        await stream.write(line)
            except (ConnectionError, aiohttp.ClientError):
                pass  # whoever has watched is gone
            finally:
                self._watches.discard(transport)
            return stream

    def close_watches(self) -> None:
        """Break every watch that is open, as a load balancer does."""
        for transport in list(self._watches):
            transport.abort()


async def lines(said: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """What a watch tells, line by line, however long a line is."""
    held = b""
    async for chunk in said.content.iter_any():
        *whole, held = (held + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"


def _headers(request: web.Request) -> dict[str, str]:
    return {name: request.headers[name] for name in PASSED if name in request.headers}


def _call(number: int, request: web.Request, body: bytes) -> Call:
    """The call as a Cluster makes it: a list is a GET without a name, a PUT of a subresource is that of a status."""
    parts = [part for part in request.path.split("/") if part]
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    plural, name, sub = [*parts, "", "", ""][:3]
    verb = VERBS.get(request.method, request.method)
    if verb == "get" and not name:
        verb = "list"
    if sub == "status":
        verb = "put_status"
    if not name and verb == "create":
        with contextlib.suppress(ValueError, KeyError, TypeError):
            name = json.loads(body)["metadata"]["name"]
    return Call(number, verb, KINDS.get(plural, plural), name)


def _refusal(code: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return web.json_response({**status, "reason": reason, "message": message}, status=code, headers=headers)
