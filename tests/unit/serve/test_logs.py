"""A log line is one JSON object, whatever is in it."""

from __future__ import annotations

import json
import logging
import sys

from trialkeeper_operator.serve.logs import JsonLines


def line(message: str, **more: object) -> dict[str, str]:
    record = logging.makeLogRecord({"name": "n", "levelname": "WARNING", "msg": message, **more})
    text = JsonLines().format(record)
    assert "\n" not in text
    found: dict[str, str] = json.loads(text)
    return found


def test_a_message_cannot_forge_another_line() -> None:
    assert line('x\n{"level": "error"}\x1b[31m')["message"] == 'x\n{"level": "error"}\x1b[31m'


def test_extras_are_fields_and_bounded() -> None:
    assert len(line("m", sender="s" * 1000)["sender"]) == 256


def test_a_traceback_is_kept() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        assert "ValueError: no" in line("m", exc_info=sys.exc_info())["traceback"]
