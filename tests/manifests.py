"""Manifests for tests."""

from __future__ import annotations

from typing import Any

from trialkeeper.manifest import Entry


def entry(path: str = "w", size: int = 1, **more: Any) -> Entry:
    """A file's entry, in a directory's layout unless told otherwise."""
    part = 16 << 20
    made = {
        "path": path,
        "size": size,
        "mode": 0o644,
        "partSize": part,
        "sha256": more.get("sha256", ["0" * 64] * min(-(-size // part), 9)),
        "key": f"data/a000001-i000000000001-00000000/{path}",
        "offset": 0,
    }
    return made | more


def body(**more: Any) -> dict[str, Any]:
    """A manifest's content."""
    made = {
        "v": 1,
        "attempt": 1,
        "iteration": 1,
        "step": None,
        "created": 1.5,
        "reported": 1.0,
        "writer": {"podUid": "pod", "nonce": "00000000", "sdk": "0"},
        "kind": "directory",
        "reason": "periodic",
        "metrics": {"loss": 0.5, "odd": "NaN", "count": 3},
        "progress": {
            "iteration": 1,
            "step": None,
            "trainedSeconds": 0.5,
            "summaries": {"loss": [0.5, 0.5, 0.5]},
            "window": [0.5],
        },
        "files": [entry()],
        "data": "data/a000001-i000000000001-00000000",
    }
    return made | more
