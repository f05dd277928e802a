"""The Source over a real API server: kopf's watches, and nothing else of kopf.

kopf runs in a thread with a loop of its own. What its handlers do there is to hand the event over, so that a
busy reconciler never delays a watch, and kopf's end never cancels a task of ours. A handler that keeps state
(`on.create`, timers, finalizers) would write to every object; `on.event` writes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Collection
from typing import TYPE_CHECKING, Any

import kopf

from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.paths import RESOURCES, told
from trialkeeper_operator.reconcile.loop import KINDS
from trialkeeper_operator.reconcile.ports import Event

if TYPE_CHECKING:
    from trialkeeper_operator.reconcile.ports import Source

log = logging.getLogger(__name__)

CLOSING = 0.25  # seconds after which connections with TLS are closed: aiohttp leaves that to the loop


class WatchEnded(Exception):
    """Raised when the watches have ended and nobody has asked for it; the process must start again."""


class KopfSource:
    """Watches Experiments, Trials and our pods, in all namespaces or in those named.

    `relisted` is called, in the caller's loop, when a kind is listed anew after its watch broke: what was deleted
    in between is told by nobody.
    """

    def __init__(
        self,
        namespaces: Collection[str] = (),
        *,
        login: Callable[[], kopf.ConnectionInfo | None] | None = None,
    ) -> None:
        self._namespaces = tuple(namespaces)
        self._login = login
        self.relisted: Callable[[], None] = lambda: None

    async def events(self) -> AsyncIterator[Event]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        watched: set[str] = set()  # kinds that have told a change: a listing after it is a second one

        def tell(kind: str, raw: dict[str, Any]) -> None:
            event = _event(kind, raw)
            if raw.get("type") is None and kind in watched:
                watched.discard(kind)
                self.relisted()
            elif raw.get("type") is not None:
                watched.add(kind)
            queue.put_nowait(event)

        watch = _Watch(self._registry(lambda *event: _threadsafe(loop, tell, *event)), self._namespaces)
        watch.start(lambda end: _threadsafe(loop, queue.put_nowait, end))
        try:
            while True:
                news = await queue.get()
                if isinstance(news, BaseException):
                    raise WatchEnded(f"the watches have ended: {news}") from news
                yield news
        finally:
            watch.stop()

    def _registry(self, tell: Callable[[str, dict[str, Any]], None]) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        login = self._login

        if login is not None:

            @kopf.on.login(registry=registry)
            def log_in(**_: Any) -> kopf.ConnectionInfo | None:
                return login()

        else:

            @kopf.on.login(registry=registry, retries=3)
            def log_in_here(**kwargs: Any) -> kopf.ConnectionInfo | None:
                return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

        for kind in KINDS:
            _handle(registry, kind, tell)
        return registry


def _threadsafe(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
        loop.call_soon_threadsafe(call, *args)


def _handle(registry: kopf.OperatorRegistry, kind: str, tell: Callable[[str, dict[str, Any]], None]) -> None:
    resource = RESOURCES[kind]

    @kopf.on.event(resource.api_version, resource.plural, registry=registry, id=f"tell-{kind.lower()}")
    async def hand_over(event: Any, **_: Any) -> None:
        tell(kind, event)


def _event(kind: str, raw: dict[str, Any]) -> Event:
    type_ = raw.get("type")
    return Event(kind, "ADDED" if type_ is None else type_, told(kind, raw["object"]))


def settings() -> kopf.OperatorSettings:
    """How kopf watches: never without a deadline, no object of ours touched, no Event posted."""
    chosen = kopf.OperatorSettings()
    chosen.watching.server_timeout = 300
    chosen.watching.client_timeout = 330
    chosen.watching.connect_timeout = 10
    chosen.watching.reconnect_backoff = 1.0
    chosen.watching.chunk_size = 500
    chosen.watching.label_selectors["v1", "pods"] = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
    chosen.networking.request_timeout = 15
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.peering.standalone = True
    chosen.persistence.finalizer = f"{names.GROUP}/unused"
    chosen.persistence.diffbase_storage = _NoDiffs()
    chosen.persistence.progress_storage = _NoProgress()
    return chosen


class _NoDiffs(kopf.DiffBaseStorage):
    """Remembers nothing: only `on.event` is used, and computing what it would keep costs a third of its time."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Remembers nothing."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence


class _Watch:
    """kopf in its thread."""

    def __init__(self, registry: kopf.OperatorRegistry, namespaces: tuple[str, ...]) -> None:
        self._registry, self._namespaces = registry, namespaces
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, ended: Callable[[BaseException], None]) -> None:
        """Start watching; `ended` is told, in the thread, why it has ended."""

        async def watched() -> None:
            await kopf.operator(
                registry=self._registry,
                settings=settings(),
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                standalone=True,
                stop_flag=self._stop,
            )
            await asyncio.sleep(CLOSING)

        def main() -> None:
            try:
                asyncio.run(watched())
            except BaseException as error:  # whatever it is, the process is told and not left deaf
                ended(error)
            else:
                ended(ConnectionError("kopf has stopped"))

        self._thread = threading.Thread(target=main, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end; it is not waited for, since its requests may hang."""
        self._stop.set()


if TYPE_CHECKING:
    _source: Source = KopfSource()
