"""The report service as a pod sees it: a POST with the pod's token over HTTPS, bounded in time and size.

Standard library only. The token is read anew for each request, since the kubelet renews it in place, and so
are the certificates to trust for each connection.
"""

from __future__ import annotations

import contextlib
import http.client
from dataclasses import dataclass
from pathlib import Path

from trialkeeper import trust

ANSWER_LIMIT = 1 << 18  # bytes of an answer that are read
TOKEN_LIMIT = 1 << 16
RETRY_AFTER_LIMIT = 300.0  # seconds that an answer may ask us to wait


@dataclass(frozen=True)
class Answer:
    """What the service said; `retry_after` in seconds, 0 if it did not say."""

    status: int
    body: bytes
    retry_after: float = 0.0


def retry_after(value: str | None) -> float:
    """A Retry-After header in seconds, 0 for whatever is not a sensible number."""
    try:
        seconds = float(value or 0)
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_LIMIT) if seconds == seconds else 0.0


class Service:
    """One connection, kept open. It is to be used by one thread."""

    def __init__(self, url: str, ca: str, token_file: Path | None) -> None:
        self._host = url.removeprefix("https://").rstrip("/")
        self._ca, self._token_file = ca, token_file
        self._connection: http.client.HTTPSConnection | None = None

    def post(self, path: str, body: bytes, timeout: float) -> Answer:
        """Send a body, get the answer; redirects are not followed. `timeout` bounds each wait.

        :raises OSError: if there is no answer.
        """
        kept = self._connection is not None
        try:
            return self._post(path, body, timeout)
        except OSError as error:
            # A connection that was kept may have been closed meanwhile; a new one deserves its own try.
            if not kept or isinstance(error, TimeoutError):
                raise
            return self._post(path, body, timeout)

    def _post(self, path: str, body: bytes, timeout: float) -> Answer:
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": "application/json"}
        try:
            connection = self._connection or http.client.HTTPSConnection(
                self._host, timeout=timeout, context=trust.context(self._ca)
            )
            self._connection = connection
            connection.timeout = timeout
            if connection.sock is not None:
                connection.sock.settimeout(timeout)
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            data = response.read(ANSWER_LIMIT + 1)
        except http.client.HTTPException as broken:
            self.close()
            if isinstance(broken, OSError):
                raise
            raise OSError(f"the report service's answer makes no sense: {type(broken).__name__}") from None
        except BaseException:
            self.close()
            raise
        if len(data) > ANSWER_LIMIT or response.will_close:
            self.close()
        return Answer(response.status, data[:ANSWER_LIMIT], retry_after(response.headers.get("Retry-After")))

    def _token(self) -> str:
        if self._token_file is None:
            raise OSError("there is no token for the report service")
        with open(self._token_file, encoding="ascii", errors="replace") as file:
            token = file.read(TOKEN_LIMIT).strip()
        if not token or not token.isascii() or not token.isprintable():
            raise OSError(f"{self._token_file} holds no token")
        return token

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()
