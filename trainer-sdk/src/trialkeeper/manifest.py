"""Manifests: the commit of a checkpoint, written last, with the hash of every part of every file.

A reader trusts nothing but a manifest whose own hash fits, and no file whose size or hashes do not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialkeeper import contract
from trialkeeper.errors import CheckpointCorrupt

PART_SIZE = 16 << 20  # bytes that are hashed together


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


def _parts(path: Path) -> list[str]:
    from hashlib import sha256

    hashes = []
    with path.open("rb") as file:
        while part := file.read(PART_SIZE):
            hashes.append(sha256(part).hexdigest())
    return hashes


def inventory(folder: Path) -> list[dict[str, Any]]:
    """Path, size, mode and hashes of every file below a folder.

    :raises ValueError: if it is empty, or has something in it that is neither a file nor a folder.
    """
    files = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted([*names, *(f for f in folders if (Path(parent) / f).is_symlink())]):
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not path.is_file():
                raise ValueError(f"checkpoint: {relative} is a link or no file: save copies of files only")
            stat = path.stat()
            files.append({"path": relative, "size": stat.st_size, "mode": stat.st_mode & 0o777, "sha256": _parts(path)})
    if not files:
        raise ValueError("checkpoint: the folder is empty: save() must write at least one file into it")
    return files


def encode(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as it is stored, with its own hash."""
    from hashlib import sha256

    body = {k: v for k, v in manifest.items() if k != "sha256Self"}
    own = sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps({**body, "sha256Self": own}, sort_keys=True, separators=(",", ":")).encode()


def decode(data: bytes) -> dict[str, Any]:
    """A stored manifest.

    :raises CheckpointCorrupt: if it is not what was written.
    """
    try:
        value = json.loads(data)
        whole = isinstance(value, dict) and value.get("v") == contract.VERSION and encode(value) == data
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointCorrupt("the manifest is not what was written")
    found: dict[str, Any] = value
    return found


def verify(manifest: Mapping[str, Any], folder: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    :raises CheckpointCorrupt: with the first file that is missing, or not what was written.
    """
    for entry in manifest["files"]:
        path = Path(os.path.normpath(folder / entry["path"]))
        if not path.is_relative_to(folder):
            raise CheckpointCorrupt(f"{entry['path']} would lie outside the checkpoint")
        if path.is_symlink() or not path.is_file():
            raise CheckpointCorrupt(f"{entry['path']} is missing")
        if path.stat().st_size != entry["size"]:
            raise CheckpointCorrupt(f"{entry['path']} has {path.stat().st_size} bytes instead of {entry['size']}")
        if _parts(path) != entry["sha256"]:
            raise CheckpointCorrupt(f"{entry['path']} is not what was written")
