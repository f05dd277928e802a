"""Signed requests to one bucket, bounded in time: what can be tried again is, what is refused is an OSError.

minio-py signs, with every header, so that no signature gets into a URL and from there into somebody's log.
The rest is ours, since its own client waits five minutes for a silent server and obeys any Retry-After.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import urllib3
from minio.signer import sign_v4_s3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)
from urllib3.exceptions import SSLError as TlsError

from trialkeeper import trust
from trialkeeper.service import retry_after
from trialkeeper.store import Denied, Unreachable
from trialkeeper.store.address import Bucket

if TYPE_CHECKING:
    from trialkeeper.store.keys import Keys

CONNECT = 5.0  # seconds to connect, and for each piece of a body to be taken
READ = 15.0  # seconds of silence
PATIENCE = 30.0  # seconds after which a request is not tried again
TRIES = 4
PAUSE_LIMIT = 5.0  # seconds between two tries, whatever Retry-After says: MinIO says 60
SILENT = 30.0  # seconds for which a store that did not answer gets one short try for each request
SHORT = 2.0  # seconds of that try
LOOK = 0.1  # seconds between two looks, in a pause, whether this process must leave
PIECE = 1 << 20  # bytes of a body sent at once, since a timeout bounds the sending of a piece as a whole
WORKERS = 4  # connections at once

_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_STALE_KEYS = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidTokenId", "TokenRefreshRequired"}
)
_HINTS = {
    "AccessDenied": "may this pod read, write and delete below its prefix?",
    "AuthorizationHeaderMalformed": "is the region right?",
    "InvalidAccessKeyId": "the keys are not this store's",
    "NoSuchBucket": "it must be created first",
    "PermanentRedirect": "are region and endpoint right?",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "SignatureDoesNotMatch": "the keys are not this store's",
}


class Refused(OSError):
    """Raised when the store answers, again and again, with something else than what was asked for."""


class BrokenOff(OSError):
    """Raised by a sink when less came than was promised."""


class Torn(Refused):
    """Raised when an object breaks off again and again."""


class FilePart(NamedTuple):
    """Bytes of an open file, as a piece of a body: they need not pass through this process."""

    descriptor: int
    start: int
    size: int

    def read(self) -> bytes:
        """The bytes.

        :raises ValueError: if there are fewer by now.
        """
        found = os.pread(self.descriptor, self.size, self.start)
        if len(found) != self.size:
            raise ValueError(CHANGED)
        return found


CHANGED = "checkpoint: a file became shorter while it was sent: save() must leave its files alone once it has returned"


class Body(Protocol):
    """What a request sends: `size` bytes, in pieces of a MiB or so, the same ones each time it is tried."""

    size: int

    def __iter__(self) -> Iterator[bytes | memoryview | FilePart]: ...


class Bytes:
    """A body in memory."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self.size = data, len(data)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return (self._data[at : at + PIECE] for at in range(0, self.size, PIECE))


class _Connection(HTTPConnection):
    """Sends a file's bytes from the kernel's cache straight into the socket."""

    def send(self, data: Any) -> None:
        if not isinstance(data, FilePart):
            super().send(data)
            return
        if self.sock is None or not hasattr(os, "sendfile"):
            super().send(data.read())
            return
        sock, patience = self.sock, self.sock.gettimeout()
        deadline = time.monotonic() + (READ if patience is None else patience)
        at, end = data.start, data.start + data.size
        while at < end:
            try:
                sent = os.sendfile(sock.fileno(), data.descriptor, at, end - at)
            except BlockingIOError:
                if not _writable(sock, deadline - time.monotonic()):
                    raise TimeoutError("timed out") from None
                continue
            if sent == 0:
                raise ValueError(CHANGED)
            at += sent


def _writable(sock: socket.socket, seconds: float) -> bool:
    poll = select.poll()  # select() knows no descriptor above 1,023, and a trainer may have many
    poll.register(sock, select.POLLOUT)
    return seconds > 0 and bool(poll.poll(seconds * 1000))


