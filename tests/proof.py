"""The proof that a trial resumed: on raw results and final weights, never on anything de-duplicated.

Each attempt must begin at the iteration after the checkpoint that it loaded; the iterations that occur twice
in the raw results must be those that the status calls lost; and the final weights and the curve must equal,
bit by bit, those of a run with the same seed and parameters that nobody killed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

AUTOMATIC = frozenset(
    {"training_iteration", "time_this_iter_s", "time_total_s", "timestamp", "trial_id", "attempt", "hostname", "step"}
)
Row = dict[str, Any]
EXAMPLES = Path(__file__).parents[1] / "examples"


def rows(prefix: Path) -> dict[int, list[Row]]:
    """Raw results of a trial by attempt, in the order in which they were written."""
    found: dict[int, list[Row]] = {}
    for file in sorted((prefix / "results").glob("a*.jsonl")):
        lines = file.read_text().splitlines(keepends=True)
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        found[int(file.name[1:7])] = whole
    return found


def bases(prefix: Path) -> dict[int, tuple[int, int]]:
    """(attempt, iteration) of the checkpoint that each attempt loaded, (0, 0) for none."""
    found = {}
    for file in sorted((prefix / "attempts").glob("*.json")):
        base = json.loads(file.read_text())["base"]
        found[int(file.stem)] = (0, 0) if base is None else (int(base[11:17]), int(base[19:31]))
    return found


def continuity(prefix: Path) -> list[str]:
    """What contradicts that each attempt began right after the checkpoint it loaded, and counted on from there."""
    wrong = []
    base = bases(prefix)
    for attempt, results in rows(prefix).items():
        iterations = [row["training_iteration"] for row in results]
        first = base[attempt][1] + 1
        if iterations != list(range(first, first + len(iterations))):
            wrong.append(f"attempt {attempt} loaded iteration {first - 1}, but its results are {iterations}")
    return wrong


def resumed(prefix: Path) -> list[str]:
    """What contradicts that attempts after the first began from a checkpoint, although there was one."""
    wrong, base = [], bases(prefix)
    for attempt in sorted(base)[1:]:
        earlier = [m for m in (prefix / "manifests").glob("*.json") if int(m.name[1:7]) < attempt]
        if earlier and base[attempt] == (0, 0):
            wrong.append(f"attempt {attempt} started over although there were {len(earlier)} checkpoints")
    return wrong


def repeated(prefix: Path) -> int:
    """How many iterations occur once more than they had to."""
    counts = Counter(row["training_iteration"] for results in rows(prefix).values() for row in results)
    return sum(count - 1 for count in counts.values())


def unsaved(prefix: Path, attempt: int) -> tuple[int, float]:
    """(iterations, seconds between reports) that an attempt had got beyond the checkpoint that the next one loaded."""
    own = rows(prefix).get(attempt, [])
    writer, kept = bases(prefix)[attempt + 1]
    if not own:
        return 0, 0.0
    saved = [row["timestamp"] for row in own if row["training_iteration"] == kept]
    began = saved[0] if writer == attempt and saved else own[0]["timestamp"]
    lost = [row for row in own if row["training_iteration"] > kept]
    return len(lost), max(0.0, own[-1]["timestamp"] - began) if lost else 0.0


def allowed(prefix: Path) -> float:
    """Seconds of work that a hard kill may cost a trial: one interval, one upload and one step, its longest of each.

    All are recorded: a row and its checkpoint have the time of their report, a manifest that of its commit.
    """
    saves: dict[int, list[tuple[float, float]]] = {}
    for file in (prefix / "manifests").glob("*.json"):
        manifest = json.loads(file.read_text())
        saves.setdefault(manifest["attempt"], []).append((manifest["reported"], manifest["created"]))
    uploads = [created - reported for own in saves.values() for reported, created in own]
    reports = {attempt: [row["timestamp"] for row in results] for attempt, results in rows(prefix).items()}
    steps = [b - a for times in reports.values() for a, b in pairwise(times)]
    intervals = [b[0] - a[0] for own in saves.values() for a, b in pairwise(sorted(own))]
    return max(intervals, default=0.0) + max(uploads, default=0.0) + max(steps, default=0.0)


def curve(prefix: Path) -> dict[int, dict[str, Any]]:
    """The visible history: the newest attempt's row of each iteration, without what a clock or a host put in."""
    visible: dict[int, dict[str, Any]] = {}
    for results in rows(prefix).values():
        for row in results:
            visible[row["training_iteration"]] = {k: v for k, v in row.items() if k not in AUTOMATIC}
    return visible


