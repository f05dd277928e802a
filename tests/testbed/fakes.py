"""Fake nodes by kwok: a thousand pods on two cores, each of which ends as its annotations say."""

from __future__ import annotations

import json
from pathlib import Path

from testbed.control import GROUP, Control
from testbed.programs import program
from testbed.shell import run
from testbed.wait import until

STAGES = Path(__file__).parent / "kwok"
FAKE = {"kwok.x-k8s.io/node": "fake"}


def node(index: int) -> dict[str, object]:
    """A fake node as kwok finds it; it has more of everything than this machine."""
    name = f"fake{index}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": FAKE,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "type": "kwok"},
        },
        "status": {
            "allocatable": {"cpu": "128", "memory": "1Ti", "pods": "1000"},
            "capacity": {"cpu": "128", "memory": "1Ti", "pods": "1000"},
        },
    }


def start(control: Control, count: int) -> None:
    """Start kwok and make the nodes that it pretends to be."""
    configs = [part for stage in sorted(STAGES.glob("*.yaml")) for part in ("--config", str(stage))]
    options = ("--manage-all-nodes=false", "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake")
    command = [str(program("kwok")), f"--kubeconfig={control.kubeconfig('admin')}", *options, *configs]
    command += [f"--node-ip={control.plan.control}", "--node-lease-duration-seconds=40"]
    control.processes.start("kwok", [*control.plan.enter("control"), *command], group=GROUP)
    nodes = {"apiVersion": "v1", "kind": "List", "items": [node(index) for index in range(1, count + 1)]}
    run(program("kubectl"), f"--kubeconfig={control.kubeconfig('admin')}", "apply", "-f", "-", stdin=json.dumps(nodes))
    api = control.api()

    def ready() -> bool:
        conditions = [c for n in api.items("/api/v1/nodes") for c in n["status"].get("conditions", ())]
        return [c["status"] for c in conditions if c["type"] == "Ready"].count("True") >= count

    until("the fake nodes to be ready", ready)
