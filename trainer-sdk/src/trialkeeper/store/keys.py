"""The keys to a bucket: the first of report service, variables, and workload identity that there is.

No key and no token ever gets into a message: what a library says about a failure is not repeated.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from minio.credentials.credentials import Credentials
from minio.credentials.providers import IamAwsProvider

from trialkeeper import contract
from trialkeeper.service import Service
from trialkeeper.store import Denied, Unreachable
from trialkeeper.store.address import Bucket

if TYPE_CHECKING:
    from trialkeeper.environment import Environment

ASK_TIMEOUT = 5.0  # seconds for each wait for the report service
ASK_AGAIN = 10.0  # seconds after a renewal that failed, while the old keys are still good
IDENTITY = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


class Keys:
    """The keys that are good now. Safe for threads; after a fork a new one is needed."""

    def __init__(self, bucket: Bucket, env: Environment) -> None:
        self._bucket = bucket
        self._lock = threading.Lock()
        self._lent: _Lent | None = None
        self._identity: IamAwsProvider | None = None
        if bucket.from_service and env.report.startswith("https://") and env.token_file is not None:
            self._lent = _Lent(bucket, partial(Service, env.report, env.report_ca, env.token_file))

    def get(self) -> Credentials:
        """The keys.

        :raises Unreachable: if they cannot be had now, Denied if there are none; the message says what to do.
        """
        with self._lock:
            if self._lent is not None:
                return self._lent.get()
            found = _from_variables()
            if found is not None:
                return found
            if any(os.environ.get(name) for name in IDENTITY):
                return self._of_identity()
        raise Denied(
            f"there are no keys for {self._bucket}: give the pod's service account a workload identity, "
            "or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )

    def refused(self) -> None:
        """The store does not accept the keys any more: get new ones the next time."""
        with self._lock:
            self._identity = None
            if self._lent is not None:
                self._lent.forget()

    def forked(self) -> None:
        """In a forked child: let go of what another thread may have held, and of the parent's connections."""
        self._lock = threading.Lock()
        self._identity = None
        if self._lent is not None:
            self._lent.reconnect()

    def _of_identity(self) -> Credentials:
        import urllib3

        if self._identity is None:
            pool = urllib3.PoolManager(timeout=ASK_TIMEOUT, retries=urllib3.Retry(total=1, redirect=0))
            self._identity = IamAwsProvider(http_client=pool, region=self._bucket.region)
        try:
            return self._identity.retrieve()
        except Exception as error:  # whatever the library makes of a broken answer
            raise Unreachable(
                f"the workload identity gives no keys for {self._bucket} ({type(error).__name__}): "
                "may the pod's service account assume its role?"
            ) from None


def _from_variables() -> Credentials | None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    return _made(*(os.environ.get(name, "") for name in names))


def _made(access: str, secret: str, token: str) -> Credentials | None:
    """The keys without the line's end that a Secret made from a file has, None if they are none."""
    access, secret, token = access.strip(), secret.strip(), token.strip()
    usable = all(part.isascii() and part.isprintable() for part in (access, secret, token))
    return Credentials(access, secret, token or None) if access and secret and usable else None


class _Lent:
    """Keys that the report service lends for a while, renewed when half of it is over."""

    def __init__(self, bucket: Bucket, connect: Callable[[], Service]) -> None:
        self._bucket, self._connect, self._service = bucket, connect, connect()
        self._keys: Credentials | None = None
        self._renew_at, self._end = 0.0, 0.0

    def forget(self) -> None:
        self._keys = None

    def reconnect(self) -> None:
        self._service = self._connect()

    def get(self) -> Credentials:
        now = time.time()
        if self._keys is not None and now < self._renew_at:
            return self._keys
        try:
            self._keys, expires = self._ask()
        except Unreachable:
            if self._keys is None or now >= self._end:
                raise
            self._renew_at = now + ASK_AGAIN
        else:
            self._end = expires or float("inf")
            self._renew_at = now + max((self._end - now) / 2, 1.0)
        return self._keys

    def _ask(self) -> tuple[Credentials, float]:
        whose = f"the report service gives no keys for {self._bucket}"
        try:
            answer = self._service.post(contract.CREDENTIALS_PATH, b"{}", ASK_TIMEOUT)
        except OSError as error:
            raise Unreachable(f"{whose}: {error}") from None
        if answer.status != 200:
            kind = Denied if answer.status in (401, 403, 404) else Unreachable
            raise kind(f"{whose}: it answers with HTTP {answer.status}")
        found = _decoded(answer.body)
        if found is None:
            raise Denied(f"{whose}: its answer makes no sense")
        return found


def _decoded(body: bytes) -> tuple[Credentials, float] | None:
    try:
        value: dict[str, Any] = json.loads(body)
        made = _made(value["accessKey"], value["secretKey"], value.get("sessionToken") or "")
        return None if made is None else (made, float(value.get("expires") or 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
