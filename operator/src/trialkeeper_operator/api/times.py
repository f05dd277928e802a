"""Times as API objects have them (RFC 3339, UTC, microseconds) and as decisions count them (seconds)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def stamp(seconds: float) -> str:
    """Seconds since the epoch as `2026-11-24T08:37:46.123456Z`."""
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds(stamp: str) -> float:
    """Seconds since the epoch of an RFC 3339 time.

    :raises ValueError: if it is not one.
    """
    moment = datetime.fromisoformat(stamp)
    if moment.tzinfo is None:
        raise ValueError(f"{stamp!r} has no time zone")
    return (moment - _EPOCH) / timedelta(seconds=1)


def sound(text: str) -> str:
    """A stored time that is one, else the epoch: whoever wrote it by hand does not stop what it belongs to."""
    try:
        seconds(text)
    except (ValueError, OverflowError):
        return stamp(0)
    return text


Time = Annotated[str, AfterValidator(sound)]
