"""Keys to the chart's store: made for one experiment's prefix and for an hour, by the store's own STS.

A store without STS gets its static keys handed out; that isolates nobody, and the chart's notes say so. The
operator's own keys go to the chart's endpoint and nowhere else: no Experiment can name another.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trialkeeper import contract
from trialkeeper_operator.serve.settings import StoreSettings

if TYPE_CHECKING:
    from minio import Minio

DURATION = 3600  # seconds that keys are good for
DEADLINE = 10.0
POLICY_LIMIT = 2048  # characters, of MinIO as of AWS


class NoKeys(Exception):
    """Raised when the store gives no keys now; the message says why."""


@dataclass(frozen=True)
class Keys:
    """Keys to a store; `expires` in seconds since the epoch, 0: never."""

    accessKey: str
    secretKey: str
    sessionToken: str = ""
    expires: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def policy(bucket: str, own: str, readable: Sequence[str] = ()) -> str:
    """May do everything below `own`, and read below each of `readable`; prefixes without a slash at the end.

    Below each of `readable` it may put and delete pins of its own, see `contract.pin_key`: a trial's folder has
    five digits.
    """
    objects = f"arn:aws:s3:::{bucket}/"
    everything = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    everything += ["s3:ListMultipartUploadParts"]
    listed = [f"{prefix}/*" for prefix in (own, *readable)]
    statements: list[dict[str, Any]] = [
        {"Effect": "Allow", "Action": everything, "Resource": [f"{objects}{own}/*"]},
        {
            "Effect": "Allow",
            "Action": ["s3:ListBucket"],
            "Resource": [f"arn:aws:s3:::{bucket}"],
            "Condition": {"StringLike": {"s3:prefix": listed}},
        },
    ]
    if readable:
        only = [f"{objects}{prefix}/*" for prefix in readable]
        statements.append({"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": only})
        pins = [f"{objects}{prefix}/?????/{contract.pins_of(own)}*" for prefix in readable]
        statements.append({"Effect": "Allow", "Action": ["s3:PutObject", "s3:DeleteObject"], "Resource": pins})
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


class Credentials:
    """Hands out keys; those of one prefix are kept until half their life is over.

    `bucket_made` is False until the chart's bucket is there: trainers wait for keys, but fail without a bucket.
    """

    def __init__(self, store: StoreSettings, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        self.bucket_made = store.mode != "embedded"
        self._kept: dict[str, Keys] = {}  # by policy
        self._locks: dict[str, asyncio.Lock] = {}

    async def keys(self, own: str, readable: Sequence[str] = ()) -> Keys:
        """Keys for a prefix, and to read others: of those as many as a policy holds, from the first on.

        :raises NoKeys: if there are none.
        """
        if self._store.credentials_dir is None:
            raise NoKeys("the installation has no keys of its own: pods need an identity that the store knows")
        if not self.bucket_made:
            raise NoKeys(f"the bucket {self._store.bucket} is not made yet")
        if not self._store.sts:
            return Keys(*pair(self._store.credentials_dir))
        # A fork's donor is below the same prefix, and MinIO refuses a policy that names one twice.
        others = [prefix for prefix in dict.fromkeys(readable) if prefix != own]
        while len(allowed := policy(self._store.bucket, own, others)) > POLICY_LIMIT and others:
            others.pop()
        async with self._locks.setdefault(allowed, asyncio.Lock()):
            kept = self._kept.get(allowed)
            if kept is None or kept.expires - self._clock() < DURATION / 2:
                kept = self._kept[allowed] = await self._assume(allowed)
            return kept

    async def _assume(self, allowed: str) -> Keys:
        try:
            async with asyncio.timeout(DEADLINE):
                return await asyncio.to_thread(self._asked, allowed)
        except TimeoutError:
            raise NoKeys(f"the store at {self._store.endpoint} did not answer within {DEADLINE:g} s") from None

    def _asked(self, allowed: str) -> Keys:
        from minio.credentials.providers import AssumeRoleProvider

        assert self._store.credentials_dir is not None
        access, secret = pair(self._store.credentials_dir)
        try:
            provider = AssumeRoleProvider(
                sts_endpoint=self._store.endpoint,
                access_key=access,
                secret_key=secret,
                duration_seconds=DURATION,
                policy=allowed,
                region=self._store.region,
                http_client=_pool(self._store),
            )
            made = provider.retrieve()
        except Exception as refused:  # urllib3's, minio's, and XML's own
            raise NoKeys(f"the store at {self._store.endpoint} gave no keys: {str(refused)[:200]}") from refused
        return Keys(made.access_key, made.secret_key, made.session_token or "", self._clock() + DURATION)


def pair(folder: Path) -> tuple[str, str]:
    """The store's own keys.

    :raises NoKeys: if they cannot be read.
    """
    try:
        return (folder / "access-key").read_text().strip(), (folder / "secret-key").read_text().strip()
    except OSError as missing:
        raise NoKeys(f"the store's keys cannot be read: {missing.strerror}") from missing


def _pool(store: StoreSettings) -> Any:
    import urllib3

    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=3, read=5), retries=False, ca_certs=store.ca_file or None
    )


def ensure_bucket(store: StoreSettings) -> None:
    """Make the bucket if it is not there.

    :raises NoKeys: if that cannot be done now.
    """
    from minio import Minio

    if store.credentials_dir is None:
        return
    access, secret = pair(store.credentials_dir)
    host, secure = store.endpoint.split("://", 1)[-1].rstrip("/"), store.endpoint.startswith("https://")
    client: Minio = Minio(
        host, access_key=access, secret_key=secret, secure=secure, region=store.region, http_client=_pool(store)
    )
    try:
        if not client.bucket_exists(store.bucket):
            client.make_bucket(store.bucket)
    except Exception as refused:
        raise NoKeys(f"the bucket {store.bucket} at {store.endpoint} cannot be made: {refused}") from refused