def digest(content: bytes) -> str:
    """sha256 of a file, or of the arrays in an archive: how those are wrapped differs between versions of Python."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return hashlib.sha256(content).hexdigest()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = b"".join(name.encode() + b"\0" + archive.read(name) for name in sorted(archive.namelist()))
    return hashlib.sha256(parts).hexdigest()


def weights(prefix: Path) -> tuple[int, dict[str, str]]:
    """Iteration and sha256 of each file of the newest checkpoint of the highest attempt."""
    newest = max((prefix / "manifests").glob("*.json"), key=lambda p: p.name)
    manifest = json.loads(newest.read_text())
    files = {
        e["path"]: digest((prefix / e["key"]).read_bytes()[e["offset"] : e["offset"] + e["size"]])
        for e in manifest["files"]
    }
    return manifest["iteration"], files


def equal(killed: Path, reference: Path) -> list[str]:
    """What differs between a killed and resumed trial and one that nobody killed."""
    wrong = []
    a, b = curve(killed), curve(reference)
    if sorted(a) != sorted(b):
        wrong.append(f"iterations differ: {sorted(a)} and {sorted(b)}")
    wrong += [f"iteration {i}: {a[i]} is not {b[i]}" for i in sorted(set(a) & set(b)) if not _same(a[i], b[i])]
    if weights(killed) != weights(reference):
        wrong.append(f"final weights differ: {weights(killed)} and {weights(reference)}")
    return wrong


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    def exact(x: Any, y: Any) -> bool:
        return x == y or (isinstance(x, float) and isinstance(y, float) and math.isnan(x) and math.isnan(y))

    return a.keys() == b.keys() and all(exact(a[k], b[k]) for k in a)


def lost(trial: dict[str, Any]) -> int:
    """Lost iterations of a trial by its attempts, as `--output json` has them."""
    return sum(attempt["lostIterations"] or 0 for attempt in trial["attempts"])


def violations(prefix: Path, trial: dict[str, Any], reference: Path) -> list[str]:
    """Everything that speaks against the proof for one trial."""
    wrong = [*continuity(prefix), *resumed(prefix), *equal(prefix, reference)]
    if repeated(prefix) != lost(trial):
        wrong.append(f"{repeated(prefix)} iterations are in the raw results twice, the status calls {lost(trial)} lost")
    return wrong


def prefixes(run: Path) -> Iterable[Path]:
    """The trials' folders of a run, by index."""
    return sorted(p.parent for p in run.glob("store/*/*/*/attempts"))


def undisturbed(name: str, seed: int, parameters: Row, folder: Path, script: str = "digits.py") -> Path:
    """A trial's example trainer with its seed and parameters, started by hand and killed by nobody; its store."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TRIALKEEPER_ATTEMPT": "1",
        "TRIALKEEPER_STORE": folder.as_uri(),
        "TRIALKEEPER_PREFIX": name,
        "TRIALKEEPER_SEED": str(seed),
        "TRIALKEEPER_PARAMS": json.dumps(parameters),
        "TRIALKEEPER_SETTINGS": '{"checkpoint": {"frequency": 1}}',
        "TRIALKEEPER_SCRATCH": str(folder / "scratch" / name),
        "TRIALKEEPER_TERMINATION_LOG": str(folder / f"{name}.last-words"),
    }
    subprocess.run([sys.executable, script], cwd=EXAMPLES, env=env, check=True, timeout=900)
    return folder / name
