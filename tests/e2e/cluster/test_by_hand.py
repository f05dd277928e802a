"""docs/by-hand.md in a cluster: every command of it, in its order, and what comes of each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.installed import Installed
from e2e.cluster.test_main_job import longer
from testbed import Cluster
from testbed.programs import program
from testbed.wait import until
from words import ROOT, commands, section

Object = dict[str, Any]
PAGE = ROOT / "docs" / "by-hand.md"


class Person:
    """Somebody with a shell, whose kubectl looks into one namespace."""

    def __init__(self, installed: Installed, namespace: str, folder: Path) -> None:
        self.installed, self.namespace = installed, namespace
        env = installed.cluster.environment()
        config = folder / "kubeconfig"
        shutil.copyfile(env["KUBECONFIG"], config)
        own = [str(program("kubectl").parent)] if isinstance(installed.cluster, Cluster) else []
        self._env = {**env, "KUBECONFIG": str(config)}
        self._env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), *own, os.environ["PATH"]])
        self.does(f"kubectl config set-context --current --namespace={namespace}")

    def does(self, command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=ROOT, env=self._env, capture_output=True, text=True, check=False, timeout=180
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def pods(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.installed.items("pods", self.namespace)]


def began(installed: Installed, namespace: str, name: str, attempt: int) -> Object:
    """The status of a trial once the trainer of an attempt has said where it began, and has a newer checkpoint."""

    def on(status: Object) -> bool:
        stated = (status.get("pod") or {}).get("fromIteration") is not None
        saved = (status.get("checkpoint") or {}).get("attempt") == attempt
        return bool(status.get("attempt") == attempt and stated and saved)

    found: Object = installed.until_trial(namespace, name, on, f"attempt {attempt} trains", seconds=120)["status"]
    return found


@pytest.mark.timeout(900)
def test_what_the_page_says_is_what_comes_of_it(installed: Installed, namespace: str, tmp_path: Path) -> None:
    person = Person(installed, namespace, tmp_path)
    experiment = longer(trials=4, epochs=3000)
    # So that what is forked at was saved and is still there, and six of them leave each other room.
    checkpoint = {"frequency": 3, "numToKeep": 500, "onBusy": "Wait"}
    experiment["spec"] |= {"parallelism": 4, "checkpoint": checkpoint}
    resources = {"requests": {"cpu": "50m"}, "limits": {"cpu": "250m"}}
    experiment["spec"]["template"]["spec"]["containers"][0]["resources"] = resources
    installed.apply(namespace, experiment)
    for index in range(4):
        began(installed, namespace, f"digits-{index}", 1)

    pause, resume, stop = commands(section(PAGE, "Pause and stop"))
    assert "digits-3 saves and leaves" in person.does(pause)
    paused = installed.until_trial(namespace, "digits-3", lambda s: s.get("phase") == "Paused", "is paused")["status"]
    until("its pod to be gone", lambda: "digits-3-a1" not in person.pods())
    (first,) = paused["history"]
    assert (first["class"], first["reason"]) == ("Stopped", "Desired")
    assert paused["checkpoint"]["iteration"] == first["toIteration"], "it has saved before it left"
    person.does(resume)
    on = began(installed, namespace, "digits-3", 2)
    assert on["pod"]["fromIteration"] == first["toIteration"]
    assert on["lostWork"]["iterations"] == 0
    person.does(stop)
    over = installed.until_trial(namespace, "digits-3", lambda s: s.get("phase") == "Stopped", "is stopped")["status"]
    assert (over["failures"], over["disruptions"], over["attempt"]) == (0, 0, 2)

    (retry,) = commands(section(PAGE, "Another try"))
    assert "gets another try from its newest checkpoint" in person.does(retry)
    again = began(installed, namespace, "digits-3", 3)
    assert again["pod"]["fromIteration"] == over["checkpoint"]["iteration"]
    assert again["retried"]["number"] == 1

    newest, older = commands(section(PAGE, "Fork"))
    installed.kubectl("patch", "exp/digits", "-n", namespace, "--type=merge", '-p={"spec":{"parallelism":6}}')
    person.does(newest)
    person.does(older)
    for name, iteration in (("digits-4", None), ("digits-5", 6)):
        child = began(installed, namespace, name, 1)
        spec = installed.trial(namespace, name)["spec"]
        assert child["base"]["attempt"] == 0, "it began under another trial's prefix"
        assert child["base"]["iteration"] == int(spec["fork"][-17:-5])
        assert iteration in (None, child["base"]["iteration"])
        assert child["lostWork"]["iterations"] == 0
    donor, slower = (installed.trial(namespace, name)["spec"] for name in ("digits-1", "digits-5"))
    assert slower["parameters"] == {**donor["parameters"], "lr": 0.005}
    assert slower["name"] == "slower"
    assert installed.get("exp/digits", namespace)["spec"]["maxTrials"] == 6

    before = {t["metadata"]["name"]: t["status"] for t in installed.items("trials", namespace)}
    suspend, wait, resume = commands(section(PAGE, "Suspend"))
    person.does(suspend)
    person.does(wait)
    until("no pod is left", lambda: not person.pods(), seconds=60)
    resting = {t["metadata"]["name"]: t["status"] for t in installed.items("trials", namespace)}
    for name, status in resting.items():
        assert (status["phase"], status["reason"]) == ("Paused", "Suspended"), name
        assert status["checkpoint"]["iteration"] == status["history"][-1]["toIteration"], name
        assert (status["failures"], status["disruptions"]) == (0, 0), name
    person.does(resume)
    for name, status in before.items():
        on = began(installed, namespace, name, status["attempt"] + 1)
        assert on["pod"]["fromIteration"] == resting[name]["checkpoint"]["iteration"]
        assert on["lostWork"]["iterations"] == 0

    digits, all_ = map(person.does, commands(section(PAGE, "Look")))
    assert [line.split()[0] for line in digits.splitlines()[1:7]] == [f"digits-{i}" for i in range(6)]
    assert "goodput" in all_
    assert "digits" in all_

    pause, resume, suspend, go_on = commands(section(PAGE, "Without the commands"))
    person.does(pause)
    installed.until_trial(namespace, "digits-2", lambda s: s.get("phase") == "Paused", "is paused")
    person.does(resume)
    began(installed, namespace, "digits-2", before["digits-2"]["attempt"] + 2)
    person.does(suspend)
    person.does(wait)
    person.does(go_on)
    began(installed, namespace, "digits-2", before["digits-2"]["attempt"] + 3)

    (delete,) = commands(section(PAGE, "Delete"))
    person.does(delete)
    until("its pods and trials are gone", lambda: not person.pods() and not installed.items("trials", namespace))
    assert installed.items("configmaps", namespace, "--field-selector=metadata.name=digits-snapshot")
