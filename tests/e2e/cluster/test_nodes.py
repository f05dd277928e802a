"""A node that goes without a word: its trials go on on the other one, and what lives on there changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from e2e.cluster.installed import SYSTEM, Installed
from e2e.cluster.test_main_job import ended, go_on, longer
from testbed.shell import CommandFailed
from testbed.wait import until
from trialkeeper_operator.api.times import seconds

Object = dict[str, Any]

# Node monitor grace 12 s here (40 to 50 s elsewhere), 20 s of toleration, and until the next checkpoint what seeing,
# starting, a leader elsewhere and saving take on a busy machine; when the container runs again is asserted by itself.
GRACE, USUAL_GRACE = 12, 50
BOUND = GRACE + 20 + 35
# Seconds from a kubelet's death to the trial's next container, in a cluster with the usual grace.
RUNNING, RUNNING_BLINDLY = 90, 260


def lead_from(installed: Installed, node: str) -> None:
    """Have the replica on a node lead, and another one stand by: whoever leads elsewhere is deleted and replaced."""

    def there() -> bool:
        pod = installed.leader()
        if pod["spec"]["nodeName"] == node:
            return True
        installed.kubectl("delete", "pod", "-n", SYSTEM, pod["metadata"]["name"])
        return False

    until(f"a leader on {node}", there, seconds=150)  # each deletion costs a Lease's duration
    installed.kubectl("rollout", "status", "-n", SYSTEM, "deployment", "-l", "app.kubernetes.io/component=operator")


def gap(installed: Installed, namespace: str, again: Object, killed: float) -> float:
    """Seconds that a trial was without a running trainer, as if this cluster waited for nodes as others do.

    From a node's last breath to the start of the next attempt's container, as that one's kubelet says.
    """
    name = again["status"]["pod"]["name"]
    (pod,) = installed.items("pods", namespace, f"--field-selector=metadata.name={name}")
    (status,) = pod["status"]["containerStatuses"]
    state = status["state"].get("running") or status["state"]["terminated"]
    return seconds(state["startedAt"]) - killed - GRACE + USUAL_GRACE


@contextmanager
def in_one_namespace(installed: Installed, namespace: str) -> Iterator[None]:
    """The installation as a team has it that is given one namespace, and no right to read nodes."""
    installed.upgrade("--set", f"watchNamespaces={{{namespace}}}")
    try:
        account = installed.leader()["spec"]["serviceAccountName"]
        with pytest.raises(CommandFailed):
            installed.kubectl("auth", "can-i", "list", "nodes", f"--as=system:serviceaccount:{SYSTEM}:{account}")
        yield
    finally:
        installed.cluster.helm("rollback", "trialkeeper", "-n", SYSTEM, "--wait", "--timeout=180s")
        installed.leader()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("alive", [False, True], ids=["everything on it ends", "its containers live on"])
def test_the_trials_of_a_lost_node_go_on_on_the_other_one(installed: Installed, namespace: str, alive: bool) -> None:
    cluster = installed.hosts
    (store,) = installed.items("pods", SYSTEM, "-l", "app.kubernetes.io/component=store")
    safe = store["spec"]["nodeName"]
    (victim,) = set(cluster.nodes) - {safe}
    installed.apply(namespace, longer(trials=2, epochs=4000))
    trial = installed.running(namespace, off=safe)
    assert installed.node_of(namespace, trial["status"]["pod"]["name"]) == victim
    node = cluster.node(victim)
    if alive:
        # The worst place for it: its process lives on and renews the Lease, and no report can reach it any more.
        lead_from(installed, victim)
    began, killed = time.monotonic(), time.time()
    if alive:
        node.stop_kubelet()
    else:
        node.kill()
    try:
        entry = ended(installed, namespace, trial)
        assert (entry["class"], entry["reason"], entry["node"]) == ("Lost", "NodeLost", victim), entry
        again = go_on(installed, namespace, trial)
        assert time.monotonic() - began < BOUND
        assert gap(installed, namespace, again, killed) < RUNNING
        pod = again["status"]["pod"]["name"]
        assert installed.node_of(namespace, pod) == safe
        # The zombie, if there is one, is fenced: what it writes is of an attempt that is over.
        assert again["status"]["checkpoint"]["attempt"] > trial["status"]["attempt"]
        assert again["status"]["failures"] == 0
    finally:
        node.start()
        installed.await_nodes()
    installed.kubectl("delete", "exp", "digits", "-n", namespace)


@pytest.mark.timeout(600)
def test_an_operator_that_may_not_read_nodes_knows_a_lost_one_by_its_pods(installed: Installed, namespace: str) -> None:
    cluster = installed.hosts
    (store,) = installed.items("pods", SYSTEM, "-l", "app.kubernetes.io/component=store")
    safe = store["spec"]["nodeName"]
    (victim,) = set(cluster.nodes) - {safe}
    with in_one_namespace(installed, namespace):
        installed.apply(namespace, longer(trials=2, epochs=4000))
        trial = installed.running(namespace, off=safe)
        killed = time.time()
        cluster.node(victim).stop_kubelet()
        try:
            entry = ended(installed, namespace, trial, RUNNING_BLINDLY)
            assert (entry["class"], entry["reason"], entry["node"]) == ("Lost", "NodeLost", victim), entry
            again = go_on(installed, namespace, trial)
            assert gap(installed, namespace, again, killed) < RUNNING_BLINDLY
            assert again["status"]["failures"] == 0
        finally:
            cluster.node(victim).start()
            installed.await_nodes()
        installed.kubectl("delete", "exp", "digits", "-n", namespace)
