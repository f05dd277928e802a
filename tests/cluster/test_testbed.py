"""The testbed keeps what tests of clusters take for granted, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testbed import Cluster, cluster, images
from testbed.cgroups import hierarchies
from testbed.plan import NAMESPACES, folder, namespaces, tree
from testbed.shell import CommandFailed
from testbed.wait import until

TESTS = Path(__file__).parents[1]
SERVER = "import http.server as h; h.ThreadingHTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()"
ASK = """
import time, urllib.request
while True:
    try:
        print(urllib.request.urlopen("http://web.{namespace}.svc/", timeout=2).status)
        break
    except OSError:
        time.sleep(0.1)
"""


def pod(name: str, code: str, **more: Any) -> dict[str, Any]:
    """A pod that runs Python code once."""
    container = {"name": "main", "image": images.BASE, "command": ["python3", "-u", "-c", code]}
    container |= more.pop("container", {})
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": [container], **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def apply(testbed: Cluster, namespace: str, *objects: dict[str, Any]) -> None:
    document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    testbed.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(document))


def get(testbed: Cluster, namespace: str, what: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(testbed.kubectl("get", "-n", namespace, what, "-o", "json"))
    return found


def await_phase(testbed: Cluster, namespace: str, name: str, phase: str) -> None:
    condition = f"jsonpath={{.status.phase}}={phase}"
    testbed.kubectl("wait", "-n", namespace, f"--for={condition}", f"pod/{name}", "--timeout=45s")


def await_ready(testbed: Cluster, namespace: str, name: str) -> None:
    testbed.kubectl("wait", "-n", namespace, "--for=condition=Ready", f"pod/{name}", "--timeout=45s")


def test_a_pod_runs_and_is_completed(testbed: Cluster, namespace: str) -> None:
    apply(testbed, namespace, pod("once", "print('hello'); open('/dev/termination-log', 'w').write('last words')"))
    await_phase(testbed, namespace, "once", "Succeeded")
    ending = get(testbed, namespace, "pod/once")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ending["exitCode"], ending["reason"], ending["message"]) == (0, "Completed", "last words")
    assert testbed.kubectl("logs", "-n", namespace, "once") == "hello\n"


def test_too_much_memory_is_an_oom_kill(testbed: Cluster, namespace: str) -> None:
    limits = {"resources": {"limits": {"memory": "48Mi"}}}
    apply(testbed, namespace, pod("greedy", "print(len(bytearray(256 << 20)))", container=limits))
    await_phase(testbed, namespace, "greedy", "Failed")
    ending = get(testbed, namespace, "pod/greedy")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ending["exitCode"], ending["reason"]) == (137, "OOMKilled")


def test_a_service_answers_pods_of_every_node_by_its_name(testbed: Cluster, namespace: str) -> None:
    service = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
    ask = ASK.format(namespace=namespace)
    apply(
        testbed,
        namespace,
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": service},
        pod("web", SERVER, nodeName="node1"),
        pod("near", ask, nodeName="node1"),
        pod("far", ask, nodeName="node2"),
    )
    for name in ("near", "far"):
        await_phase(testbed, namespace, name, "Succeeded")
        assert testbed.kubectl("logs", "-n", namespace, name) == "200\n"
    assert testbed.kubectl("exec", "-n", namespace, "web", "--", "python3", "-c", "print(6 * 7)") == "42\n"


def test_a_taint_disrupts_a_pod(testbed: Cluster, namespace: str) -> None:
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('ready'); signal.pause()"
    apply(testbed, namespace, pod("victim", deaf, nodeName="node2", terminationGracePeriodSeconds=5))
    await_ready(testbed, namespace, "victim")
    testbed.kubectl("taint", "node", "node2", "test=gone:NoExecute")
    try:

        def disrupted() -> list[str]:
            conditions = get(testbed, namespace, "pod/victim")["status"]["conditions"]
            return [c["reason"] for c in conditions if c["type"] == "DisruptionTarget" and c["status"] == "True"]

        assert until("the disruption", disrupted, seconds=20) == ["DeletionByTaintManager"]
        # The condition first, then the deletion.
        until(
            "the deletion", lambda: "deletionTimestamp" in get(testbed, namespace, "pod/victim")["metadata"], seconds=5
        )
    finally:
        testbed.kubectl("taint", "node", "node2", "test=gone:NoExecute-")


def test_a_claim_gets_a_volume_that_anybody_may_write_to(testbed: Cluster, namespace: str) -> None:
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    apply(
        testbed,
        namespace,
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": claim},
        pod(
            "writer",
            "open('/data/file', 'w').write('kept')",
            securityContext={"runAsUser": 65532, "runAsNonRoot": True},
            volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            container={"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
        ),
    )
    await_phase(testbed, namespace, "writer", "Succeeded")
    name = get(testbed, namespace, "pvc/data")["spec"]["volumeName"]
    volume = testbed.plan.folder / "volumes" / name
    assert (volume / "file").read_text() == "kept"
    testbed.kubectl("delete", "-n", namespace, "pod/writer", "pvc/data")
    until("the volume to go", lambda: not volume.exists(), seconds=30)


def test_a_killed_node_comes_back(testbed: Cluster, namespace: str) -> None:
    apply(testbed, namespace, pod("steady", SERVER, nodeName="node2", restartPolicy="Always"))
    await_ready(testbed, namespace, "steady")
    node = testbed.node("node2")
    node.kill()
    assert testbed.plan.tree.pids("node2") == set()
    node.start()

    def restarted() -> bool:
        statuses = get(testbed, namespace, "pod/steady")["status"]["containerStatuses"]
        return bool(statuses[0]["restartCount"] == 1 and "running" in statuses[0]["state"])

    until("the pod to run again", restarted, seconds=60)


def test_the_api_server_comes_back(testbed: Cluster, namespace: str) -> None:
    testbed.restart_apiserver()
    assert get(testbed, namespace, "serviceaccount/default")["metadata"]["name"] == "default"


def test_fake_pods_end_as_they_are_told() -> None:
    told = {"ends-after": "100ms", "exit-code": "75", "message": '{"is": "kept"}'}
    with cluster("fakes", nodes=0, kwok=2) as fakes:
        good, bad = pod("good", ""), pod("bad", "")
        good["metadata"]["annotations"] = {"testbed.trialkeeper.dev/ends-after": "100ms"}
        bad["metadata"]["annotations"] = {f"testbed.trialkeeper.dev/{key}": value for key, value in told.items()}
        apply(fakes, "default", good, bad)
        await_phase(fakes, "default", "good", "Succeeded")
        await_phase(fakes, "default", "bad", "Failed")
        ending = get(fakes, "default", "pod/bad")["status"]["containerStatuses"][0]["state"]["terminated"]
        assert (ending["exitCode"], ending["reason"], ending["message"]) == (75, "Error", '{"is": "kept"}')


def remains(name: str) -> list[object]:
    """Whatever there is of a cluster on this machine."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"/{name}/" in line]
    groups = [group for group in (h / tree(name).name for h in hierarchies()) if group.exists()]
    spaces = list(NAMESPACES.glob(f"{namespaces(name)}*"))
    return [*mounts, *groups, *spaces, *([folder(name)] if folder(name).exists() else [])]


