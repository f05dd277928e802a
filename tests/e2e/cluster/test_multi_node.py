"""A trial of two pods on two nodes, which train together by the name of rank 0: whichever is killed, both go on.

The trainer needs no framework: each iteration the ranks add up what they have found, over a connection to
MASTER_ADDR:MASTER_PORT that breaks as a collective does when one of them is gone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2e.cluster.installed import Installed
from e2e.cluster.test_endings import IMAGE
from e2e.cluster.test_main_job import ended, go_on
from proof import bases, continuity, repeated, resumed, rows
from testbed.wait import until

Object = dict[str, Any]

NODES, ITERATIONS, SIZE = 2, 6000, 50_000

# What both the trainer and the test compute; elementwise, so that every machine comes to the same bits.
STEP = """
import numpy as np

def gradient(weights, rank, iteration):
    return (weights - (np.arange(len(weights)) % (7 + rank) + iteration % 5)) * 0.125

def step(weights, total, world):
    return weights - total * (0.5 / world)
"""

TRAINER = (
    STEP
    + """
import os, socket, time
import trialkeeper

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
size, iterations = int(os.environ["SIZE"]), int(os.environ["ITERATIONS"])
assert trialkeeper.get_context().rank == rank == int(os.environ["PET_NODE_RANK"])
assert world == int(os.environ["PET_NNODES"])


def read(peer):
    parts = bytearray()
    while len(parts) < size * 8:
        part = peer.recv(1 << 20)
        if not part:
            raise ConnectionError("another rank is gone")
        parts += part
    return np.frombuffer(bytes(parts))


def meet():
    if rank == 0:
        listener = socket.create_server(("", where[1]))
        return [listener.accept()[0] for _ in range(world - 1)]
    end = time.monotonic() + 120
    while True:
        try:
            return [socket.create_connection(where, 5)]
        except OSError:  # its name is not known yet, or it does not listen yet
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def added_up(mine):
    if rank:
        peers[0].sendall(mine.tobytes())
        return read(peers[0])
    total = mine + sum(read(peer) for peer in peers)
    for peer in peers:
        peer.sendall(total.tobytes())
    return total


def save(folder):
    np.save(folder / "weights.npy", weights)


checkpoint = trialkeeper.get_checkpoint()
weights, done = np.zeros(size), 0
if checkpoint:
    weights, done = np.load(checkpoint.path / "weights.npy"), checkpoint.iteration
peers = meet()
for peer in peers:
    peer.settimeout(None)
for iteration in range(done + 1, iterations + 1):
    weights = step(weights, added_up(gradient(weights, rank, iteration)), world)
    trialkeeper.report({"loss": float(np.abs(weights).max())}, checkpoint=save if rank == 0 else None)
"""
)


def experiment() -> Object:
    container = {
        "name": "trainer",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", TRAINER],
        "env": [{"name": "SIZE", "value": str(SIZE)}, {"name": "ITERATIONS", "value": str(ITERATIONS)}],
        "resources": {"requests": {"cpu": "100m"}},
    }
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"trialkeeper.dev/experiment": "both"}},
    }
    return {
        "apiVersion": "trialkeeper.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": "both"},
        "spec": {
            "objectives": [{"metric": "loss"}],
            "parameters": [{"name": "lr", "fixed": 1}],
            "nodes": NODES,
            "checkpoint": {"frequency": 10},
            "failurePolicy": {"backoffSeconds": 1},
            "timeouts": {"graceSeconds": 20},
            "template": {"spec": {"containers": [container], "topologySpreadConstraints": [spread]}},
        },
    }


def alone() -> np.ndarray:
    """The weights of a training that nobody disturbed, both ranks in this process."""
    made: dict[str, Any] = {}
    exec(STEP, made)
    weights = np.zeros(SIZE)
    for iteration in range(1, ITERATIONS + 1):
        total = sum(made["gradient"](weights, rank, iteration) for rank in range(NODES))
        weights = made["step"](weights, total, NODES)
    return weights


def final_weights(prefix: Path) -> np.ndarray:
    newest = max((prefix / "manifests").glob("*.json"), key=lambda p: p.name)
    manifest = json.loads(newest.read_text())
    assert manifest["iteration"] == ITERATIONS
    (entry,) = (e for e in manifest["files"] if e["path"].endswith("weights.npy"))
    stored = (prefix / entry["key"]).read_bytes()[entry["offset"] : entry["offset"] + entry["size"]]
    file = prefix / "weights.npy"
    file.write_bytes(stored)
    found: np.ndarray = np.load(file)
    return found


def rank(trial: Object, number: int) -> str:
    return f"both-0-a{trial['status']['attempt']}-r{number}"


@pytest.mark.timeout(480)
def test_two_pods_train_as_one_and_each_of_them_may_go(installed: Installed, namespace: str, tmp_path: Path) -> None:
    installed.apply(namespace, experiment())
    trial = installed.running(namespace, iteration=10)
    assert len({installed.node_of(namespace, rank(trial, number)) for number in range(NODES)}) == NODES
    assert [s["metadata"]["name"] for s in installed.items("services", namespace)] == ["both-0"]

    installed.evict(namespace, rank(trial, 1))
    entry = ended(installed, namespace, trial)
    assert (entry["class"], entry["reason"], entry["rank"]) == ("Preempted", "EvictionByEvictionAPI", 1), entry
    assert entry.get("lostIterations", 0) == 0
    go_on(installed, namespace, trial)

    trial = installed.running(namespace, iteration=20)
    uid = trial["status"]["pod"]["others"][0]
    node = installed.node_of(namespace, rank(trial, 1))
    installed.kill_trainer(uid)
    entry = ended(installed, namespace, trial)
    assert (entry["class"], entry["reason"], entry["rank"]) == ("Infrastructure", "Killed", 1), entry
    assert entry["node"] == node
    again = go_on(installed, namespace, trial)
    assert node not in {installed.node_of(namespace, rank(again, number)) for number in range(NODES)}

    trial = installed.running(namespace, iteration=30)
    installed.delete_pod(namespace, rank(trial, 0), force=True)
    entry = ended(installed, namespace, trial)
    assert entry["class"] in ("Preempted", "Lost"), entry
    assert entry["rank"] == 0

    found = installed.await_success(namespace, "both", seconds=240)
    until("the Service to go", lambda: not installed.items("services", namespace), seconds=30)
    (trial,) = installed.items("trials", namespace)
    assert found["status"].get("failures", 0) == 0
    uid = found["metadata"]["uid"]
    prefix = installed.mirror(f"{namespace}/both-{uid[:8]}", tmp_path) / "00000"
    assert [*continuity(prefix), *resumed(prefix)] == []
    assert repeated(prefix) == trial["status"]["lostWork"]["iterations"]
    reached = {row["training_iteration"] for results in rows(prefix).values() for row in results}
    assert reached == set(range(1, ITERATIONS + 1))
    assert len([base for base in bases(prefix).values() if base[1]]) >= 3
    assert np.array_equal(final_weights(prefix), alone())
