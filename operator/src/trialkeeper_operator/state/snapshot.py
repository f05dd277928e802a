"""The snapshot's codec: an experiment's state as a few columns, compressed, for a ConfigMap's binaryData.

Columns compress three times better than rows, since values of one kind stand together, and `brief` leaves out what
nobody will miss. A snapshot is user input when it is read back: its size is bounded before and while it is unpacked,
its hash and schema are checked, and a field that is missing or of the wrong kind is refused with its name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from trialkeeper_operator.api import names
from trialkeeper_operator.state import brief

SCHEMA_VERSION = 1
DATA_KEY = "snapshot.json.gz"
UID_ANNOTATION = f"{names.GROUP}/experiment-uid"
SHA_ANNOTATION = f"{names.GROUP}/sha256"
VERSION_ANNOTATION = f"{names.GROUP}/set-aside-version"
COMPRESSED_LIMIT = 1 << 20  # bytes: what a ConfigMap holds
UNPACKED_LIMIT = 64 << 20
TRIALS_LIMIT = 100_000
CELLS_LIMIT = 4_000_000  # values in all columns, each as often as it counts: a column may say so in few bytes

# Spec and status fields of a Trial that outlive it, as `brief` tells them; everything else follows from them.
_SPEC = ("index", "name", "parameters", "note", "seed", "base", "enqueued", "fork", "desired", "retries")
_STATUS = (
    "phase",
    "reason",
    "attempt",
    "closed",
    "failures",
    "disruptions",
    "retried",
    "withoutProgress",
    "iteration",
    "trainedSeconds",
    "runningSeconds",
    "metrics",
    "checkpoint",
    "base",
    "lostWork",
    "startTime",
    "completionTime",
    brief.RESTING,
    brief.UNTRAINED,
)
# Columns that older snapshots of this schema lack.
_LATER = frozenset({"runningSeconds", "retried", "retries", "enqueued", "fork", brief.RESTING, brief.UNTRAINED})


class SnapshotInvalid(ValueError):
    """Raised when a snapshot cannot be read; the message says which part is wrong."""


def encode(experiment: Mapping[str, Any], trials: Iterable[Mapping[str, Any]]) -> bytes:
    """The compressed snapshot of raw objects; equal input gives equal bytes."""
    rows = sorted(trials, key=lambda t: t["spec"]["index"])
    meta = experiment["metadata"]
    specs, stati = brief.brief(experiment, [row["spec"] for row in rows], [row.get("status") or {} for row in rows])
    document = {
        "schemaVersion": SCHEMA_VERSION,
        "experiment": {
            "name": meta["name"],
            "namespace": meta.get("namespace", ""),
            "uid": meta.get("uid", ""),
            "generation": meta.get("generation", 0),
            "spec": experiment["spec"],
            "status": experiment.get("status", {}),
        },
        "trials": len(rows),
        "spec": {f: _column([spec.get(f) for spec in specs], f) for f in _SPEC},
        "status": {f: _column([status.get(f) for status in stati], f) for f in _STATUS},
    }
    text = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)  # 31: a gzip frame, whose time stamp zlib leaves 0
    return packer.compress(text) + packer.flush()


def _column(values: Sequence[Any], field: str) -> Any:
    """One field of all trials: a single value if all agree or count, columns of its members if it is an object."""
    first = values[0] if values else None
    if len(values) > 1 and _counts(first) and all(type(v) is int and v == n for n, v in enumerate(values, first)):
        return {"from": first}
    if values and all(v == values[0] and type(v) is type(values[0]) for v in values):
        return {"all": values[0]}
    if any(isinstance(v, dict) for v in values):
        keys = sorted({key for v in values if isinstance(v, dict) for key in v})
        present = [isinstance(v, dict) for v in values]
        members = {
            k: _column([v.get(k) if isinstance(v, dict) else None for v in values], f"{field}.{k}") for k in keys
        }
        return {"of": members, **({} if all(present) else {"in": [int(p) for p in present]})}
    return {"each": list(values)}


def _counts(first: Any) -> TypeGuard[int]:
    """Whether a column may be told by where it begins to count: not by a number that would fill memory."""
    return type(first) is int and 0 <= first < 2**53


class _Columns:
    """Columns back into values, counting what it makes."""

    def __init__(self, count: int) -> None:
        self._count, self._left = count, CELLS_LIMIT

    def values(self, column: Any, field: str) -> list[Any]:
        count = self._count
        self._left -= count + 1
        if self._left < 0:
            raise SnapshotInvalid(f"snapshot: its columns hold more than {CELLS_LIMIT} values")
        if not isinstance(column, dict):
            raise SnapshotInvalid(f"snapshot: {field} is not a column")
        if "all" in column:
            return [column["all"]] * count
        first = column.get("from")
        if _counts(first):
            return [*range(first, first + count)]
        if "each" in column:
            each = column["each"]
            if not isinstance(each, list) or len(each) != count:
                raise SnapshotInvalid(f"snapshot: {field} has not one value for each of {count} trials")
            return each
        members, present = column.get("of"), column.get("in", [1] * count)
        if not isinstance(members, dict) or not isinstance(present, list) or len(present) != count:
            raise SnapshotInvalid(f"snapshot: {field} is not a column")
        unpacked = {k: self.values(v, f"{field}.{k}") for k, v in members.items()}
        return [
            {k: v[i] for k, v in unpacked.items() if v[i] is not None} if present[i] else None for i in range(count)
        ]


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number that JSON has")


def unpack(data: bytes) -> dict[str, Any]:
    """The document inside, checked for size and schema but not yet for its columns.

    :raises SnapshotInvalid: if it is too large, broken, or of another schema version.
    """
    if len(data) > COMPRESSED_LIMIT:
        raise SnapshotInvalid(f"snapshot: {len(data)} bytes are more than a ConfigMap holds")
    unpacker = zlib.decompressobj(31)
    try:
        text = unpacker.decompress(data, UNPACKED_LIMIT)
        if not unpacker.eof:
            raise SnapshotInvalid("snapshot: it is cut short, or larger than 64 MiB when unpacked")
        document = json.loads(text, parse_constant=_no_number)
    except (zlib.error, ValueError, RecursionError) as broken:
        if isinstance(broken, SnapshotInvalid):
            raise
        raise SnapshotInvalid(f"snapshot: it cannot be unpacked: {broken}") from broken
    if not isinstance(document, dict) or document.get("schemaVersion") != SCHEMA_VERSION:
        raise SnapshotInvalid(f"snapshot: its schemaVersion is not {SCHEMA_VERSION}")
    return document


def decode(data: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(experiment, trials) of a snapshot: name, namespace, uid, spec, status; and spec, status of each trial.

    :raises SnapshotInvalid: if any part of it is not what `encode` writes.
    """
    document = unpack(data)
    experiment, count = document.get("experiment"), document.get("trials")
    if not isinstance(experiment, dict) or type(count) is not int or not 0 <= count <= TRIALS_LIMIT:
        raise SnapshotInvalid("snapshot: experiment or trials is missing")
    columns, tables = _Columns(count), {}
    for part, fields in (("spec", _SPEC), ("status", _STATUS)):
        found = document.get(part)
        if not isinstance(found, dict):
            raise SnapshotInvalid(f"snapshot: {part} is missing")
        try:
            there = [f for f in fields if f in found or f not in _LATER]
            tables[part] = {f: columns.values(found.get(f), f"{part}.{f}") for f in there}
        except RecursionError as deep:
            raise SnapshotInvalid(f"snapshot: {part} is too deep") from deep
    rows = {
        part: [{f: v[i] for f, v in table.items() if v[i] is not None} for i in range(count)]
        for part, table in tables.items()
    }
    try:
        specs, stati = brief.whole(experiment, rows["spec"], rows["status"])
    except (ArithmeticError, ValueError) as wrong:
        raise SnapshotInvalid(f"snapshot: a number in it is none that a trial has: {wrong}") from wrong
    return experiment, [{"spec": spec, "status": status} for spec, status in zip(specs, stati, strict=True)]


