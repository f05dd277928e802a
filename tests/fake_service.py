"""The report service as a trainer meets it: HTTPS on the loopback, a certificate of its own, faults on demand."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

from trialkeeper.contract import Message

PATIENCE = 20.0  # seconds that a test waits for a request


@dataclass(frozen=True)
class Posted:
    path: str
    token: str
    body: bytes

    @property
    def message(self) -> Message:
        found = Message.decode(self.body)
        assert found is not None
        return found


@dataclass(frozen=True)
class Reply:
    """What is answered; `hang` waits until the service is closed."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False

    @staticmethod
    def of(value: Any) -> Reply:
        return Reply(body=json.dumps(value).encode())


@dataclass
class FakeService:
    """The service's state. `answer` is asked for every request."""

    ca: Path
    token_file: Path
    url: str = ""
    posted: list[Posted] = field(default_factory=list)
    connections: int = 0
    answer: Callable[[Posted], Reply] = lambda _: Reply()
    news: threading.Condition = field(default_factory=threading.Condition)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "TRIALKEEPER_REPORT": self.url,
            "TRIALKEEPER_REPORT_CA": str(self.ca),
            "TRIALKEEPER_TOKEN_FILE": str(self.token_file),
        }

    def until(self, holds: Callable[[list[Posted]], bool]) -> None:
        """Wait until the requests so far are as wished."""
        with self.news:
            assert self.news.wait_for(lambda: holds(self.posted), PATIENCE), [p.path for p in self.posted]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: FakeService

    def setup(self) -> None:
        super().setup()
        self.service.connections += 1

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        posted = Posted(self.path, self.headers.get("Authorization", "").removeprefix("Bearer "), body)
        reply = self.service.answer(posted)
        with self.service.news:
            self.service.posted.append(posted)
            self.service.news.notify_all()
        if reply.hang:
            self.service.closing.wait()
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away, or does not trust us


@contextmanager
def fake_service(folder: Path) -> Iterator[FakeService]:
    """A service until it is left; its certificate's CA and a token are below a folder."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    (folder / "token").write_text("first-token\n")
    service = FakeService(folder / "ca.pem", folder / "token")
    server = _Server(type("Handler", (_Handler,), {"service": service}), context)
    service.url = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
