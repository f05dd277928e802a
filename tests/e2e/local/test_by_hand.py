"""By hand on one machine, with real training: a fork out of a run's file, a run that is suspended, `top`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.local.test_demo import trialkeeper
from proof import EXAMPLES, curve, rows
from words import ROOT, commands, section

PAGE = ROOT / "docs" / "by-hand.md"


def digits(folder: Path, **spec: Any) -> Path:
    """The example's file with another spec, beside its trainer."""
    body = yaml.safe_load((EXAMPLES / "digits.yaml").read_text().replace("1e-", "1.0e-"))
    body["metadata"]["name"] = "mine"
    body["spec"] |= spec
    (folder / "digits.py").write_text((EXAMPLES / "digits.py").read_text())
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(body))
    return file


@pytest.mark.timeout(300)
def test_a_fork_out_of_the_file_begins_at_that_iteration_and_reads_as_one_curve(tmp_path: Path) -> None:
    first = trialkeeper("run", str(digits(tmp_path, maxTrials=1)), "--output", "json", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    (donor,) = json.loads(first.stdout)["trials"]
    forks = [{"name": "same", "base": {"trial": "mine-0", "iteration": 6}}, {"base": {"trial": "mine-0"}}]
    forks += [{"base": {"trial": "mine-0", "iteration": 6}, "parameters": {"lr": 0.02}}]
    file = digits(tmp_path, maxTrials=4, enqueue=forks)
    second = trialkeeper("run", str(file), "--output", "json", folder=tmp_path)
    assert second.returncode == 0, second.stderr
    document = json.loads(second.stdout)
    again, same, newest, other = document["trials"]
    assert (again["attempts"], document["counts"]) == (donor["attempts"], {"Succeeded": 4})
    assert [a["fromIteration"] for t in (same, newest, other) for a in t["attempts"]] == [6, 24, 6]
    assert (same["parameters"], other["parameters"]["lr"]) == (donor["parameters"], 0.02)
    assert all(t["lostWork"]["iterations"] == 0 for t in (same, newest, other))
    assert [row["training_iteration"] for row in rows(Path(same["store"]))[1]] == list(range(7, 25))
    story = trialkeeper("results", "runs/mine", "--format", "json", folder=tmp_path)
    read = [row for row in map(json.loads, story.stdout.splitlines()) if row["trial_id"] == "mine-1"]
    assert [row["training_iteration"] for row in read] == list(range(1, 25))
    own = curve(Path(donor["store"]))
    assert [row["val/loss"] for row in read[:6]] == [own[i]["val/loss"] for i in range(1, 7)]


@pytest.mark.timeout(200)
def test_a_suspended_run_ends_once_all_trainers_have_left_and_goes_on_later(tmp_path: Path) -> None:
    file = digits(tmp_path, maxTrials=2)
    done = trialkeeper("run", str(file), "--set", "spec.suspend=true", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mine: Suspended" in done.stdout
    done = trialkeeper("run", str(file), "--output", "json", folder=tmp_path)
    assert json.loads(done.stdout)["counts"] == {"Succeeded": 2}
    for command in commands(section(PAGE, "On one machine")):
        said = subprocess.run(
            [sys.executable, "-m", *command.split()], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert said.returncode == 0, said.stderr
        assert [line.split()[:2] for line in said.stdout.splitlines()[1:3]] == [
            ["mine-0", "Succeeded"],
            ["mine-1", "Succeeded"],
        ]
