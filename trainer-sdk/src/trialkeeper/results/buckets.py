"""Opening a bucket as a person: with keys that are given, of the shell's variables, or of AWS's own files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from minio.credentials.credentials import Credentials
from minio.credentials.providers import AWSConfigProvider

from trialkeeper import contract, environment
from trialkeeper.results.places import BucketPlace
from trialkeeper.store import Denied
from trialkeeper.store.address import Bucket
from trialkeeper.store.keys import Keys
from trialkeeper.store.wire import Wire


class PersonsKeys(Keys):
    """The keys of a trainer's variables or identity; else those of the profile that AWS_PROFILE names."""

    def get(self) -> Credentials:
        try:
            return super().get()
        except Denied:
            try:
                return AWSConfigProvider().retrieve()
            except ValueError:
                raise Denied(
                    f"there are no keys for {self._bucket}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                ) from None


class GivenKeys(Keys):
    """Keys that somebody looked up."""

    def __init__(self, bucket: Bucket, env: environment.Environment, access: str, secret: str) -> None:
        super().__init__(bucket, env)
        self._given = Credentials(access, secret)

    def get(self) -> Credentials:
        return self._given


def open_bucket(
    bucket: Bucket,
    pair: tuple[str, str] | None = None,
    ca: str = "",
    after: Callable[[], object] = lambda: None,
) -> BucketPlace:
    """A bucket, with the keys `pair` or a person's own. `ca`: PEM or a file, whom to trust; `after`: ends with it."""
    bucket = replace(bucket, from_service=False)
    given = {contract.ENV_STORE: bucket.url, contract.ENV_ATTEMPT: "1"}
    env = environment.read(given)
    keys = PersonsKeys(bucket, env) if pair is None else GivenKeys(bucket, env, *pair)
    trusted = ca or os.environ.get(contract.ENV_STORE_CA, "") or os.environ.get("AWS_CA_BUNDLE", "")
    return BucketPlace(Wire(bucket, keys, ca=trusted), after)
