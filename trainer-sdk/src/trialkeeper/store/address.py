"""What a store's URL means: `file:///folder`, or `s3://bucket?endpoint=http://host:port&region=name`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_REGION = "us-east-1"
FROM_SERVICE = "report"  # the value of `credentials` in a bucket's URL: keys are the report service's to give

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True)
class Bucket:
    """Where objects are. `folder` goes before every key, `endpoint` is empty for AWS."""

    name: str
    folder: str = ""
    endpoint: str = ""
    region: str = DEFAULT_REGION
    from_service: bool = False

    @property
    def base(self) -> str:
        """The URL below which its keys are."""
        if self.endpoint:
            return f"{self.endpoint}/{self.name}"
        host = f"s3.{self.region}.amazonaws.com" + (".cn" if self.region.startswith("cn-") else "")
        # A dot in the name would not fit the certificate of a host that begins with it.
        return f"https://{host}/{self.name}" if "." in self.name else f"https://{self.name}.{host}"

    @property
    def url(self) -> str:
        """What `bucket_of` reads."""
        from urllib.parse import urlencode

        query = {"region": self.region, "endpoint": self.endpoint}
        query |= {"credentials": FROM_SERVICE} if self.from_service else {}
        place = f"{self.name}/{self.folder}" if self.folder else self.name
        return f"s3://{place}?{urlencode({k: v for k, v in query.items() if v})}"

    def __str__(self) -> str:
        return f"the bucket {self.name} at {self.endpoint or 'AWS'}"


def path_of(url: str) -> Path:
    """The path of a file URL.

    :raises ValueError: if it is another kind of URL.
    """
    path = url.removeprefix("file://").removeprefix("localhost")
    if not url.startswith("file://") or not path.startswith("/"):
        raise ValueError(f"{url!r} is not a file:// URL of this machine")
    if "%" in path:
        from urllib.parse import unquote

        path = unquote(path)
    return Path(path)


def bucket_of(url: str) -> Bucket:
    """The bucket of an s3 URL.

    :raises ValueError: if it cannot be used; the message says why, without repeating what may be a key.
    """
    from urllib.parse import parse_qsl, urlsplit

    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("an s3:// URL takes no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    if not _NAME.fullmatch(parts.netloc):
        raise ValueError(f"{parts.netloc[:80]!r} is not a bucket's name: write s3://bucket?endpoint=http://host:port")
    asked = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(asked.keys() - {"endpoint", "region", "credentials"})
    if unknown or parts.fragment:
        raise ValueError(f"an s3:// URL takes endpoint, region and credentials, not {unknown[0] if unknown else '#'!r}")
    region = asked.get("region") or DEFAULT_REGION
    if not _REGION.fullmatch(region):
        raise ValueError(f"{region[:80]!r} is not a region's name")
    if asked.get("credentials", FROM_SERVICE) != FROM_SERVICE:
        raise ValueError(f"credentials={asked['credentials'][:80]!r}: the only word is {FROM_SERVICE!r}")
    return Bucket(
        name=parts.netloc,
        folder=parts.path.strip("/"),
        endpoint=_endpoint(asked["endpoint"]) if asked.get("endpoint") else "",
        region=region,
        from_service="credentials" in asked,
    )


def _endpoint(text: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(text)
    try:
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if parts.scheme not in ("http", "https") or not usable or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"endpoint={text.rpartition('@')[2][:200]!r} is not http://host:port or https://host:port")
    if "@" in parts.netloc:
        raise ValueError("an endpoint takes no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    return f"{parts.scheme}://{parts.netloc}"


def check(url: str) -> None:
    """Nothing, if a store can be opened by a URL.

    :raises ValueError: else.
    """
    if url.startswith("s3://"):
        bucket_of(url)
    elif url.startswith("file://"):
        path_of(url)
    else:
        raise ValueError(f"{url[:200]!r} is neither a file:// nor an s3:// URL")
