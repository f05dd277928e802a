"""What is read of a run whose trials were killed is what is read of runs that nobody killed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proof import AUTOMATIC, EXAMPLES, digest, prefixes, undisturbed, weights


def trialkeeper(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", "trialkeeper", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(text: str, trial: str = "") -> list[dict[str, str]]:
    """The rows of one trial, without what a clock, a host or a kill puts into them."""
    rows = [row for row in csv.DictReader(text.splitlines()) if trial in ("", row["trial_id"])]
    hidden = AUTOMATIC - {"training_iteration"}
    return [{k: v for k, v in row.items() if k not in hidden} for row in rows]


@pytest.mark.timeout(300)
def test_results_of_killed_trials_are_those_of_trials_that_nobody_killed(tmp_path: Path) -> None:
    sets = ["--set", "spec.maxTrials=2", "--preempt", "2", "--output", "json", "--dir", "runs"]
    followed = subprocess.Popen(
        [sys.executable, "-m", "trialkeeper", "run", str(EXAMPLES / "digits.yaml"), *sets],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):
        if list(tmp_path.glob("runs/digits/store/*/*/*/attempts/000001.json")):
            break
        try:
            followed.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    live = trialkeeper("results", "runs/digits", "--follow", "--format", "json", folder=tmp_path)
    out, _ = followed.communicate(timeout=120)
    document: dict[str, Any] = json.loads(out)
    assert document["preempted"] == 2

    done = trialkeeper("results", "runs/digits", "--format", "csv", folder=tmp_path)
    raw = trialkeeper("results", "runs/digits", "--format", "csv", "--raw", folder=tmp_path)
    assert len(raw.splitlines()) - len(done.splitlines()) == document["lostWork"]["iterations"]
    newest = {(r["trial_id"], r["training_iteration"]): r["val/loss"] for r in map(json.loads, live.splitlines())}
    for trial, prefix in zip(document["trials"], prefixes(tmp_path / "runs" / "digits"), strict=True):
        assert len(trial["attempts"]) == 2
        name = trial["name"]
        reference = undisturbed(name, trial["seed"], trial["parameters"], tmp_path / "reference")
        own = table(done, name)
        assert [int(row["training_iteration"]) for row in own] == [*range(1, 25)]
        whole = trialkeeper("results", str(reference), "--format", "csv", folder=tmp_path)
        assert own == table(whole)
        assert {i: v for (t, i), v in newest.items() if t == name} == {
            int(row["training_iteration"]): float(row["val/loss"]) for row in own
        }
        assert trialkeeper("download", "runs/digits", name, "--to", name, folder=tmp_path) == f"{tmp_path / name}\n"
        assert weights(prefix)[1] == {"state.npz": digest((tmp_path / name / "state.npz").read_bytes())}
        assert weights(reference)[1] == weights(prefix)[1]
