"""kill -9 of the runner at a hundred random moments, then the same command: nothing is lost, nothing counted twice."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from proof import continuity, prefixes, repeated, resumed
from trialkeeper_operator.cluster.journal import replay
from trialkeeper_operator.local.process import of_pods

KILLS = 100
TRAINER = """
import hashlib, trialkeeper
p = trialkeeper.get_params(x=0.5)
checkpoint = trialkeeper.get_checkpoint()
start = int((checkpoint.path / "i").read_text()) + 1 if checkpoint else 0
block = bytes(4 << 20)
for i in range(start, 150):
    for _ in range(8):
        hashlib.sha256(block).digest()
    def save(folder):
        (folder / "i").write_text(str(i))
    trialkeeper.report({"loss": p.x + 1 / (i + 1)}, checkpoint=save)
"""
EXPERIMENT = {
    "apiVersion": "trialkeeper.dev/v1alpha1",
    "kind": "Experiment",
    "metadata": {"name": "killed"},
    "spec": {
        "objectives": [{"metric": "loss"}],
        "parameters": [{"name": "x", "float": {"min": 0, "max": 1}}],
        "maxTrials": 48,
        "parallelism": 4,
        "checkpoint": {"frequency": 1},
        "template": {"spec": {"containers": [{"name": "t", "image": "i", "command": ["python", "trainer.py"]}]}},
    },
}


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trialkeeper", "run", "killed.yaml", "--output", "json"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def finished(run: Path) -> dict[str, Any]:
    """Statuses of the trials that the journal calls finished."""
    objects, *_ = replay(run / "journal.jsonl")
    statuses = {o["metadata"]["uid"]: o.get("status") or {} for o in objects if o["kind"] == "Trial"}
    return {uid: s for uid, s in statuses.items() if s.get("phase") in ("Succeeded", "Failed", "Stopped")}


def pods(run: Path) -> list[str]:
    """The uids of all pods that any trial of the run may have had, from everything the journal has said."""
    lines = (run / "journal.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [e["put"]["metadata"]["uid"] for e in entries if "put" in e and e["put"]["kind"] == "Pod"]


@pytest.mark.timeout(600)
def test_a_killed_runner_goes_on_where_it_was(tmp_path: Path) -> None:
    rng = random.Random(1)
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "killed.yaml").write_text(json.dumps(EXPERIMENT))
    run, known, kills, seen = tmp_path / "runs" / "killed", dict[str, Any](), 0, set[str]()
    while kills < KILLS:
        process = start(tmp_path)
        try:
            process.communicate(timeout=rng.uniform(0.2, 1.3))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            pytest.fail(f"the experiment was over after {kills} kills: give its trainers more to do")
        if not (run / "journal.jsonl").exists():
            continue
        seen.update(pods(run))
        now = finished(run)
        assert {uid: now.get(uid) for uid in known} == known, "a finished trial has changed"
        known = now
    process = start(tmp_path)
    document = json.loads(process.communicate(timeout=300)[0])
    assert process.returncode == 0
    assert document["counts"] == {"Succeeded": 48}
    assert document["failures"] == 0
    assert document["disruptions"] > 20, "the kills did not hit anybody: the test shows nothing"
    final = finished(run)
    assert {uid: final[uid] for uid in known} == known
    for status in final.values():
        assert status["attempt"] == status["closed"] == status["disruptions"] + 1
    best = min(document["trials"], key=lambda t: t["parameters"]["x"])
    assert document["best"]["trial"] == best["name"]
    for trial, prefix in zip(document["trials"], prefixes(run), strict=True):
        assert trial["iterations"] == 150
        assert continuity(prefix) + resumed(prefix) == []
        assert repeated(prefix) == trial["lostWork"]["iterations"]
    for _ in range(100):
        left = of_pods(seen | set(pods(run)))
        if not left:
            break
        time.sleep(0.05)  # what was killed needs a moment to be gone
    assert not left