def name_of(experiment: str) -> str:
    """The ConfigMap that holds an experiment's snapshot."""
    return f"{experiment}-snapshot"


def _annotation(config_map: Mapping[str, Any], name: str) -> str:
    annotations = config_map["metadata"].get("annotations")
    found = annotations.get(name) if isinstance(annotations, Mapping) else None
    return found if isinstance(found, str) else ""


def is_one(config_map: Mapping[str, Any]) -> bool:
    """Whether a ConfigMap says that it is a snapshot at all; another one is not to be touched."""
    annotations = config_map["metadata"].get("annotations")
    return isinstance(annotations, Mapping) and UID_ANNOTATION in annotations


def owner_of(config_map: Mapping[str, Any]) -> str:
    """The uid of the experiment whose snapshot a ConfigMap holds, empty if it does not say."""
    return _annotation(config_map, UID_ANNOTATION)


def digest_of(config_map: Mapping[str, Any]) -> str:
    """The sha256 that a ConfigMap says its snapshot has."""
    return _annotation(config_map, SHA_ANNOTATION)


def names_aside(config_map: Mapping[str, Any]) -> list[str]:
    """The names under which a snapshot may be set aside: with the beginning of its uid, else with all of it."""
    name, owner = config_map["metadata"]["name"], re.sub("[^a-z0-9-]", "", owner_of(config_map).lower()).strip("-")
    return [f"{name}-{owner[:8].strip('-') or 'unknown'}", f"{name}-{owner[:64].strip('-') or 'unknown-2'}"]


