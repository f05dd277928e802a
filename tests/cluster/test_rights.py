"""The operator with the rights that the chart gives it, and no others: everything works, nothing is forbidden."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.plane import study
from cluster.pods import Service, Tokens, certify
from cluster.replicas import Replica, replica
from testbed import Cluster
from testbed.wait import until
from trialkeeper.contract import REPORT_PATH, Message

CHART = Path(__file__).parents[2] / "charts" / "trialkeeper"
VERSION = "1.34.0"  # for which the chart is rendered
RIGHTS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
GROUP = "/apis/trialkeeper.dev/v1alpha1/namespaces"


def install(cluster: Cluster, release: str, namespace: str, *options: str) -> tuple[dict[str, Any], str]:
    """Apply what the chart says of rights; the operator's configuration as the chart writes it, and its account."""
    text = cluster.helm("template", release, str(CHART), "--namespace", namespace, "--kube-version", VERSION, *options)
    objects = [o for o in yaml.safe_load_all(text) if o]
    rights = [o for o in objects if o["kind"] in RIGHTS]
    document = {"apiVersion": "v1", "kind": "List", "items": rights}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    (operator,) = [o for o in objects if o["kind"] == "Deployment"]
    (config,) = [o for o in objects if o["kind"] == "ConfigMap" and "config.yaml" in o.get("data", {})]
    parsed: dict[str, Any] = yaml.safe_load(config["data"]["config.yaml"])
    return parsed, str(operator["spec"]["template"]["spec"]["serviceAccountName"])


def kubeconfig(cluster: Cluster, namespace: str, account: str, file: Path) -> Path:
    """A kubeconfig of a service account."""
    token = cluster.kubectl("create", "token", account, "--namespace", namespace, "--duration", "1h").strip()
    config = json.loads(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    file.write_text(json.dumps(config))
    return file


def space(cluster: Cluster) -> str:
    name = f"c-{time.time_ns() % 10**9}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
    return name


def own_pod(cluster: Cluster, namespace: str, name: str) -> None:
    """The pod that the operator would be in, for the label of the leader."""
    spec = {"containers": [{"name": "operator", "image": "t"}]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(body))


@pytest.fixture
def alone(fakes: Cluster) -> None:
    """Nothing is left for an operator that serves every namespace."""
    fakes.kubectl("delete", "experiments,trials", "--all", "--all-namespaces", "--wait=false")
    until("all trials to go", lambda: not fakes.kubectl("get", "trials", "-A", "-o", "name"), seconds=60)


@pytest.mark.usefixtures("alone")
@pytest.mark.timeout(150)
@pytest.mark.parametrize("mode", ["cluster", "namespaces"])
def test_the_charts_rights_are_enough(fakes: Cluster, tmp_path: Path, mode: str) -> None:
    home, served = space(fakes), space(fakes)
    watched = [served] if mode == "namespaces" else []
    options = [f"--set=watchNamespaces={{{served}}}"] if watched else []
    config, account = install(fakes, f"r{home}", home, *options)
    own_pod(fakes, home, "op")
    tls = certify(tmp_path / "tls")
    settings = {
        "lease": config["lease"],
        "sweepSeconds": 2,
        "statusSeconds": 1,
        "report": {"url": config["report"]["url"], "tlsDir": str(tls)},
    }
    key = kubeconfig(fakes, home, account, tmp_path / "kubeconfig")
    with replica(fakes, tmp_path, "op", home, watched, kubeconfig=key, settings=settings) as running:
        until("it to lead", running.leads, seconds=30)
        everything_works(fakes, running, served, tls)
        until("a sweep", lambda: running.calls()["GET", "Trial"] > 1, seconds=20)
        codes = {labels["code"] for labels, value in running.samples("trialkeeper_api_requests_total") if value}
        assert not codes & {"401", "403", "0"}, running.samples("trialkeeper_api_requests_total")
        pod = json.loads(fakes.kubectl("get", "pod", "op", "-n", home, "-o", "json"))
        assert pod["metadata"]["labels"]["trialkeeper.dev/leader"] == "true"
        assert running.stop() == 0
        assert [line for line in running.lines() if line["level"] in ("warning", "error")] == []
    lease = json.loads(fakes.kubectl("get", "lease", config["lease"], "-n", home, "-o", "json"))
    assert not lease["spec"]["holderIdentity"]
    if mode == "cluster":
        fakes.kubectl("delete", "clusterrolebinding", "-l", f"app.kubernetes.io/instance=r{home}")


def everything_works(fakes: Cluster, running: Replica, namespace: str, tls: Path) -> None:
    """An experiment with a disruption, a live report, and what people see of it."""
    api = fakes.control.api()
    api.request("POST", f"{GROUP}/{namespace}/experiments", study("exp", namespace, maxTrials=2, ends_after="6s"))

    def pod(name: str) -> Any:
        found = {p["metadata"]["name"]: p for p in api.items(f"/api/v1/namespaces/{namespace}/pods")}
        return found[name] if name in found and found[name]["status"]["phase"] == "Running" else None

    first = until("the first pod", lambda: pod("exp-0-a1"), seconds=30)
    service = Service(running.report_port, tls / "ca.crt")
    said = Message(attempt=1, time=time.time(), iteration=1, podUid=first["metadata"]["uid"])
    token = Tokens(fakes).bound(first)
    assert service.ask(REPORT_PATH, f"Bearer {token}", said.encode().encode())[0] == 200
    fakes.kubectl("delete", "pod", "exp-1-a1", "-n", namespace, "--wait=false")
    fakes.kubectl("wait", "-n", namespace, "--for=condition=Succeeded", "exp/exp", "--timeout=60s")
    trial = api.get(f"{GROUP}/{namespace}/trials/exp-1")["status"]
    assert (trial["attempt"], trial["disruptions"], trial["phase"]) == (2, 1, "Succeeded")
    reasons = {e["reason"] for e in api.items(f"/api/v1/namespaces/{namespace}/events")}
    assert {"Started", "Preempted", "Succeeded", "Finished"} <= reasons
    assert api.get(f"/api/v1/namespaces/{namespace}/configmaps/exp-snapshot")["binaryData"]