class _TlsConnection(urllib3.connection.HTTPSConnection):
    def send(self, data: Any) -> None:
        super().send(data.read() if isinstance(data, FilePart) else data)


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


@dataclass(frozen=True)
class Answer:
    """A status that the caller was ready for. `tries`: more than 1 if an earlier answer may have been lost."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    tries: int = 1


def xml(body: bytes, root: str) -> ElementTree.Element | None:
    """An answer's XML without its namespaces, or None if it is not one with this root."""
    try:
        found = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError):
        return None
    for element in found.iter():
        element.tag = str(element.tag).rpartition("}")[2]
    return found if found.tag == root else None


def code_of(body: bytes) -> str:
    """The S3 code of an error's body, empty if it has none."""
    error = xml(body, "Error")
    code = "" if error is None else (error.findtext("Code") or "")
    return code if code.isalnum() and len(code) <= 64 else ""


class Wire:
    """One bucket. Safe for threads and forks."""

    def __init__(
        self,
        bucket: Bucket,
        keys: Keys,
        *,
        ca: str = "",
        leave_by: Callable[[], float | None] = lambda: None,
        grace: float = 3 * READ,
    ) -> None:
        self.bucket = bucket
        self._keys, self._ca, self._leave_by = keys, ca, leave_by
        self._process, self._opened = 0, urllib3.PoolManager()
        # What hangs when the pod is asked to go hangs on for so long, so it must be a part of the grace only.
        self._read = min(READ, grace / 3)
        self._silent_until = 0.0

    def close(self) -> None:
        """Let go of all connections."""
        self._opened.clear()

    def out_of_time(self) -> bool:
        """Whether this process must leave now."""
        going = self._leave_by()
        return going is not None and time.monotonic() >= going

    def _pool(self) -> urllib3.PoolManager:
        """This process's connections: those that were open at a fork are the parent's."""
        if self._process != os.getpid():
            self._keys.forked()
            context = trust.context(self._ca) if self.bucket.base.startswith("https://") else None
            self._opened = urllib3.PoolManager(maxsize=2 * WORKERS, ssl_context=context)
            self._opened.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
            self._process = os.getpid()
        return self._opened

    def request(
        self,
        method: str,
        key: str = "",
        query: Mapping[str, str] | None = None,
        *,
        body: bytes | Body = b"",
        headers: Mapping[str, str] | None = None,
        ready_for: Sequence[int] = (),
        sink: Callable[[urllib3.BaseHTTPResponse], object] | None = None,
    ) -> Answer:
        """An answer of 2xx, or with a status in `ready_for`; `sink` reads the body of a 2xx.

        :raises Unreachable: if there is none, or none but that it cannot now; Denied if access is refused.
        :raises Refused: if the store cannot do it.
        """
        start = time.monotonic()
        sent = Bytes(body) if isinstance(body, bytes) else body
        short = start < self._silent_until
        renewed = silent = False
        for tries in range(1, TRIES + 1):
            end = start + (SHORT if short else PATIENCE)
            going = self._leave_by()
            if going is not None:
                end = min(end, going)
            left = max(end - time.monotonic(), 0.05)
            patience = urllib3.Timeout(connect=min(SHORT if short else CONNECT, left), read=min(self._read, left))
            pause = min(0.25 * 2**tries, PAUSE_LIMIT)
            failure: OSError
            try:
                answer = self._once(method, key, query or {}, sent, headers or {}, patience, sink)
            except BrokenOff as broken:
                failure = Torn(f"{self.bucket} breaks off in the middle of {key or 'its list'}: {broken}")
            except HTTPError as error:
                words = f"{self.bucket} {_words(error)}"
                if _distrust(error):
                    raise Denied(words) from None
                failure, silent = Unreachable(words), True
            else:
                self._silent_until, silent = 0.0, False
                code = code_of(answer.body) if answer.status >= 300 else ""
                if answer.status < 300 or (answer.status in ready_for and code != "NoSuchBucket"):
                    return Answer(answer.status, answer.headers, answer.body, tries)
                failure = self._refusal(answer.status, code)
                if code in _STALE_KEYS and not renewed:
                    renewed = True
                    self._keys.refused()
                    continue
                if answer.status not in _AGAIN and answer.status != 409:
                    raise failure
                pause = min(max(pause, retry_after(answer.headers.get("Retry-After"))), 4 * pause, PAUSE_LIMIT)
            if short or tries == TRIES or time.monotonic() + pause >= end or not self._paused(pause):
                break
        if silent and not short:
            # A short try proves nothing against a store that is only slow: when its time is over, a long one comes.
            self._silent_until = time.monotonic() + SILENT
        raise failure

    def _paused(self, seconds: float) -> bool:
        """Wait; False if this process must leave meanwhile, which may be said at any moment."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.out_of_time():
                return False
            time.sleep(min(left, LOOK))
        return True

    def _refusal(self, status: int, code: str) -> OSError:
        hint = _HINTS.get(code, "")
        sentence = f"{self.bucket} answers with {code or 'no S3 code'} (HTTP {status})" + (hint and f": {hint}")
        if status in _AGAIN:
            return Unreachable(sentence)
        # These are about one object; any other is about our access to all of them.
        return Refused(sentence) if status == 409 or code == "NoSuchKey" else Denied(sentence)

    def _once(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        body: Body,
        headers: Mapping[str, str],
        patience: urllib3.Timeout,
        sink: Callable[[urllib3.BaseHTTPResponse], object] | None,
    ) -> Answer:
        asked = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in sorted(query.items()))
        url = f"{self.bucket.base}/{quote(key, safe='/~')}" + (asked and f"?{asked}")
        pieces: Any = body  # an iterable for urllib3, whose connections are ours
        response = self._pool().urlopen(
            method,
            url,
            body=pieces if body.size else None,
            headers=self._signed(method, url, {**headers, "Content-Length": str(body.size)}),
            timeout=patience,
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        try:
            if sink is not None and response.status < 300:
                sink(response)
                return Answer(response.status, response.headers, b"")
            return Answer(response.status, response.headers, response.read())
        except ProtocolError:
            response.close()
            raise BrokenOff("less came than was promised") from None
        except BaseException:
            response.close()
            raise
        finally:
            response.release_conn()

    def _signed(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        keys, parts, now = self._keys.get(), urlsplit(url), datetime.now(timezone.utc)
        all_headers = {
            **headers,
            "Host": parts.netloc,
            "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
            # Over TLS it would be done twice, and over http the manifest's hashes find what went wrong.
            "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
        }
        if keys.session_token:
            all_headers["x-amz-security-token"] = keys.session_token
        signed = sign_v4_s3(
            method=method,
            url=parts,
            region=self.bucket.region,
            headers={**all_headers},
            credentials=keys,
            content_sha256="UNSIGNED-PAYLOAD",
            date=now,
        )
        return {name: str(value) for name, value in signed.items()}


def _quoted(text: str) -> str:
    return quote(text, safe="~")


def _distrust(error: HTTPError) -> str:
    """Why a certificate is not trusted, empty if that is not what went wrong."""
    cause = error.args[0] if isinstance(error, TlsError) and error.args else None
    return str(getattr(cause, "verify_message", ""))


def _words(error: HTTPError) -> str:
    """What went wrong, without the library's words: they may hold what was signed."""
    if isinstance(error, NameResolutionError):
        return "is not known by that name"
    if isinstance(error, ConnectTimeoutError):
        return "cannot be reached: no connection in time"
    if isinstance(error, NewConnectionError):
        return "cannot be reached: the connection is refused"
    if isinstance(error, ReadTimeoutError):
        return "does not answer in time"
    if isinstance(error, TlsError):
        return f"cannot be trusted: {_distrust(error)}" if _distrust(error) else "breaks off TLS"
    return "breaks off the connection"
