"""The rows of the endings table that a real kubelet can be brought to, seen through the operator, and recorded anew.

What each attempt came to must be what a document of tests/endings says of that row. With TRIALKEEPER_RECORD=FOLDER
the pods are written there as such documents, each as the last watch has seen it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster.installed import Installed, Named
from endings.rows import Row, read, told
from testbed.programs import program
from testbed.wait import until

Object = dict[str, Any]
Act = Callable[[Installed, str, str], object]  # what is done to a pod that runs: (where, namespace, pod)

IMAGE = "trialkeeper-trainer:0.1.0"


def delete(installed: Installed, namespace: str, pod: str) -> object:
    return installed.kubectl("delete", "pod", pod, "-n", namespace, "--wait=false")


def force(installed: Installed, namespace: str, pod: str) -> object:
    return installed.kubectl("delete", "pod", pod, "-n", namespace, "--force", "--grace-period=0")


def evict(installed: Installed, namespace: str, pod: str) -> object:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    where = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    return installed.kubectl("create", "--raw", where, "-f", "-", stdin=json.dumps(body))


@dataclass(frozen=True)
class Scene:
    """A trainer, what is done to it, and the row that it must come to."""

    row: int
    ending: tuple[str, str]
    sentence: str
    script: str = "sleep 3600"
    act: Act | None = None
    container: Object = field(default_factory=dict)
    pod: Object = field(default_factory=dict)
    timeouts: Object = field(default_factory=dict)
    intended: bool = False  # what the pod shows is our own deletion

    def experiment(self, name: str) -> Object:
        trainer = {
            "name": "trainer",
            "image": IMAGE,
            "command": ["sh", "-c", self.script],
            "imagePullPolicy": "IfNotPresent",
            **self.container,
        }
        beside = self.pod.get("containers", [])
        return {
            "apiVersion": "trialkeeper.dev/v1alpha1",
            "kind": "Experiment",
            "metadata": {"name": name},
            "spec": {
                "objectives": [{"metric": "loss"}],
                "parameters": [{"name": "lr", "fixed": 1}],
                "failurePolicy": {"maxFailures": 0, "maxRepeatedErrors": 0, "backoffSeconds": 600},
                "timeouts": {"graceSeconds": 2, **self.timeouts},
                "trainerContainer": "trainer",
                "template": {"spec": {**self.pod, "containers": [*beside, trainer]}},
            },
        }


MISSING = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "k"}}}]
DEAF = "trap '' TERM; while :; do sleep 0.2; done"
POLITE = "trap 'exit 0' TERM; while :; do sleep 0.2; done"
SMALL = [{"name": "small", "emptyDir": {"sizeLimit": "1Mi"}}]

SCENES: dict[str, Scene] = {
    "plain": Scene(1, ("Succeeded", "NoObjective"), "exited with code 0", "exit 0"),
    "polite": Scene(2, ("Preempted", "Deleted"), "deleted by somebody", POLITE, act=delete),
    "exit-1": Scene(4, ("Failed", "ExitCode"), "exited with code 1: no data", "echo no data; exit 1"),
    "exit-78": Scene(4, ("UserError", "UserError"), "another try cannot help", "exit 78"),
    "aborted": Scene(5, ("Failed", "Signal"), "ended by signal 6", "python -c 'import os; os.abort()'; exit $?"),
    "no-command": Scene(
        6, ("UserError", "CannotStart"), "no such file|not found", container={"command": ["/no/such/program"]}
    ),
    "no-word": Scene(6, ("UserError", "CannotStart"), "exit code 127", "no-such-program"),
    "memory": Scene(
        7,
        ("Failed", "OutOfMemory"),
        "at its limit of 64Mi: raise resources.limits.memory to 96Mi",
        container={
            "command": ["python", "-c", "x = bytearray(300 << 20)"],
            "resources": {"limits": {"memory": "64Mi"}},
        },
    ),
    "deaf": Scene(9, ("Preempted", "EvictionByEvictionAPI"), "the pod was evicted", DEAF, act=evict),
    "deleted": Scene(10, ("Preempted", "Deleted"), "deleted by somebody", DEAF, act=delete),
    "forced": Scene(11, ("Lost", "PodGone"), "vanished before anybody saw", DEAF, act=force),
    "evicted": Scene(12, ("Preempted", "EvictionByEvictionAPI"), "Eviction API: evicting", POLITE, act=evict),
    "storage": Scene(
        18,
        ("Failed", "StorageLimit"),
        'Usage of EmptyDir volume "small" exceeds the limit',
        "head -c 5000000 /dev/zero > /small/x; sleep 3600",
        container={"volumeMounts": [{"name": "small", "mountPath": "/small"}]},
        pod={"volumes": SMALL},
    ),
    "init": Scene(
        33,
        ("Failed", "Init"),
        "init container fetch exited with code 3: no host",
        pod={
            "initContainers": [
                {
                    "name": "fetch",
                    "image": IMAGE,
                    "command": ["sh", "-c", "echo no host; exit 3"],
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                }
            ]
        },
    ),
    "sidecar": Scene(
        34,
        ("Succeeded", "NoObjective"),
        "exited with code 0",
        "exit 0",
        pod={"containers": [{"name": "logs", "image": IMAGE, "command": ["sh", "-c", POLITE]}]},
    ),
    "deadline": Scene(
        35, ("UserError", "DeadlineExceeded"), "ran into its activeDeadlineSeconds", pod={"activeDeadlineSeconds": 2}
    ),
    "no-image": Scene(
        31,
        ("UserError", "ImageNotPulled"),
        "nowhere:1 cannot be pulled: .*timeouts.startSeconds is 5",
        container={"image": "nowhere:1", "imagePullPolicy": "Never"},
        timeouts={"startSeconds": 5},
        intended=True,
    ),
    "no-name": Scene(
        31, ("UserError", "InvalidImageName"), "is no image's name", container={"image": "No:where:1"}, intended=True
    ),
    "no-secret": Scene(
        32,
        ("UserError", "ContainerConfig"),
        'secret "keys" not found .timeouts.startSeconds is 5',
        container={"env": MISSING},
        timeouts={"startSeconds": 5},
        intended=True,
    ),
    "hangs": Scene(
        37, ("Failed", "NoReport"), "no report for 3 s", POLITE, timeouts={"firstReportSeconds": 3}, intended=True
    ),
}
# What a force delete leaves of a pod depends on which event is its last.
EITHER = {"forced": {("Lost", "PodGone"), ("Preempted", "Deleted")}}


@contextmanager
def watched(installed: Installed, namespace: str, file: Path) -> Iterator[Callable[[], dict[str, Object]]]:
    """A watch of a namespace's pods; called, the last state of each by name."""
    kubectl = "kubectl" if isinstance(installed.cluster, Named) else str(program("kubectl"))
    command = [kubectl, "get", "pods", "-n", namespace, "--watch", "--output-watch-events", "-o", "json"]
    with file.open("wb") as out:
        watch = subprocess.Popen(command, env=installed.cluster.environment(), stdout=out)
    try:
        yield lambda: _last(file.read_text())
    finally:
        watch.terminate()
        watch.wait(10)


