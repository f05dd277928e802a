"""Keys of the store's own STS, at a real MinIO: what they open, and that there are always some."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from minio import Minio as Client
from minio.error import S3Error

from minio_server import KEYS, Minio
from trialkeeper_operator.serve.credentials import Credentials, Keys
from trialkeeper_operator.serve.settings import StoreSettings

OWN = "default/digits-0d6ee331"
LONG = "n" * 63 + "/" + "e" * 40 + "-0d6ee33"  # as long as a prefix may be, but for a digit


@pytest.fixture
def credentials(server: Minio, tmp_path: Path) -> Credentials:
    for name, value in zip(("access-key", "secret-key"), KEYS.values(), strict=True):
        (tmp_path / name).write_text(value)
    return Credentials(
        StoreSettings(mode="external", endpoint=server.endpoint, bucket=server.bucket, credentials_dir=tmp_path)
    )


def may_read(server: Minio, keys: Keys, prefix: str) -> bool:
    """Whether these keys open what is below a prefix; there is nothing."""
    client = Client(
        server.endpoint.removeprefix("http://"),
        access_key=keys.accessKey,
        secret_key=keys.secretKey,
        session_token=keys.sessionToken,
        secure=False,
        region="us-east-1",
    )
    with pytest.raises(S3Error) as refused:
        client.get_object(server.bucket, f"{prefix}/00000/attempts/000001.json")
    assert refused.value.code in ("NoSuchKey", "AccessDenied")
    return bool(refused.value.code == "NoSuchKey")


@pytest.mark.parametrize(
    ("own", "donors", "opened"),
    [
        (OWN, [], []),
        (OWN, [OWN], []),  # a fork within an experiment
        (OWN, ["default/older-1", OWN, "default/older-1"], ["default/older-1"]),
        (f"{LONG}0", [f"{LONG}{n}" for n in range(1, 9)], [f"{LONG}1", f"{LONG}2"]),  # a restore of restores
    ],
)
def test_keys_open_a_prefix_and_those_it_is_heir_to(
    credentials: Credentials, server: Minio, own: str, donors: list[str], opened: list[str]
) -> None:
    keys = asyncio.run(credentials.keys(own, donors))
    assert may_read(server, keys, own)
    assert [prefix for prefix in dict.fromkeys(donors) if prefix != own and may_read(server, keys, prefix)] == opened
    assert not may_read(server, keys, "default/foreign-1")


def test_those_of_a_prefix_are_kept(credentials: Credentials) -> None:
    async def both() -> tuple[Keys, Keys]:
        return await credentials.keys(OWN), await credentials.keys(OWN, [OWN])

    one, other = asyncio.run(both())
    assert one == other
