"""What an answer of the API server means: None for success, else the port's error to raise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from trialkeeper_operator.reconcile.ports import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Expired,
    Forbidden,
    Invalid,
    NotFound,
    QuotaExceeded,
    Unavailable,
)

# The last is said while a quota is so new that nobody has counted yet.
_QUOTA = ("exceeded quota", "insufficient quota", "failed quota", "status unknown for quota")
_RETRY_LIMIT = 60.0  # seconds; whoever asks for more is asked again earlier


def decoded(raw: bytes) -> dict[str, Any]:
    """The body as an object; something else in between (a proxy's page) becomes its first words."""
    try:
        value = json.loads(raw)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"message": raw[:200].decode("utf-8", "replace")}


def error(verb: str, code: int, body: Mapping[str, Any], retry_after: str | None = None) -> ClusterError | None:
    """The error that an answer stands for.

    A refusal says that nothing was written; `Unavailable` says that nobody knows.
    """
    if code < 300:
        return None
    sentence = str(body.get("message") or f"the API server answered {code}")
    reason = body.get("reason")
    if code == 404:
        # A create is told so when its namespace is gone: nothing that the object could be changed to.
        return Unavailable(sentence) if verb == "POST" and _about(body) == "namespaces" else NotFound(sentence)
    if code == 409:
        return AlreadyExists(sentence) if reason == "AlreadyExists" else Conflict(sentence)
    if code == 410:
        return Expired(sentence)
    if code == 403:
        return _forbidden(sentence, body)
    if code in (400, 413, 422) or (code == 500 and "request is too large" in sentence):
        return Invalid(sentence)
    return Unavailable(f"{code}: {sentence}", _seconds(retry_after))


def _about(body: Mapping[str, Any]) -> object:
    """The plural of the kind that an answer is about."""
    details = body.get("details")
    return details.get("kind") if isinstance(details, dict) else None


def _forbidden(sentence: str, body: Mapping[str, Any]) -> ClusterError:
    """403 is said by many: quota, admission, a namespace that ends, and the lack of rights."""
    details = body.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    listed = causes if isinstance(causes, list) else []
    if any(isinstance(c, dict) and c.get("reason") == "NamespaceTerminating" for c in listed):
        return Unavailable(sentence)
    if any(words in sentence for words in _QUOTA):
        return QuotaExceeded(sentence)
    if " cannot " in sentence and " in API group " in sentence:
        return Forbidden(sentence)
    return Invalid(sentence)


def _seconds(retry_after: str | None) -> float | None:
    try:
        value = float(retry_after or "")
    except ValueError:
        return None
    return min(value, _RETRY_LIMIT) if math.isfinite(value) and value >= 0 else None
