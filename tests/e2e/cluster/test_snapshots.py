"""The snapshot outlives its experiment, and a new one goes on where that ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from e2e.cluster.installed import SYSTEM, Installed
from e2e.cluster.test_main_job import longer
from testbed.wait import until
from trialkeeper_operator.decide.restore import TAKEN_OVER
from trialkeeper_operator.state.snapshot import data_of, decode

Object = dict[str, Any]


def phase(installed: Installed, namespace: str, index: int) -> str:
    """Where a trial stands, by the snapshot."""
    _, rows = decode(data_of(installed.get("configmap/digits-snapshot", namespace)))
    return next((str(row["status"].get("phase")) for row in rows if row["spec"]["index"] == index), "")


def rebuilt(installed: Installed, namespace: str, uid: str) -> str:
    """What `trialkeeper snapshot fetch` makes of the bucket alone."""
    access, secret = installed.store_keys()
    with installed.forwarded("service/trialkeeper-store", 9000) as port:
        url = f"s3://trialkeeper/{namespace}/digits-{uid[:8]}?endpoint=http://127.0.0.1:{port}&region=us-east-1"
        done = subprocess.run(
            [sys.executable, "-m", "trialkeeper", "snapshot", "fetch", url],
            env={**os.environ, "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("alone", [False, True], ids=["its snapshot", "its bucket alone"])
def test_a_new_experiment_goes_on_where_a_deleted_one_ended(installed: Installed, namespace: str, alone: bool) -> None:
    installed.apply(namespace, longer(trials=3, epochs=60))
    installed.until_trial(namespace, "digits-0", lambda s: s.get("phase") == "Succeeded", "is through", seconds=150)
    # A snapshot is written every ten seconds; this one shall know of the success.
    until("the snapshot to know of it", lambda: phase(installed, namespace, 0) == "Succeeded", seconds=60)
    before = {t["metadata"]["name"]: t for t in installed.items("trials", namespace)}
    open_trials = [n for n, t in before.items() if t["status"]["phase"] != "Succeeded"]
    uid = installed.get("exp/digits", namespace)["metadata"]["uid"]
    installed.kubectl("delete", "exp", "digits", "-n", namespace)
    until("no trial is left", lambda: not installed.items("trials", namespace))
    if alone:
        installed.kubectl("delete", "configmap", "digits-snapshot", "-n", namespace)
        until("no trainer is left", lambda: not installed.items("pods", namespace))
        installed.kubectl("apply", "-f", "-", stdin=rebuilt(installed, namespace, uid))

    again = longer(trials=3, epochs=60)
    again["spec"]["restoreFrom"] = {"configMap": "digits-snapshot"}
    installed.apply(namespace, again)
    experiment = installed.await_success(namespace, "digits")
    assert experiment["status"]["counts"] == {"Succeeded": 3}
    after = {t["metadata"]["name"]: t for t in installed.items("trials", namespace)}
    through, was = after["digits-0"]["status"], before["digits-0"]["status"]
    assert through["attempt"] == was["attempt"], "what was through has run again"
    for name, metric in was["metrics"].items():
        assert through["metrics"][name] == pytest.approx(metric, rel=1e-5)
    assert through["message"].startswith(TAKEN_OVER)
    for name in before:
        assert after[name]["spec"]["parameters"] == before[name]["spec"]["parameters"]
    # One that had a checkpoint goes on from it, out of a prefix of its own.
    for name in open_trials:
        if (before[name]["status"].get("checkpoint") or {}).get("iteration", 0) > 0:
            first = after[name]["status"]["history"][0]
            assert first["fromIteration"] > 0, json.dumps(after[name]["status"])


@pytest.mark.timeout(300)
def test_it_goes_on_elsewhere_although_the_old_one_still_runs(installed: Installed, namespace: str) -> None:
    """As when a cluster is given up that goes on all the same: two of them train from the same checkpoints."""
    old = longer(trials=1, epochs=120)
    old["spec"]["checkpoint"] = {"frequency": 3, "numToKeep": 1}  # so that it deletes what the other begins from
    installed.apply(namespace, old)
    installed.running(namespace, iteration=9)
    until("a snapshot", lambda: installed.items("configmaps", namespace, "-l", "trialkeeper.dev/experiment=digits"))
    until("the snapshot to know of it", lambda: phase(installed, namespace, 0) == "Running", seconds=60)
    again = json.loads(json.dumps(old))
    again["metadata"]["name"] = "again"
    again["spec"]["restoreFrom"] = {"configMap": "digits-snapshot"}
    installed.apply(namespace, again)
    for name in ("digits", "again"):
        assert installed.await_success(namespace, name)["status"]["counts"] == {"Succeeded": 1}
    one, other = (installed.trial(namespace, f"{name}-0")["status"] for name in ("digits", "again"))
    assert other["history"][0]["fromIteration"] > 0, json.dumps(other)
    assert (one["failures"], other["failures"]) == (0, 0)
    metric = old["spec"]["objectives"][0]["metric"]
    ends = [(s["iteration"], s["metrics"][metric]["last"]) for s in (one, other)]
    assert ends[0] == ends[1], "it is the same training"


@pytest.mark.timeout(300)
def test_without_operator_and_snapshot_the_trials_are_enough(installed: Installed, namespace: str) -> None:
    installed.apply(namespace, longer(trials=2, epochs=100))
    trial = installed.running(namespace)
    until("a snapshot", lambda: installed.items("configmaps", namespace, "-l", "trialkeeper.dev/experiment=digits"))
    installed.kubectl("delete", "pod", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--force")
    installed.kubectl("delete", "configmap", "digits-snapshot", "-n", namespace)
    installed.kubectl("delete", "pod", "-n", namespace, trial["status"]["pod"]["name"])
    experiment = installed.await_success(namespace, "digits")
    assert experiment["status"]["counts"] == {"Succeeded": 2}
    assert (experiment["status"].get("failures", 0), experiment["status"]["disruptions"]) == (0, 1)
    again = installed.trial(namespace, trial["metadata"]["name"])["status"]
    assert again["attempt"] == trial["status"]["attempt"] + 1
    assert again["history"][-1]["fromIteration"] > 0
    until("a snapshot of it all", lambda: phase(installed, namespace, 1) == "Succeeded")


@pytest.mark.timeout(200)
def test_a_restricted_namespace_gets_pods_that_it_admits(installed: Installed, namespace: str) -> None:
    installed.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    installed.apply(namespace, longer(trials=1, epochs=4))
    experiment = installed.await_success(namespace, "digits")
    assert experiment["status"]["counts"] == {"Succeeded": 1}
