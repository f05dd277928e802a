"""Trainers from hell: each ends with the right class and a sentence that helps, and stops nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trialkeeper_operator.local.process import alive

PREAMBLE = "import os, sys, time, signal, trialkeeper\n"
SCRIPTS: dict[str, str] = {
    "never reports": "pass",
    "hangs before its first report": "while True: time.sleep(0.05)",
    "exits 3 always": "trialkeeper.report({'loss': 1.0}); sys.exit(3)",
    "exits 0 after SIGTERM without marker": """
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
trialkeeper.report({'loss': 1.0})
os.kill(os.getpid(), signal.SIGTERM)
""",
    "reports NaN": "trialkeeper.report({'loss': float('nan')})",
    "raises on import": "import a_module_that_does_not_exist",
    "prints 100 MB": """
for _ in range(100): sys.stdout.write('x' * (1 << 20) + '\\n')
trialkeeper.report({'loss': 1.0})
""",
    "forks children that outlive it": """
import subprocess
child = subprocess.Popen([sys.executable, '-c', 'import time\\nwhile True: time.sleep(0.1)'], start_new_session=False)
open(os.environ['CHILD'], 'w').write(str(child.pid))
trialkeeper.report({'loss': 1.0})
""",
    "forks a daemon that outlives it": """
import subprocess
child = subprocess.Popen([sys.executable, '-c', 'import time\\nwhile True: time.sleep(0.1)'], start_new_session=True)
open(os.environ['CHILD'], 'w').write(str(child.pid))
trialkeeper.report({'loss': 1.0})
""",
    "calls os._exit": "trialkeeper.report({'loss': 1.0}); os._exit(0)",
    "deletes its scratch folder": """
import shutil
def save(folder): (folder / 'weights').write_text('w')
for i in range(3):
    shutil.rmtree(os.environ['TRIALKEEPER_SCRATCH'], ignore_errors=True)
    trialkeeper.report({'loss': 1.0 / (i + 1)}, checkpoint=save)
