"""`trialkeeper drill --cluster` on a real cluster: the trainer that resumes, and its twin that forgets."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from e2e.cluster.installed import SYSTEM, Installed
from e2e.cluster.test_results import trialkeeper
from testbed.wait import until
from words import ROOT


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    ("script", "code", "sentence"),
    [
        ("digits.py", 0, "your trainer resumes: 2 kills, 3 attempts, "),
        ("digits_forgetful.py", 1, "your trainer starts over: it does not call trialkeeper.get_checkpoint()"),
    ],
)
def test_the_drill_tells_the_twins_apart(
    installed: Installed, namespace: str, script: str, code: int, sentence: str, tmp_path: Path
) -> None:
    command = f"spec.template.spec.containers[0].command=[python, {script}]"
    file = str(ROOT / "examples" / "digits.yaml")
    arguments = ("drill", file, "--cluster", "--namespace", namespace, "--set", command)
    done: subprocess.CompletedProcess[str] = trialkeeper(installed, *arguments, folder=tmp_path, timeout=400)
    said = done.stdout + done.stderr
    assert (done.returncode, done.stdout.splitlines()[-1][: len(sentence)]) == (code, sentence), said
    assert "deleted by force" in said
    assert "deleted with notice" in said
    if code == 0:
        assert done.stdout.rstrip().endswith("its results are those of the undisturbed run"), said

    def left() -> list[str]:
        kinds = ("exp", "trials", "pods", "configmaps")
        found = [i["metadata"]["name"] for kind in kinds for i in installed.items(kind, namespace)]
        return [name for name in found if name.startswith("digits-")]

    until("nothing of the drill to be left", lambda: not left(), seconds=60)
    assert installed.items("pods", SYSTEM), "what was there before is there"
