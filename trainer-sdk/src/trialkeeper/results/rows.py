"""Rows of raw results, read from files that may still grow: which of them count, and what each says.

A file is read twice, once for the iterations' numbers and once for the rows that count, so that a million lines
need no more memory than one of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trialkeeper.metrics import AUTOMATIC, LARGEST

Row = dict[str, Any]

_FIRST = re.compile(rb'\{"training_iteration":(\d{1,15})[,}]')
_WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def number_of(value: Any) -> Any:
    """A metric as it was reported: what is not finite is written as a word."""
    return _WORDS.get(value, value) if type(value) is str else value


class Piece(NamedTuple):
    """An attempt's results up to an iteration; None: all of them."""

    path: Path
    bound: int | None


class _Run(NamedTuple):
    """Rows of a file whose iterations ascend, from one byte to another."""

    path: Path
    start: int
    end: int
    first: int
    bound: int | None


def iteration(line: bytes) -> int | None:
    """The iteration of a line, None for whatever is no row."""
    match = _FIRST.match(line)
    if match and line.endswith(b"}\n"):
        return int(match[1])
    row = parse(line)
    return None if row is None else int(row["training_iteration"])


def parse(line: bytes) -> Row | None:
    """A row, its non-finite metrics as floats; None for whatever is no row."""
    try:
        row = json.loads(line)
        number = row["training_iteration"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(row) is not dict or type(number) is not int or not 0 < number < LARGEST:
        return None
    if b'"NaN"' in line or b'Infinity"' in line:
        row = {k: v if k in AUTOMATIC else number_of(v) for k, v in row.items()}
    return row


def lines(path: Path, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(the byte behind it, line) of the whole lines of a file, between two bytes at which lines begin."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            if not line.endswith(b"\n") or (end is not None and start > end):
                return
            yield start, line


def _runs(piece: Piece) -> list[_Run]:
    runs: list[_Run] = []
    last = begun = first = behind = at = 0
    for behind, line in lines(piece.path):
        number = iteration(line)
        if number is not None:
            if number <= last:
                runs.append(_Run(piece.path, begun, at, first, piece.bound))
                begun, first = at, number
            last, first = number, first or number
        at = behind
    return [*runs, _Run(piece.path, begun, behind, first, piece.bound)] if first else runs


def visible(pieces: Sequence[Piece], ends: dict[Path, int] | None = None) -> Iterator[Row]:
    """One continuous history: of each iteration the row that was written last, up to each piece's bound.

    :param pieces: the oldest first.
    :param ends: is told how many bytes of each file have been taken into account.
    """
    runs = []
    for piece in pieces:
        found = _runs(piece)
        runs += found
        if ends is not None:
            ends[piece.path] = found[-1].end if found else 0
    limits, low = [], float("inf")
    for run in reversed(runs):
        limits.append(min(low - 1, float("inf") if run.bound is None else run.bound))
        low = min(low, run.first)
    for run, limit in zip(runs, reversed(limits), strict=True):
        for _, line in lines(run.path, run.start, run.end):
            number = iteration(line)
            if number is None:
                continue
            if number > limit:
                break
            row = parse(line)
            if row is not None:
                yield row


def new(pieces: Sequence[Piece], ends: dict[Path, int], *, raw: bool = False) -> Iterator[Row]:
    """What has come since `ends`, which goes on; at the first call the whole history.

    A new attempt repeats iterations that have been given already, with other rows: the later ones count.
    """
    if not ends and not raw:
        yield from visible(pieces, ends)
        return
    for path, bound in pieces:
        for end, line in lines(path, ends.get(path, 0)):
            ends[path] = end
            row = parse(line)
            if row is not None and (raw or bound is None or row["training_iteration"] <= bound):
                yield row


def raw(pieces: Sequence[Piece]) -> Iterator[Row]:
    """Every row as it was written, repetitions and what was lost included."""
    for piece in pieces:
        for _, line in lines(piece.path):
            row = parse(line)
            if row is not None:
                yield row
