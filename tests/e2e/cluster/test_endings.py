"""The rows of the endings table that a real kubelet can be brought to, seen through the operator, and recorded anew.

What each attempt came to must be what tests/endings says of that row, and what is seen of its pod must be what was
recorded before in all that decides. TRIALKEEPER_RECORD=1 writes it anew into tests/endings/recorded.yaml.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.installed import SYSTEM, Installed, Named
from e2e.cluster.test_nodes import lead_from
from endings import recording
from endings.recording import Seen, recorded, shape, watched
from endings.rows import Row, read, told
from testbed.programs import program
from testbed.shell import CommandFailed
from testbed.wait import until

Object = dict[str, Any]
Act = Callable[[Installed, str, str], object]  # what is done to a pod that runs: (where, namespace, pod)

IMAGE = "trialkeeper-trainer:0.1.0"


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
    ours: bool = False  # it is the operator that ends the pod
    seen: Object = field(default_factory=dict)  # what else there is to see, as a document says it
    either: tuple[tuple[str, str], ...] = ()  # what it may come to otherwise, so that nothing is recorded

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
    "polite": Scene(2, ("Preempted", "Deleted"), "deleted by somebody", POLITE, act=Installed.delete_pod),
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
    "deaf": Scene(9, ("Preempted", "EvictionByEvictionAPI"), "the pod was evicted", DEAF, act=Installed.evict),
    "deleted": Scene(10, ("Preempted", "Deleted"), "deleted by somebody", DEAF, act=Installed.delete_pod),
    # What a force delete leaves of a pod depends on which event is its last.
    "forced": Scene(
        11,
        ("Lost", "PodGone"),
        "vanished before anybody saw|deleted by somebody",
        DEAF,
        act=partial(Installed.delete_pod, force=True),
        either=(("Preempted", "Deleted"),),
    ),
    "evicted": Scene(12, ("Preempted", "EvictionByEvictionAPI"), "Eviction API: evicting", POLITE, act=Installed.evict),
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
        "nowhere:1 cannot be pulled: .*timeouts.startSeconds is 15",
        container={"image": "nowhere:1", "imagePullPolicy": "Never"},
        timeouts={"startSeconds": 15},
        ours=True,
    ),
    "no-name": Scene(
        31, ("UserError", "InvalidImageName"), "is no image's name", container={"image": "No:where:1"}, ours=True
    ),
    "no-secret": Scene(
        32,
        ("UserError", "ContainerConfig"),
        'secret "keys" not found .timeouts.startSeconds is 15',
        container={"env": MISSING},
        timeouts={"startSeconds": 15},
        ours=True,
    ),
    "hangs": Scene(
        37, ("Failed", "NoReport"), "no report for 3 s", POLITE, timeouts={"firstReportSeconds": 3}, ours=True
    ),
}


def on(node: str, **more: Any) -> Object:
    return {"nodeSelector": {"kubernetes.io/hostname": node}, **more}


HUGE = {"resources": {"requests": {"cpu": "500"}}}


class Theatre:
    """Where scenes are played: a namespace, and all that is seen of its pods."""

    def __init__(self, installed: Installed, namespace: str, seen: Callable[[], dict[str, Seen]]) -> None:
        self.installed, self.namespace, self._seen = installed, namespace, seen

    def play(self, scenes: Mapping[str, Scene]) -> None:
        """Have all of them begin, and do to each what is to be done to it."""
        self.installed.apply(self.namespace, *(scene.experiment(name) for name, scene in scenes.items()))
        for name, scene in scenes.items():
            if scene.act is not None:
                scene.act(self.installed, self.namespace, self.running(name))

    def running(self, name: str) -> str:
        """The pod of a scene, once its trainer runs."""
        return until(f"{name} runs", partial(self._runs, name), seconds=120)

    def _runs(self, name: str) -> str:
        pods = self.installed.items("pods", self.namespace, "-l", f"trialkeeper.dev/trial={name}-0")
        states = [s["state"] for p in pods for s in p["status"].get("containerStatuses", ()) if s["name"] == "trainer"]
        return str(pods[0]["metadata"]["name"]) if any("running" in state for state in states) else ""

    def end(self, scenes: Mapping[str, Scene]) -> tuple[list[Object], list[str]]:
        """Their documents once all have ended, and what is wrong with how they did."""
        documents, wrong = [], []
        for name, scene in scenes.items():
            trial = self.installed.until_trial(
                self.namespace, f"{name}-0", lambda s: s.get("closed", 0) >= 1, "ended", 180
            )
            entry = next(h for h in trial["status"]["history"] if h["attempt"] == 1)
            found = (entry["class"], entry["reason"])
            if found not in (scene.ending, *scene.either) or not re.search(scene.sentence, entry["message"]):
                wrong.append(f"{name}: {found} {entry['message']}: {self._seen()[f'{name}-0-a1'].last['status']}")
            elif not scene.either:
                expect = {"class": scene.ending[0], "reason": scene.ending[1], "sentence": scene.sentence}
                experiment = {"timeouts": scene.timeouts}
                seen = self._seen()[f"{name}-0-a1"]
                document = recorded(scene.row, name, expect, seen, ours=scene.ours, experiment=experiment)
                documents.append(document | scene.seen)
        return documents, wrong


@pytest.fixture
def theatre(installed: Installed, namespace: str, tmp_path: Path) -> Iterator[Theatre]:
    kubectl = "kubectl" if isinstance(installed.cluster, Named) else str(program("kubectl"))
    command = [kubectl, "get", "pods", "-n", namespace, "--watch", "--output-watch-events", "-o", "json"]
    with watched(command, installed.cluster.environment(), tmp_path / "pods.json") as seen:
        yield Theatre(installed, namespace, seen)


def compare(documents: list[Object], wrong: list[str]) -> None:
    """What was seen comes to what was said, by the table too, and is what was recorded before."""
    assert not wrong, "\n".join(wrong)
    if os.environ.get("TRIALKEEPER_RECORD"):
        recording.write(documents)
    known, rows = recording.read(), {(row.row, row.expect.get("class"), row.expect["reason"]) for row in read()}
    for document in documents:
        title, expect = document["title"], document["expect"]
        assert shape(document) == shape(known[title]), title
        if "refusal" not in document:
            assert (document["row"], expect["class"], expect["reason"]) in rows, title
            judged = told(Row(**document))
            assert (judged.class_, judged.reason) == (expect["class"], expect["reason"]), title
            assert re.search(expect["sentence"], judged.sentence), title


@pytest.mark.timeout(500)
def test_a_real_kubelets_endings_are_those_of_the_table(theatre: Theatre) -> None:
    theatre.play(SCENES)
    compare(*theatre.end(SCENES))


GIB = 1 << 30


@contextmanager
def wanting_memory(installed: Installed, node: str, threshold: str) -> Iterator[None]:
    """A node whose kubelet evicts when less memory is free, and says so for a while after."""
    hard = {"memory.available": threshold, "nodefs.available": "1%", "imagefs.available": "1%"}
    kubelet = installed.hosts.node(node)
    kubelet.restart_kubelet(evictionHard=hard, evictionPressureTransitionPeriod="60s")
    try:
        yield
    finally:
        kubelet.restart_kubelet()
        installed.await_nodes()


def free_memory(installed: Installed, node: str) -> int:
    """Bytes, as the node's kubelet counts them."""
    summary = json.loads(installed.kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/stats/summary"))
    return int(summary["node"]["memory"]["availableBytes"])


def admitted_no_more(installed: Installed, theatre: Theatre, node: str, scene: Scene) -> tuple[list[Object], list[str]]:
    """What comes of a pod that ran when its kubelet starts anew, in want of memory, and does not take it up again.

    A kubelet that hears of the pod before it has looked at its memory takes it up and evicts it, which is row 17: that
    is another story, and told again.
    """
    for time in range(1, 5):
        name = f"readmitted-{time}"
        theatre.play({name: scene})
        theatre.running(name)
        with wanting_memory(installed, node, "98%"):
            documents, wrong = theatre.end({name: scene})
        if not any("TerminationByKubelet" in line for line in wrong):
            break
    return documents, wrong


@pytest.mark.timeout(700)
def test_what_nodes_do_to_pods_is_that_of_the_table(installed: Installed, theatre: Theatre) -> None:
    (store,) = installed.items("pods", SYSTEM, "-l", "app.kubernetes.io/component=store")
    (node,) = set(installed.hosts.nodes) - {store["spec"]["nodeName"]}
    lead_from(installed, store["spec"]["nodeName"])  # so that somebody sees what becomes of the other one's pods
    sleeps = "exec sleep 3600"
    tainted = Scene(14, ("Preempted", "DeletionByTaintManager"), "got a taint", sleeps, pod=on(node))
    drained = Scene(12, ("Preempted", "EvictionByEvictionAPI"), "Eviction API", sleeps, pod=on(node))
    rejected = {
        "no-cpu": Scene(21, ("Infrastructure", "OutOfcpu"), "rejected", container=HUGE, pod={"nodeName": node}),
        "no-label": Scene(21, ("Infrastructure", "NodeAffinity"), "rejected", pod=on("elsewhere", nodeName=node)),
    }
    takes = {"command": ["python", "-c", "x = bytearray(b'x') * (4 << 30); import time; time.sleep(3600)"]}
    pressed = Scene(17, ("Preempted", "TerminationByKubelet"), "low on resource: memory", container=takes, pod=on(node))
    refusal = (21, ("Infrastructure", "Evicted"), "had condition: .MemoryPressure")
    refused = Scene(*refusal, pod={"nodeName": node})
    readmitted = Scene(*refusal, sleeps, pod=on(node), seen={"title": "recorded: readmitted"})
    silent = Scene(
        23, ("Lost", "NodeLost"), "does not answer", sleeps, pod=on(node), seen={"silent": True, "gone": False}
    )
    orphan = Scene(24, ("Preempted", "DeletionByPodGC"), "the pod's node is gone", sleeps, pod=on(node))

    theatre.play({"drained": drained, **rejected})
    theatre.running("drained")
    with installed.drained(node, "trialkeeper.dev/trial=drained-0"):
        found = [theatre.end({"drained": drained, **rejected})]
    theatre.play({"tainted": tainted})
    theatre.running("tainted")
    with installed.tainted(node, "test/spot=gone:NoExecute"):
        found.append(theatre.end({"tainted": tainted}))
    with wanting_memory(installed, node, str(free_memory(installed, node) - 2 * GIB)):
        theatre.play({"pressed": pressed})
        found.append(theatre.end({"pressed": pressed}))
        theatre.play({"pressure": refused})
        found.append(theatre.end({"pressure": refused}))
    found.append(admitted_no_more(installed, theatre, node, readmitted))
    host = installed.hosts.node(node)
    try:
        theatre.play({"silent": silent})
        theatre.running("silent")
        host.stop_kubelet()
        found.append(theatre.end({"silent": silent}))
        host.start()
        installed.await_nodes()
        theatre.play({"orphan": orphan})
        theatre.running("orphan")
        host.stop_kubelet()
        installed.kubectl("delete", "node", node)
        found.append(theatre.end({"orphan": orphan}))
    finally:
        host.start()
        installed.await_nodes()
    compare([d for documents, _ in found for d in documents], [line for _, lines in found for line in lines])


def test_a_quotas_refusal_is_that_of_the_table(installed: Installed, namespace: str) -> None:
    installed.kubectl("create", "quota", "team", "-n", namespace, "--hard=pods=0")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "exp-0-a1"}}
    pod |= {"spec": {"containers": [{"name": "trainer", "image": IMAGE}]}}

    def refused() -> str:
        try:
            installed.kubectl("create", "-n", namespace, "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
        except CommandFailed as error:
            return str(error)
        return ""

    said = re.search(r"Error from server \((\w+)\): (?:error when creating \S+: )?(pods .*)", until("a quota", refused))
    assert said is not None
    expect = {"reason": "QuotaExceeded", "sentence": "has no room: .*exceeded quota: team", "phase": "Waiting"}
    refusal = {"code": 403, "body": {"reason": said[1], "message": said[2].strip()}}
    document = {"row": 29, "title": "recorded: quota", "source": "recorded", "refusal": refusal, "expect": expect}
    compare([document], [])
    installed.apply(namespace, Scene(29, ("", ""), "").experiment("quota"))
    trial = installed.until_trial(namespace, "quota-0", lambda s: s.get("reason") == "QuotaExceeded", "waits")
    assert re.search(expect["sentence"], trial["status"]["message"])