""",
    "reports 10,000 metrics": "trialkeeper.report({'loss': 1.0, **{f'm/{i}': i for i in range(10_000)}})",
    "a metric with an odd name": "trialkeeper.report({'loss': 0.5, 'val/loss.top-1': 0.25})",
    "misspells the objective": "trialkeeper.report({'los': 1.0, 'acc': 0.5})",
    "a hundredth of a second": "trialkeeper.report({'loss': 1.0})",
    "raises in the middle": "trialkeeper.report({'loss': 1.0}); raise ValueError('the data is gone')",
    "a segmentation fault": "trialkeeper.report({'loss': 1.0}); os.kill(os.getpid(), signal.SIGSEGV)",
    "out of memory by its own words": "trialkeeper.report({'loss': 1.0}); raise MemoryError('8 GiB')",
    "says that nothing helps": "trialkeeper.report({'loss': 1.0}); sys.exit(78)",
}

# Script -> (phase, class and reason of the last attempt, number of attempts, words that its sentence must have).
EXPECTED: dict[str, tuple[str, str, str, int, tuple[str, ...]]] = {
    "never reports": ("Succeeded", "Succeeded", "NoObjective", 1, ("trialkeeper.report",)),
    "hangs before its first report": ("Failed", "Failed", "NoReport", 2, ("firstReportSeconds",)),
    "exits 3 always": ("Failed", "Failed", "ExitCode", 2, ("code 3", "maxFailures")),
    "exits 0 after SIGTERM without marker": ("Failed", "Failed", "Incomplete", 2, ("before its end",)),
    "reports NaN": ("Stopped", "Stopped", "NonFinite", 1, ("loss", "onNonFinite")),
    "raises on import": ("Failed", "Failed", "ExitCode", 2, ("a_module_that_does_not_exist",)),
    "prints 100 MB": ("Succeeded", "Succeeded", "Completed", 1, ()),
    "forks children that outlive it": ("Succeeded", "Succeeded", "Completed", 1, ()),
    "forks a daemon that outlives it": ("Succeeded", "Succeeded", "Completed", 1, ()),
    "calls os._exit": ("Failed", "Failed", "Incomplete", 2, ("os._exit",)),
    "deletes its scratch folder": ("Succeeded", "Succeeded", "Completed", 1, ()),
    "reports 10,000 metrics": ("Succeeded", "Succeeded", "Completed", 1, ()),
    "a metric with an odd name": ("Succeeded", "Succeeded", "Completed", 1, ()),
    "misspells the objective": ("Succeeded", "Succeeded", "Completed", 1, ("objective loss", "acc, los")),
    "a hundredth of a second": ("Succeeded", "Succeeded", "Completed", 1, ()),
    "raises in the middle": ("Failed", "Failed", "Exception", 2, ("ValueError", "the data is gone")),
    "a segmentation fault": ("Failed", "Failed", "Signal", 2, ("signal 11",)),
    "out of memory by its own words": ("Failed", "UserError", "OutOfMemory", 2, ("8 GiB", "a smaller batch", "twice")),
    "says that nothing helps": ("Failed", "UserError", "UserError", 1, ("78",)),
}


def run(folder: Path, script: str, *, env: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """`trialkeeper run` of one trial with this trainer; its JSON document, with `text` of the last attempt."""
    (folder / "trainer.py").write_text(PREAMBLE + script)
    document = {
        "apiVersion": "trialkeeper.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": "hell"},
        "spec": {
            "objectives": [{"metric": "loss"}],
            "parameters": [{"name": "lr", "float": {"min": 0.1, "max": 1.0}}],
            "maxTrials": 1,
            "checkpoint": {"frequency": 1},
            "failurePolicy": {"maxFailures": 1, "backoffSeconds": 0},
            "timeouts": {"firstReportSeconds": 5, "graceSeconds": 2},
            "template": {
                "spec": {"containers": [{"name": "t", "image": "i", "command": ["python", "trainer.py"]}]},
            },
            **spec,
        },
    }
    (folder / "hell.yaml").write_text(json.dumps(document))
    command = [sys.executable, "-m", "trialkeeper", "run", "hell.yaml", "--output", "json"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=100, env={**os.environ, **(env or {})}, check=False
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    found["exit"] = done.returncode
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_ends_with_the_right_class_and_a_sentence_that_helps(name: str, tmp_path: Path) -> None:
    phase, class_, reason, attempts, words = EXPECTED[name]
    child = tmp_path / "child"
    document = run(tmp_path, SCRIPTS[name], env={"CHILD": str(child)})
    (trial,) = document["trials"]
    last = trial["attempts"][-1]
    assert (trial["phase"], last["class"], last["reason"], len(trial["attempts"])) == (phase, class_, reason, attempts)
    for word in words:
        assert word in trial["message"], trial["message"]
    assert document["exit"] == (0 if document["best"] else 1)
    assert bool(document["best"]) == (phase == "Succeeded" and trial["reason"] != "NoObjective")
    if child.exists():
        assert not alive(int(child.read_text()))


def test_the_same_error_in_three_trials_is_not_tried_in_thirty(tmp_path: Path) -> None:
    document = run(tmp_path, "import a_module_that_does_not_exist", maxTrials=30, parallelism=1)
    phases = [t["phase"] for t in document["trials"]]
    assert len(phases) == 3
    assert set(phases) <= {"Failed", "Stopped"}
    assert (document["phase"], document["exit"]) == ("Failed", 1)
    assert "a_module_that_does_not_exist" in document["message"], document


def test_a_trainer_that_ignores_sigterm_is_killed_after_its_grace_and_goes_on(tmp_path: Path) -> None:
    script = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def save(folder): (folder / 'i').write_text(str(i))
c = trialkeeper.get_checkpoint()
start = int((c.path / 'i').read_text()) + 1 if c else 0
for i in range(start, 6):
    trialkeeper.report({'loss': 1.0}, checkpoint=save)
    if trialkeeper.get_context().attempt == 1 and i == 2:
        os.kill(os.getpid(), signal.SIGTERM)
        while True: time.sleep(0.05)
"""
    document = run(tmp_path, script, timeouts={"progressSeconds": 2, "graceSeconds": 1})
    (trial,) = document["trials"]
    assert [a["reason"] for a in trial["attempts"]] == ["NoProgress", "Completed"]
    assert trial["attempts"][1]["fromIteration"] == 3
    assert trial["phase"] == "Succeeded"


def test_a_command_that_does_not_exist_is_a_user_error(tmp_path: Path) -> None:
    template = {"spec": {"containers": [{"name": "t", "image": "i", "command": ["no-such-program", "--lr"]}]}}
    document = run(tmp_path, "", template=template)
    (trial,) = document["trials"]
    assert (trial["phase"], trial["attempts"][0]["class"]) == ("Failed", "UserError")
    assert "no-such-program" in trial["message"]


def test_a_bad_trial_does_not_stop_its_neighbours(tmp_path: Path) -> None:
    script = """
index = trialkeeper.get_context().index
if index == 1: os._exit(9)
if index == 2: raise RuntimeError('no')
trialkeeper.report({'loss': float(index)})
"""
    document = run(tmp_path, script, maxTrials=5, parallelism=2)
    assert [t["phase"] for t in document["trials"]] == ["Succeeded", "Failed", "Failed", "Succeeded", "Succeeded"]
    assert document["phase"] == "Succeeded"
    assert document["best"]["trial"] == "hell-0"
