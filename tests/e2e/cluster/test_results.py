"""Results of an Experiment in the cluster, read from this machine: through the API server, with a person's rights."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster.installed import SYSTEM, Installed
from e2e.cluster.test_main_job import go_on, longer
from proof import curve, digest, weights
from testbed import Cluster
from testbed.programs import program
from trialkeeper_operator.api import names

JANE = "jane"


def environment(installed: Installed, **more: str) -> dict[str, str]:
    """As a person has it: kubectl, a kubeconfig, and no keys to any store."""
    env = {k: v for k, v in installed.cluster.environment().items() if not k.startswith(("AWS_", "TRIALKEEPER_"))}
    own = [str(program("kubectl").parent)] if isinstance(installed.cluster, Cluster) else []
    return env | {"PATH": os.pathsep.join([*own, os.environ["PATH"]])} | more


def trialkeeper(
    installed: Installed, *arguments: str, folder: Path, timeout: float = 120, **more: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trialkeeper", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(installed, **more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def forwards() -> list[int]:
    """kubectl processes that forward a port of a Service called store."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"port-forward" in line and b"--address=127.0.0.1" in line and b"trialkeeper-store" in line:
            found.append(int(entry.name))
    return found


@pytest.mark.timeout(400)
def test_results_and_checkpoints_come_through_the_api_server(
    installed: Installed, namespace: str, tmp_path: Path
) -> None:
    installed.apply(namespace, longer(trials=2, epochs=40))
    where = f"exp/{namespace}/digits"
    with (tmp_path / "followed.jsonl").open("w") as out, (tmp_path / "followed.err").open("w") as err:
        following = subprocess.Popen(
            [sys.executable, "-m", "trialkeeper", "results", where, "--format", "json", "--follow"],
            env=environment(installed),
            stdout=out,
            stderr=err,
        )
    trial = installed.running(namespace)
    installed.delete_pod(namespace, trial["status"]["pod"]["name"])
    go_on(installed, namespace, trial)
    experiment = installed.await_success(namespace, "digits")
    assert following.wait(90) == 0, (tmp_path / "followed.err").read_text()

    done = trialkeeper(installed, "results", where, "--format", "csv", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    table = list(csv.DictReader(done.stdout.splitlines()))
    followed: dict[str, dict[int, Any]] = {"digits-0": {}, "digits-1": {}}
    for line in (tmp_path / "followed.jsonl").read_text().splitlines():
        row = json.loads(line)
        followed[row["trial_id"]][row["training_iteration"]] = row["val/loss"]
    uid = experiment["metadata"]["uid"][:8]
    for index in (0, 1):
        prefix = installed.mirror(f"{namespace}/digits-{uid}/{index:05d}", tmp_path / "mirror")
        own = [row for row in table if row["trial_id"] == f"digits-{index}"]
        assert [int(row["training_iteration"]) for row in own] == [*range(1, 41)]
        expected = {i: row["val/loss"] for i, row in curve(prefix).items()}
        assert {int(row["training_iteration"]): float(row["val/loss"]) for row in own} == expected
        assert followed[f"digits-{index}"] == expected

    done = trialkeeper(installed, "results", where, folder=tmp_path)
    assert f"best  {experiment['status']['best']['trial']}: val/loss" in done.stdout, done.stderr
    done = trialkeeper(installed, "checkpoints", where, "1", "--format", "json", folder=tmp_path)
    listed = json.loads(done.stdout)
    assert (listed[0]["iteration"], listed[0]["whole"]) == (40, True)
    final = weights(tmp_path / "mirror" / f"{namespace}/digits-{uid}/00001")
    for name in ("digits-1@40", "best@best", "digits-1@40"):
        target = tmp_path / f"out-{name}"
        done = trialkeeper(installed, "download", where, name, "--to", str(target), folder=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
        found = {"state.npz": digest((target / "state.npz").read_bytes())}
        assert name != "digits-1@40" or final == (40, found)
    assert forwards() == []


@pytest.mark.timeout(200)
def test_who_may_not_read_the_stores_keys_is_told_what_to_ask_for(
    installed: Installed, namespace: str, tmp_path: Path
) -> None:
    spec = longer(trials=1, epochs=3)
    installed.apply(namespace, spec)
    installed.await_success(namespace, "digits")
    installed.kubectl("create", "rolebinding", "jane", "--clusterrole=view", f"--user={JANE}", "-n", namespace)
    config = yaml.safe_load(Path(environment(installed)["KUBECONFIG"]).read_text())
    for user in config["users"]:
        user["user"]["as"] = JANE
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    where = f"exp/{namespace}/digits"

    def asked() -> tuple[int, str]:
        done = trialkeeper(installed, "results", where, folder=tmp_path, KUBECONFIG=str(tmp_path / "kubeconfig"))
        return done.returncode, done.stderr + done.stdout

    code, said = asked()
    assert code == 1
    assert f"in namespace {SYSTEM}: ask for a Role there that may get" in said
    assert said.count("\n") == 1
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": f"results-{namespace}"},
        "rules": [
            {"apiGroups": [""], "resources": ["configmaps", "secrets", "services", "pods"], "verbs": ["get", "list"]},
            {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list"]},
            {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["create"]},
        ],
    }
    installed.apply(SYSTEM, role)
    try:
        installed.kubectl(
            "create",
            "rolebinding",
            f"results-{namespace}",
            f"--role=results-{namespace}",
            f"--user={JANE}",
            "-n",
            SYSTEM,
        )
        code, said = asked()
        assert (code, "best  digits-0" in said) == (0, True), said
        done = trialkeeper(installed, "results", f"exp/{namespace}/nothing", folder=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"there is no {names.EXPERIMENT} nothing in namespace {namespace}" in done.stderr
    finally:
        installed.kubectl("delete", "role,rolebinding", f"results-{namespace}", "-n", SYSTEM)