def _last(text: str) -> dict[str, Object]:
    decoder, position, found = json.JSONDecoder(), 0, {}
    while position < len(text.rstrip()):
        try:
            event, position = decoder.raw_decode(text, position)
        except ValueError:
            break  # the last one is still being written
        position += len(text[position:]) - len(text[position:].lstrip())
        found[event["object"]["metadata"]["name"]] = event["object"]
    return found


def recorded(name: str, scene: Scene, pod: Object) -> Object:
    """A pod as a document of tests/endings."""
    kept = ("deletionTimestamp", "deletionGracePeriodSeconds", "finalizers")
    trainer = next(c for c in pod["spec"]["containers"] if c["name"] == "trainer")
    return {
        "row": scene.row,
        "title": f"recorded: {name}",
        "source": "recorded",
        "pod": {
            "metadata": {key: pod["metadata"][key] for key in kept if key in pod["metadata"]},
            "spec": {
                "nodeName": pod["spec"].get("nodeName"),
                "containers": [{key: trainer[key] for key in ("name", "image", "resources") if key in trainer}],
            },
            "status": pod["status"],
        },
        "gone": "deletionTimestamp" in pod["metadata"],
        "expect": {"class": scene.ending[0], "reason": scene.ending[1], "sentence": scene.sentence},
    }


def _runs(installed: Installed, namespace: str, name: str) -> str | None:
    """The pod of an experiment's trial, once its trainer runs."""
    pods = installed.items("pods", namespace, "-l", f"trialkeeper.dev/trial={name}-0")
    states = [s["state"] for p in pods for s in p["status"].get("containerStatuses", ()) if s["name"] == "trainer"]
    return str(pods[0]["metadata"]["name"]) if any("running" in state for state in states) else None


@pytest.mark.timeout(500)
def test_a_real_kubelets_endings_are_those_of_the_table(installed: Installed, namespace: str, tmp_path: Path) -> None:
    documents = {(row.row, row.expect.get("class"), row.expect["reason"]) for row in read()}
    with watched(installed, namespace, tmp_path / "pods.json") as last:
        installed.apply(namespace, *(scene.experiment(name) for name, scene in SCENES.items()))
        for name, scene in SCENES.items():
            if scene.act is not None:
                pod = until(f"{name} runs", partial(_runs, installed, namespace, name), seconds=120)
                assert pod is not None
                scene.act(installed, namespace, pod)
        wrong, records = [], []
        for name, scene in SCENES.items():
            trial = installed.until_trial(namespace, f"{name}-0", lambda s: s.get("closed", 0) >= 1, "ended", 180)
            entry = next(h for h in trial["status"]["history"] if h["attempt"] == 1)
            found = (entry["class"], entry["reason"])
            if found not in EITHER.get(name, {scene.ending}) or not re.search(scene.sentence, entry["message"]):
                wrong.append(f"{name}: {found} {entry['message']}")
            assert name in EITHER or (scene.row, *scene.ending) in documents, name
            pod_seen = last().get(f"{name}-0-a1")
            if pod_seen is not None and not scene.intended and name not in EITHER:
                records.append(recorded(name, scene, pod_seen))
    if folder := os.environ.get("TRIALKEEPER_RECORD"):
        (Path(folder) / "recorded.yaml").write_text(yaml.safe_dump_all(records, sort_keys=False, width=160))
    assert not wrong, "\n".join(wrong)
    for record in records:
        judged = told(Row(**record))
        assert (judged.class_, judged.reason) == (record["expect"]["class"], record["expect"]["reason"]), record[
            "title"
        ]
