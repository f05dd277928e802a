"""An S3 server in this process: small, quick, ignorant of conditions unless told otherwise, and faulty on demand.

A fault is asked for each request, by method, key and query, before or after it is carried out. It can also stand before
another server, and pass on to that what it is asked.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import gmtime, strftime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "trials"


@dataclass(frozen=True)
class Fault:
    """What happens instead of an answer: a status with a body, a silence, or a broken connection."""

    status: int = 0
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    carried_out: bool = False  # before it happens, so that an answer is lost
    bytes_before_reset: int | None = None  # of the body of an answer
    wrong: bool = False  # an answer with a byte changed


@dataclass(frozen=True)
class Request:
    method: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    path: str = ""  # as it came


@dataclass
class Fake:
    """The server's state. `fault` is asked for every request."""

    honest: bool = False  # whether If-None-Match is honoured
    page: int = 1000
    swallow: bool = False  # whether bodies of parts are read and dropped, and their sizes kept
    swallowed: list[int] = field(default_factory=list)
    modified: str = field(default_factory=lambda: strftime("%Y-%m-%dT%H:%M:%S.000Z", gmtime()))  # of every object
    objects: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    fault: Callable[[Request], Fault | None] = lambda _: None
    endpoint: str = ""
    upstream: str = ""  # the endpoint of the server that this one stands before, if it does
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}?endpoint={self.endpoint}"

    def count(self, method: str, key: str = "") -> int:
        return sum(r.method == method and key in r.key for r in self.requests)

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Carry out a request, as S3 would."""
        if self.upstream:
            return self._passed_on(request)
        with self.lock:
            if request.query.get("list-type") == "2":
                return 200, {}, self._listing(request.query)
            if "uploads" in request.query:
                upload = str(len(self.uploads) + 1)
                self.uploads[upload] = {}
                return 200, {}, _xml("InitiateMultipartUploadResult", UploadId=upload)
            if "uploadId" in request.query:
                return self._multipart(request)
            return getattr(self, f"_{request.method.lower()}")(request)  # type: ignore[no-any-return]

    def _passed_on(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc, timeout=60)
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name not in ("connection", "transfer-encoding"):
                    connection.putheader(name, value)
            connection.endheaders(request.body)
            answer = connection.getresponse()
            body = answer.read()
            found = {n.lower(): v for n, v in answer.getheaders()}
        finally:
            connection.close()
        size = int(found.get("content-length", 0))
        kept = {n: v for n, v in found.items() if n == "etag" or n.startswith("x-amz-")}
        return answer.status, kept, body if request.method != "HEAD" else bytes(size)

    def _put(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        if self.honest and request.headers.get("if-none-match") == "*" and request.key in self.objects:
            return 412, {}, _xml("Error", Code="PreconditionFailed")
        kept = {name: value for name, value in request.headers.items() if name.startswith("x-amz-meta-")}
        self.objects[request.key] = request.body, kept
        return 200, {"ETag": '"1"'}, b""

    def _get(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        if request.key not in self.objects:
            return 404, {}, _xml("Error", Code="NoSuchKey")
        data, kept = self.objects[request.key]
        asked = request.headers.get("range", "")
        if not asked:
            return 200, kept, data
        first, _, last = asked.removeprefix("bytes=").partition("-")
        if int(first) >= len(data):
            return 416, {}, _xml("Error", Code="InvalidRange")
        return 206, kept, data[int(first) : int(last) + 1]

    _head = _get

    def _delete(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        self.objects.pop(request.key, None)
        return 204, {}, b""

    def _multipart(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        parts = self.uploads.get(request.query["uploadId"])
        if parts is None:
            return 404, {}, _xml("Error", Code="NoSuchUpload")
        if request.method == "PUT":
            parts[int(request.query["partNumber"])] = request.body
            return 200, {"ETag": f'"{request.query["partNumber"]}"'}, b""
        del self.uploads[request.query["uploadId"]]
        if request.method == "DELETE":
            return 204, {}, b""
        self.objects[request.key] = b"".join(parts[n] for n in sorted(parts)), {}
        return 200, {}, _xml("CompleteMultipartUploadResult", Key=request.key)

    def _listing(self, query: Mapping[str, str]) -> bytes:
        after = query.get("continuation-token", "")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys = [k for k in sorted(self.objects) if k.startswith(prefix) and k > after]
        if delimiter:
            return self._folders(prefix, delimiter, keys)
        shown = keys[: self.page]
        entries = "".join(
            f"<Contents><Key>{escape(quote(k))}</Key><Size>{len(self.objects[k][0])}</Size>"
            f"<LastModified>{escape(self.modified)}</LastModified></Contents>"
            for k in shown
        )
        more = len(keys) > len(shown)
        token = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if more else ""
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        ).encode()

    def _folders(self, prefix: str, delimiter: str, keys: list[str]) -> bytes:
        """What a listing with a delimiter has below a prefix, a page each."""
        last = {k[: k.index(delimiter, len(prefix)) + 1]: k for k in keys if delimiter in k[len(prefix) :]}
        shown = list(last)[: self.page]
        entries = "".join(f"<CommonPrefixes><Prefix>{escape(quote(p))}</Prefix></CommonPrefixes>" for p in shown)
        more = len(last) > len(shown)
        token = f"<NextContinuationToken>{escape(last[shown[-1]])}</NextContinuationToken>" if more else ""
        truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        return f"<ListBucketResult>{truncated}{token}{entries}</ListBucketResult>".encode()


def _xml(root: str, **fields: str) -> bytes:
    return f"<{root}>{''.join(f'<{n}>{escape(v)}</{n}>' for n, v in fields.items())}</{root}>".encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: Fake

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        request = Request(
            self.command,
            key,
            query,
            {name.lower(): value for name, value in self.headers.items()},
            self._body(dropped=self.fake.swallow and "partNumber" in query),
            self.path,
        )
        with self.fake.lock:
            self.fake.requests.append(request)
        signed = request.headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 Credential=")
        fault = self.fake.fault(request)
        if bucket != BUCKET:
            self._send(404, {}, _xml("Error", Code="NoSuchBucket"))
        elif not signed:
            self._send(403, {}, _xml("Error", Code="AccessDenied"))
        elif fault is None:
            self._send(*self.fake.answer(request))
        else:
            self._misbehave(fault, request)

    def _body(self, *, dropped: bool) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        if not dropped:
            return self.rfile.read(size)
        self.fake.swallowed.append(size)
        while size:
            size -= len(self.rfile.read(min(size, 1 << 20)))
        return b""

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _misbehave(self, fault: Fault, request: Request) -> None:
        status, headers, body = self.fake.answer(request) if fault.carried_out else (200, {}, b"")
        if fault.hang:
            self.fake.closing.wait()
            self.close_connection = True
        elif fault.bytes_before_reset is not None:
            status, headers, body = self.fake.answer(request)
            self._head_of(status, headers, len(body))
            self.wfile.write(body[: fault.bytes_before_reset])
            self._reset()
        elif fault.wrong:
            status, headers, body = self.fake.answer(request)
            self._send(status, headers, body[:-1] + bytes([body[-1] ^ 1]) if body else body)
        elif fault.status:
            self._send(fault.status, dict(fault.headers), fault.body)
        else:
            self._reset()

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        self.close_connection = True

    def _head_of(self, status: int, headers: Mapping[str, str], size: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self._head_of(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


@contextmanager
def fake_s3(*, honest: bool = False, tls: ssl.SSLContext | None = None, upstream: str = "") -> Iterator[Fake]:
    """A server on the loopback, until it is left."""
    fake = Fake(honest=honest, upstream=upstream)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    fake.endpoint = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