def command_line(pid: int) -> bytes:
    """The command that a process runs; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_down_leaves_nothing() -> None:
    with cluster("gone", nodes=1) as gone:
        gone.load(images.base())
        apply(gone, "default", pod("web", SERVER))
        await_ready(gone, "default", "web")
        started = {pid: command_line(pid) for pid in gone.plan.tree.pids()}
        assert any(b"ThreadingHTTPServer" in command for command in started.values())
        link = Path("/sys/class/net", gone.plan.link)
        assert link.exists()
    assert remains(gone.plan.name) == []
    assert not link.exists()
    assert [pid for pid, command in started.items() if command and command_line(pid) == command] == []


def test_what_was_killed_half_way_is_taken_down_all_the_same() -> None:
    name = f"half-{os.getpid()}"
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "testbed"]
    begun = subprocess.Popen([*command, "up", "--name", name], env=environment, stderr=subprocess.DEVNULL)
    until("etcd to be started", (folder(name) / "processes" / "etcd").exists)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    assert tree(name).pids()
    subprocess.run([*command, "down", "--name", name], env=environment, check=True, timeout=60)
    assert remains(name) == []


def test_a_failed_command_tells_what_it_said(testbed: Cluster) -> None:
    with pytest.raises(CommandFailed, match="nonsense"):
        testbed.kubectl("get", "nonsense")
