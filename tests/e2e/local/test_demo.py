"""The main job, as `make demo` runs it: real training, six real kills, and the proof on raw results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from proof import EXAMPLES, bases, prefixes, repeated, undisturbed, violations


def trialkeeper(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trialkeeper", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.timeout(400)
def test_six_kills_cost_no_trial_and_change_no_weight(tmp_path: Path) -> None:
    done = trialkeeper(
        "run", str(EXAMPLES / "digits.yaml"), "--preempt", "6", "--output", "json", "--dir", "runs", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["counts"] == {"Succeeded": 8}
    assert (document["preempted"], document["disruptions"], document["failures"]) == (6, 6, 0)
    endings = [a["reason"] for t in document["trials"] for a in t["attempts"] if a["class"] == "Preempted"]
    assert sorted(endings) == ["DeletionByPodGC"] * 3 + ["EvictionByEvictionAPI"] * 3
    assert Path(document["best"]["checkpoint"], "state.npz").is_file()
    assert document["lostWork"]["iterations"] == sum(repeated(p) for p in prefixes(tmp_path / "runs" / "digits"))
    for trial, prefix in zip(document["trials"], prefixes(tmp_path / "runs" / "digits"), strict=True):
        reference = undisturbed(trial["name"], trial["seed"], trial["parameters"], tmp_path / "reference")
        assert violations(prefix, trial, reference) == []
        assert len(bases(prefix)) == len(trial["attempts"])


@pytest.mark.timeout(200)
def test_a_twin_that_forgets_its_checkpoint_fails_the_proof(tmp_path: Path) -> None:
    sets = [
        "--set",
        "spec.maxTrials=2",
        "--set",
        "spec.template.spec.containers[0].command=[python, digits_forgetful.py]",
    ]
    done = trialkeeper(
        "run", str(EXAMPLES / "digits.yaml"), "--preempt", "2", "--output", "json", "--dir", str(tmp_path), *sets,
        folder=tmp_path,
    )  # fmt: skip
    document = json.loads(done.stdout)
    for trial, prefix in zip(document["trials"], prefixes(tmp_path / "digits"), strict=True):
        assert len(trial["attempts"]) == 2
        wrong = violations(
            prefix, trial, undisturbed(trial["name"], trial["seed"], trial["parameters"], tmp_path / "reference")
        )
        assert any("started over" in line for line in wrong), wrong


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("script", "code", "sentence"),
    [
        ("digits.py", 0, "your trainer resumes: 4 kills"),
        ("digits_forgetful.py", 1, "your trainer starts over: it does not call trialkeeper.get_checkpoint()"),
    ],
)
def test_the_drill_tells_the_twins_apart(script: str, code: int, sentence: str, tmp_path: Path) -> None:
    command = f"spec.template.spec.containers[0].command=[python, {script}]"
    done = trialkeeper("drill", str(EXAMPLES / "digits.yaml"), "--set", command, folder=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1][: len(sentence)]) == (code, sentence), (
        done.stdout + done.stderr
    )
