"""Going on from a snapshot with real training: a run is broken off, another experiment ends it, no weight differs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from e2e.local.test_demo import trialkeeper
from proof import EXAMPLES, curve, rows, undisturbed, weights


def prefix_of(trial: dict[str, Any]) -> Path:
    return Path(trial["store"])


def base(prefix: Path) -> str | None:
    found: str | None = json.loads((prefix / "attempts" / "000001.json").read_text())["base"]
    return found


def broken_off(folder: Path) -> None:
    """A run that is killed once each of its two first trials has saved."""
    command = [sys.executable, "-m", "trialkeeper", "run", str(EXAMPLES / "digits.yaml"), "--output", "quiet"]
    run = subprocess.Popen([*command, "--set", "spec.maxTrials=3"], cwd=folder, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len({path.parts[-3] for path in folder.glob("runs/digits/store/*/*/*/manifests/*")}) < 2:
        assert time.monotonic() < deadline
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(0.05)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 130


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["digits", "again"])
def test_what_was_broken_off_is_ended_by_another_experiment_and_no_weight_differs(name: str, tmp_path: Path) -> None:
    broken_off(tmp_path)
    changes = [f"metadata.name={name}", "spec.maxTrials=3", "spec.restoreFrom.configMap=digits-snapshot"]
    sets = [word for change in changes for word in ("--set", change)]
    fresh = ["--fresh"] if name == "digits" else []
    done = trialkeeper("run", str(EXAMPLES / "digits.yaml"), *sets, *fresh, "--output", "json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["counts"] == {"Succeeded": 3}
    inherited = 0
    for trial in document["trials"]:
        prefix = prefix_of(trial)
        reference = undisturbed(trial["name"], trial["seed"], trial["parameters"], tmp_path / "reference")
        assert weights(prefix) == weights(reference)
        own = [row["training_iteration"] for row in rows(prefix)[1]]
        key, older = base(prefix), []
        if key is not None:
            inherited += 1
            donor = tmp_path / "runs" / name / "store" / key.partition("/manifests/")[0]
            assert donor.parent != prefix.parent
            older = [row["training_iteration"] for row in rows(donor)[1]]
            assert own[0] == int(key[-17:-5]) + 1
        assert len(own) + len(older) == 24 + trial["lostWork"]["iterations"]
        assert {i: row for i, row in curve(reference).items() if i in own} == curve(prefix)
    assert inherited == 2
