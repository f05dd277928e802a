"""Manifests: the commit of a checkpoint, written last, with the hash of every part of every file.

A reader trusts nothing but a manifest whose own hash fits, and no file whose size or hashes do not.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from trialkeeper import contract
from trialkeeper.errors import CheckpointCorrupt

PART_SIZE = 16 << 20  # bytes that are hashed together, at least
PARTS = 4096  # in all files of a checkpoint, about; above, parts are larger
PART_LIMIT = 5 << 30  # bytes of a part, and
SIZE_LIMIT = 5 << 40  # bytes of an object: S3's
PATH_LIMIT, NAME_LIMIT = 4096, 255  # characters of a path, bytes of a name in it
KINDS = ("directory", "dict", "pickle")

Entry = dict[str, Any]
"""A file in a manifest: `path`, `size`, `mode`, `partSize`, `sha256` of each part; `key` and `offset` of its bytes.

`partSize` is the entry's own, since it may have been written with an older checkpoint, or by another rank.
"""


@dataclass(frozen=True)
class Progress:
    """Where the trial stood: enough to count on, to sum up, and to judge a plateau after a resume."""

    iteration: int
    step: int | None
    trained_seconds: float
    summaries: Mapping[str, contract.MetricSummary]
    window: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration,
            "step": self.step,
            "trainedSeconds": self.trained_seconds,
            "summaries": {n: [m.last, m.min, m.max] for n, m in self.summaries.items()},
            "window": list(self.window),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Progress:
        return cls(
            iteration=value["iteration"],
            step=value["step"],
            trained_seconds=value["trainedSeconds"],
            summaries={n: contract.MetricSummary(*m) for n, m in value["summaries"].items()},
            window=tuple(value["window"]),
        )


def part_size(total: int) -> int:
    """Bytes that are hashed together, and sent together to a bucket, for a checkpoint of `total` bytes.

    It grows so that a manifest holds some 4,096 hashes at most, and no multipart upload has more parts than S3 takes.
    """
    return min(max(PART_SIZE, -(-total // PARTS >> 20) << 20), PART_LIMIT)


def part_count(size: int, part: int) -> int:
    """How many parts a file has."""
    return -(-size // part)


def encode(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as it is stored, with its own hash."""
    from hashlib import sha256

    body = {k: v for k, v in manifest.items() if k != "sha256Self"}
    own = sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps({**body, "sha256Self": own}, sort_keys=True, separators=(",", ":")).encode()


def decode(data: bytes) -> dict[str, Any]:
    """A stored manifest.

    :raises CheckpointCorrupt: if it is not what was written, or cannot be one.
    """
    try:
        value = json.loads(data)
        whole = isinstance(value, dict) and encode(value) == data
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointCorrupt("the manifest is not what was written")
    return checked(value)


def checked(body: Any) -> dict[str, Any]:
    """A manifest's content, if all that is ever read of it is what it must be, and nothing can leave its folder.

    Whoever may write into the bucket may write manifests: nothing in one is believed before it was here.

    :raises CheckpointCorrupt: else; the message names the field.
    """
    try:
        found: dict[str, Any] = _mapping("manifest", body)
        for name, check in _FIELDS.items():
            check(name, found.get(name))
        _whole("worldSize", found.get("worldSize", 1), low=1, high=100_000)
        _need("resharding", isinstance(found.get("resharding", False), bool))
        _files(found["files"])
    except _Wrong as wrong:
        raise CheckpointCorrupt(f"the manifest's {wrong} is not what it must be") from None
    return found


class _Wrong(Exception):
    """A field that is not what it must be."""


def _need(name: str, truth: bool) -> None:
    if not truth:
        raise _Wrong(name)


def _mapping(name: str, value: Any) -> dict[str, Any]:
    _need(name, isinstance(value, dict))
    found: dict[str, Any] = value
    return found


def _whole(name: str, value: Any, low: int = 0, high: int = 2**53) -> None:
    _need(name, type(value) is int and low <= value <= high)


