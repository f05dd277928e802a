"""The README's cluster: every command in it, in its order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.cluster.installed import INSTALL, Installed
from testbed import Cluster
from testbed.programs import program
from words import README, ROOT, commands, section

RESULTS = ROOT / "docs" / "results.md"


@pytest.mark.timeout(400)
def test_the_readmes_commands_do_what_the_readme_says(installed: Installed, tmp_path: Path) -> None:
    env = installed.cluster.environment()
    own = [str(program("kubectl").parent)] if isinstance(installed.cluster, Cluster) else []
    places = [str(Path(sys.executable).parent), *own, os.environ["PATH"]]
    env["PATH"] = os.pathsep.join(places)
    first, *told = commands(section(README, "In a cluster"))
    assert first.split() == ["helm", *INSTALL]
    said = {}
    for given in told:
        command = given.replace("/tmp/", f"{tmp_path}/")
        if "wait=false" in command:
            installed.running("default")
        done = subprocess.run(
            command, shell=True, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        said[command.split()[1]] = done.stdout
    assert "digits-0" in said["describe"]
    assert "Succeeded" in said["snapshot"]
    for command in commands(section(RESULTS, "From a cluster")):
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    installed.kubectl("delete", "exp", "digits")
