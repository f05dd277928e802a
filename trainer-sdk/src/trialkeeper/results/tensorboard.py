"""Event files as TensorBoard reads them, without TensorFlow.

A file is records of TFRecord's format (length, masked crc32c of it, payload, masked crc32c of that; all little
endian), each an `Event` in protobuf's wire format. Reference: tensorflow/core/lib/io/record_writer.h and
tensorflow/core/util/event.proto; crc32c is that of RFC 3720, with polynomial 0x1EDC6F41.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO

NAME = "events.out.tfevents.0000000000.trialkeeper"
_SESSION_START = b"\x08\x01"  # SessionLog{status: START}


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """The checksum of Castagnoli."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def record(payload: bytes) -> bytes:
    """A payload as TFRecord has it."""
    length = struct.pack("<Q", len(payload))
    return length + _masked(length) + payload + _masked(payload)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def event(moment: float, step: int, what: bytes) -> bytes:
    """An `Event`: wall_time in seconds, step, and one of its other fields, encoded."""
    return b"\x09" + struct.pack("<d", moment) + b"\x10" + _varint(step) + what


def scalars(moment: float, step: int, values: Mapping[str, float]) -> bytes:
    """An `Event` with a `Summary` of numbers by tag."""
    summary = (_bytes(1, _bytes(1, tag.encode("utf-8", "replace")) + b"\x15" + _float(v)) for tag, v in values.items())
    return event(moment, step, _bytes(5, b"".join(summary)))


class EventFile:
    """One run's events. Steps that go back replace those from there on."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("wb")
        self._file.write(record(event(0.0, 0, _bytes(3, b"brain.Event:2"))))
        self._step = 0

    def write(self, moment: float, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of one step."""
        if step <= self._step:
            self._file.write(record(event(moment, step, _bytes(7, _SESSION_START))))
        self._step = step
        self._file.write(record(scalars(moment, step, values)))

    def flush(self) -> None:
        """Let readers see what was written."""
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()