def _number(name: str, value: Any) -> None:
    _need(name, type(value) in (int, float) and abs(value) <= sys.float_info.max)


def _time(name: str, value: Any) -> None:
    _number(name, value)
    _need(name, 0 <= value <= contract.TIME_LIMIT)


def _text(name: str, value: Any) -> None:
    _need(name, isinstance(value, str) and len(value) <= 1024)


def _step(name: str, value: Any) -> None:
    if value is not None:
        _whole(name, value, -(2**63), 2**63)


def _writer(name: str, value: Any) -> None:
    for field in ("podUid", "nonce", "sdk"):
        _text(f"{name}.{field}", _mapping(name, value).get(field))


def _metrics(name: str, value: Any) -> None:
    for metric in _mapping(name, value).values():
        if isinstance(metric, str):
            _text(name, metric)
        else:
            _number(name, metric)


def _progress(name: str, value: Any) -> None:
    found = _mapping(name, value)
    _whole(f"{name}.iteration", found.get("iteration"))
    _step(f"{name}.step", found.get("step"))
    _time(f"{name}.trainedSeconds", found.get("trainedSeconds"))
    for summary in _mapping(f"{name}.summaries", found.get("summaries")).values():
        _need(f"{name}.summaries", isinstance(summary, list) and len(summary) == 3)
        for number in summary:
            _number(f"{name}.summaries", number)
    window = found.get("window")
    _need(f"{name}.window", isinstance(window, list))
    for number in found["window"]:
        _number(f"{name}.window", number)


def _key(name: str, value: Any) -> None:
    _path(name, value)
    _need(name, value.startswith("data/"))


def _path(name: str, value: Any) -> None:
    """A relative path of plain names, as this system can have it."""
    _need(name, isinstance(value, str) and 0 < len(value) <= PATH_LIMIT and "\0" not in value)
    names = value.split("/")
    try:
        longest = max(len(os.fsencode(part)) for part in names)
    except UnicodeEncodeError:
        raise _Wrong(name) from None
    _need(name, longest <= NAME_LIMIT and not any(part in ("", ".", "..") for part in names))


def _list(name: str, value: Any) -> None:
    _need(name, isinstance(value, list) and len(value) > 0)


_FIELDS: Mapping[str, Callable[[str, Any], None]] = {
    "v": lambda name, value: _need(name, type(value) is int and value == contract.VERSION),
    "attempt": partial(_whole, low=1),
    "iteration": _whole,
    "step": _step,
    "created": _time,
    "reported": _time,
    "writer": _writer,
    "kind": lambda name, value: _need(name, isinstance(value, str) and value in KINDS),
    "reason": _text,
    "metrics": _metrics,
    "progress": _progress,
    "files": _list,
    "data": _key,
}


def _files(entries: Sequence[Any]) -> None:
    paths, used = set(), []
    for entry in entries:
        found = _mapping("files", entry)
        for name, check in _ENTRY.items():
            check(f"files.{name}", found.get(name))
        parts, size = found.get("sha256"), found["size"]
        _need("files.sha256", isinstance(parts, list) and len(parts) == part_count(size, found["partSize"]))
        _need("files.sha256", all(isinstance(p, str) and _HASH.fullmatch(p) for p in found["sha256"]))
        _need("files.path", found["path"] not in paths)
        paths.add(found["path"])
        if size:
            used.append((found["key"], found["offset"], found["offset"] + size))
    for path in paths:
        while path := path.rpartition("/")[0]:
            _need("files.path", path not in paths)
    used.sort()
    for one, other in pairwise(used):
        _need("files.offset", one[0] != other[0] or one[2] <= other[1])


_HASH = re.compile("[0-9a-f]{64}")
_ENTRY: Mapping[str, Callable[[str, Any], None]] = {
    "path": _path,
    "size": partial(_whole, high=SIZE_LIMIT),
    "mode": partial(_whole, high=0o777),
    "partSize": partial(_whole, low=1, high=PART_LIMIT),
    "key": _key,
    "offset": partial(_whole, high=SIZE_LIMIT),
}