def aside(config_map: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of a ConfigMap for another name, which says of which version it is a copy."""
    meta = config_map["metadata"]
    copy = {k: v for k, v in config_map.items() if k != "metadata"}
    annotations = {**(meta.get("annotations") or {}), VERSION_ANNOTATION: meta["resourceVersion"]}
    labels = {"labels": meta["labels"]} if "labels" in meta else {}
    kept = {"name": name, "namespace": meta["namespace"], "annotations": annotations, **labels}
    return {**copy, "metadata": kept}


def version_aside(config_map: Mapping[str, Any]) -> int:
    """The version that a copy says it was made of; resourceVersions compare as integers (KEP-5504)."""
    text = _annotation(config_map, VERSION_ANNOTATION)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 64 else 0


def data_of(config_map: Mapping[str, Any]) -> bytes:
    """The compressed snapshot in a ConfigMap, which may be anything that somebody has applied.

    :raises SnapshotInvalid: if there is none in it, or it is not what was written.
    """
    data = config_map.get("binaryData")
    text = data.get(DATA_KEY) if isinstance(data, Mapping) else None
    if not isinstance(text, str):
        raise SnapshotInvalid(f"snapshot: binaryData has no {DATA_KEY}")
    if len(text) > 2 * COMPRESSED_LIMIT:
        raise SnapshotInvalid("snapshot: it is more than a ConfigMap holds")
    try:
        found = base64.b64decode("".join(text.split()), validate=True)
    except ValueError as broken:
        raise SnapshotInvalid(f"snapshot: {DATA_KEY} is not base64: {broken}") from broken
    said = digest_of(config_map)
    if said and said != hashlib.sha256(found).hexdigest():
        raise SnapshotInvalid(f"snapshot: it is not what was written: its sha256 is not that of {SHA_ANNOTATION}")
    return found


def config_map(experiment: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    """The ConfigMap `<experiment>-snapshot`. It has no owner, since it is there to outlive the experiment.

    With deletionPolicy.snapshot Delete it has one, and so goes with the experiment, whoever is there to see it.
    """
    meta = experiment["metadata"]
    policy = (experiment["spec"].get("deletionPolicy") or {}).get("snapshot")
    owner = names.owner(names.EXPERIMENT, meta["name"], meta.get("uid", ""))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name_of(meta["name"]),
            "namespace": meta.get("namespace", ""),
            "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_EXPERIMENT: meta["name"]},
            "annotations": {
                UID_ANNOTATION: meta.get("uid", ""),
                SHA_ANNOTATION: hashlib.sha256(data).hexdigest(),
            },
            **({"ownerReferences": [owner]} if policy == "Delete" else {}),
        },
        "binaryData": {DATA_KEY: base64.b64encode(data).decode()},
    }
