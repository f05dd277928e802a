"""Logs as JSON lines: one object a record, control characters escaped, so that no message forges another."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LIMIT = 4096  # characters of a message


class JsonLines(logging.Formatter):
    """Time, level, logger, message; what was given as `extra`; the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_LIMIT],
        }
        line |= {k: str(v)[:256] for k, v in vars(record).items() if k not in _STANDARD and not k.startswith("_")}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-_LIMIT:]
        return json.dumps(line)


def set_up(level: str) -> None:
    """All loggers to stdout; kopf's chatter about each object only from its warnings on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for quiet in ("kopf", "aiohttp", "asyncio", "urllib3"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    # That it does not listen to signals in its thread is meant; it warns of that at each start.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
