"""What an uncaught exception says about the attempt: memory, device, or the trainer's own fault."""

from __future__ import annotations

import re
import traceback
from types import TracebackType

from trialkeeper import contract

FRAMES = 4  # of the traceback's end are told

_MEMORY = re.compile(r"out of memory|RESOURCE_EXHAUSTED|cannot allocate memory|Unable to allocate", re.IGNORECASE)
_DEVICE = re.compile(
    r"uncorrectable ECC|GPU is lost|fallen off the bus"
    r"|unspecified launch failure|CUDA error: unknown error|NVLink error",
    re.IGNORECASE,
)


def describe(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> tuple[str, str, str]:
    """(end, reason, text) of an uncaught exception; the text has type, message and last frames."""
    message = str(error)
    if issubclass(kind, KeyboardInterrupt):
        reason = "Interrupted"
    elif issubclass(kind, MemoryError) or "OutOfMemory" in kind.__name__ or _MEMORY.search(message):
        reason = contract.REASON_OOM
    elif _DEVICE.search(message):
        reason = contract.REASON_DEVICE
    else:
        reason = contract.REASON_EXCEPTION
    frames = traceback.extract_tb(trace)[-FRAMES:]
    where = " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in reversed(frames))
    text = f"{kind.__name__}: {message[:600]}" + (f" (at {where})" if where else "")
    return contract.END_ERROR, reason, text[: contract.ERROR_LIMIT]
