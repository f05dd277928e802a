"""What an uncaught exception says about the attempt: memory, device, or the trainer's own fault."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from types import TracebackType

from trialkeeper import contract
from trialkeeper.store import Unreachable

FRAMES = 4  # of the traceback's end are told, without our own
CAUSES = 8  # of an exception are looked at

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep

_MEMORY = re.compile(r"out of memory|RESOURCE_EXHAUSTED|cannot allocate memory|Unable to allocate", re.IGNORECASE)
_DEVICE = re.compile(
    r"uncorrectable ECC|GPU is lost|fallen off the bus"
    r"|unspecified launch failure|CUDA error: unknown error|NVLink error",
    re.IGNORECASE,
)


_ORDER = (
    contract.REASON_OOM,
    contract.REASON_DEVICE,
    contract.REASON_STORE,
    contract.REASON_INTERRUPTED,
    contract.REASON_EXCEPTION,
)


def describe(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> tuple[str, str, str]:
    """(end, reason, text) of an uncaught exception; the text has type, message and last frames."""
    reasons = {_reason(cause) for cause in _causes(error)}
    reason = next(reason for reason in _ORDER if reason in reasons)
    every = traceback.extract_tb(trace)
    frames = ([f for f in every if not os.path.abspath(f.filename).startswith(_OURS)] or every)[-FRAMES:]
    if reason == contract.REASON_STORE:
        frames = []  # nobody has to mend them
    where = " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in reversed(frames))
    text = f"{kind.__name__}: {_words(error)[:600]}" + (f" (at {where})" if where else "")
    return contract.END_ERROR, reason, text[: contract.ERROR_LIMIT]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it was raised from: libraries wrap what the device said."""
    cause: BaseException | None = error
    for _ in range(CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "an exception that cannot be put into words"


def _reason(error: BaseException) -> str:
    words = _words(error)
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or _MEMORY.search(words):
        return contract.REASON_OOM
    if _DEVICE.search(words):
        return contract.REASON_DEVICE
    if isinstance(error, Unreachable):
        return contract.REASON_STORE
    return contract.REASON_INTERRUPTED if isinstance(error, KeyboardInterrupt) else contract.REASON_EXCEPTION
