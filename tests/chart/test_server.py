"""The chart on a real API server: what is rendered is valid, what helm looks up is kept, what cannot work is refused.

A control plane is brought up for this alone, or TRIALKEEPER_TEST_KUBECONFIG names one: CRDs and StorageClasses are made
and deleted, so it has none of either before. No pod needs to run.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import yaml

from chart.rendering import CHART, MODES, Refused, objects, one_line, pod_specs, tool
from testbed import cluster
from testbed.wait import until

FOREIGN = {"ServiceMonitor", "PrometheusRule"}
STANDARD = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "nobody"}
CRDS = ("crd", "experiments.trialkeeper.dev", "trials.trialkeeper.dev")
ENVIRONMENT: dict[str, str] = {}  # in which programs find the cluster


def run(program: str, *arguments: str, stdin: str | None = None) -> str:
    """What a program says of the cluster.

    :raises Refused: if it fails.
    """
    command = [tool(program), *arguments]
    done = subprocess.run(
        command, input=stdin, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    return run("kubectl", *arguments, stdin=stdin)


def get(*arguments: str) -> Any:
    return json.loads(kubectl("get", "-o", "json", *arguments))


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """A cluster that has nothing of what is made here."""
    with ExitStack() as stack:
        if named := os.environ.get("TRIALKEEPER_TEST_KUBECONFIG"):
            ENVIRONMENT.update({**os.environ, "KUBECONFIG": named})
        else:
            ENVIRONMENT.update(stack.enter_context(cluster("chart", nodes=0, storage_class=False)).environment())
        if kubectl("get", "--ignore-not-found", *CRDS):
            pytest.fail("this cluster has Trialkeeper's CRDs already: these tests would delete them")
        if get("storageclass")["items"]:
            pytest.fail("this cluster has a StorageClass: what a cluster without one refuses cannot be seen here")
        yield


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace that admits restricted pods only."""
    name = f"chart-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl(
        "create",
        "-f-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
    )
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def other(namespace: str) -> Iterator[str]:
    kubectl("create", "namespace", f"{namespace}-b")
    yield f"{namespace}-b"
    kubectl("delete", "namespace", f"{namespace}-b", "--wait=false")


@pytest.fixture
def release(namespace: str) -> Iterator[str]:
    """The name of a release that is gone afterwards."""
    yield "tk"
    run("helm", "uninstall", "tk", "--namespace", namespace, "--ignore-not-found")
    # A CRD that is deleted before its objects can be listed stays for a minute or two: the server says
    # "InstanceDeletionFailed: could not list instances: storage is (re)initializing" and comes back to it later.
    for crd in kubectl("get", "--ignore-not-found", "-o", "name", *CRDS).split():
        until(f"objects of {crd} to be listed", partial(can_be_listed, crd))
        kubectl("delete", crd)


def can_be_listed(crd: str) -> bool:
    plural, _, group = crd.rpartition("/")[2].partition(".")
    try:
        return bool(kubectl("get", "--raw", f"/apis/{group}/v1alpha1/{plural}"))
    except Refused:
        return False


def install(name: str, namespace: str, *sets: str, flags: Sequence[str] = ()) -> str:
    """Install a release, or upgrade it."""
    values = [part for value in sets for part in ("--set", value)]
    return run("helm", "upgrade", "--install", name, str(CHART), "-n", namespace, *values, *flags)


@pytest.mark.parametrize("mode", MODES)
def test_the_server_takes_every_object(mode: str, namespace: str, other: str) -> None:
    """Strictly: a field that is not known is an error, and each pod is admitted as restricted.

    Service accounts come first and stay, as when helm installs: no pod is admitted without its own.
    """
    lists = [f'watchNamespaces=["{namespace}","{other}"]'] if mode == "namespaced" else []
    found = [o for o in objects(mode, *lists, namespace=namespace) if o["kind"] not in FOREIGN]
    for name, metadata, spec in pod_specs(found):
        meta = {**metadata, "name": f"{name}-pod", "namespace": namespace}
        found.append({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    accounts = [o for o in found if o["kind"] == "ServiceAccount"]
    rest = [o for o in found if o["kind"] != "ServiceAccount"]
    for made, how in ((accounts, []), (rest, ["--dry-run=server"])):
        answer = kubectl("create", *how, "--validate=strict", "-f-", stdin=yaml.safe_dump_all(made))
        assert answer.count("created") == len(made)


def test_keys_and_certificates_live_through_upgrades_and_reinstalls(namespace: str, release: str) -> None:
    def secrets() -> dict[str, Any]:
        return {s: get("-n", namespace, "secret", f"tk-trialkeeper-{s}")["data"] for s in ("store", "report-tls")}

    install(release, namespace, "store.persistence.storageClass=any")
    first = secrets()
    assert set(first["store"]) == {"access-key", "secret-key"}
    assert set(first["report-tls"]) == {"ca.crt", "tls.crt", "tls.key"}
    install(release, namespace, "store.persistence.storageClass=any", "logLevel=debug")
    assert secrets() == first
    run("helm", "uninstall", release, "-n", namespace)
    kept = get("-n", namespace, "secret,pvc")["items"]
    assert {(o["kind"], o["metadata"]["name"]) for o in kept} == {
        ("Secret", "tk-trialkeeper-store"),
        ("PersistentVolumeClaim", "tk-trialkeeper-store"),
    }
    assert len(get("crd")["items"]) == 2
    install(release, namespace, "store.persistence.storageClass=any")
    assert secrets()["store"] == first["store"]


def test_a_certificate_near_its_end_is_made_anew(namespace: str, release: str) -> None:
    install(release, namespace, "storage.mode=none")
    name = ["-n", namespace, "secret", "tk-trialkeeper-report-tls"]
    first = get(*name)["data"]
    kubectl("annotate", "--overwrite", *name, "trialkeeper.dev/expires=1800000000")
    install(release, namespace, "storage.mode=none")
    second = get(*name)
    assert second["data"]["tls.crt"] != first["tls.crt"]
    assert int(second["metadata"]["annotations"]["trialkeeper.dev/expires"]) > 1800000000


def test_a_second_installation_is_refused(namespace: str, release: str, other: str) -> None:
    install(release, namespace, "storage.mode=none")
    for more in (["crds.enabled=false"], ["crds.enabled=false", f"watchNamespaces={{{other}}}", "crds.enabled=true"]):
        with pytest.raises(Refused) as refused:
            install("second", other, "storage.mode=none", *more)
        assert f"Trialkeeper release {namespace}/tk serves every namespace of this cluster already" in one_line(refused)


def test_namespaces_are_shared_out(namespace: str, release: str, other: str) -> None:
    """Two installations with lists that do not meet are fine; one that would serve a served namespace is refused."""
    install(release, namespace, "storage.mode=none", f"watchNamespaces={{{namespace}}}")
    alone = ["storage.mode=none", "crds.enabled=false"]
    for lists in ([], [f"watchNamespaces={{{other},{namespace}}}"]):
        with pytest.raises(Refused) as refused:
            install("second", other, *alone, *lists)
        assert f"Trialkeeper release {namespace}/tk serves namespace {namespace} already" in one_line(refused)
    try:
        install("second", other, *alone, f"watchNamespaces={{{other}}}")
    finally:
        run("helm", "uninstall", "second", "-n", other, "--ignore-not-found")


def test_a_store_without_a_storage_class_is_refused(namespace: str, release: str) -> None:
    named = {**STANDARD, "metadata": {"name": "fast"}}
    kubectl("create", "-f-", stdin=json.dumps(named))
    try:
        with pytest.raises(Refused) as refused:
            install(release, namespace)
        assert "this cluster has no default StorageClass (it has: fast)" in one_line(refused)
        kubectl("annotate", "storageclass", "fast", "storageclass.kubernetes.io/is-default-class=true")
        assert "one pod, one volume" in install(release, namespace)
    finally:
        kubectl("delete", "storageclass", "fast")
    install(release, namespace, "logLevel=debug")  # an upgrade asks no more


def test_what_a_former_release_has_left_can_be_taken_over(namespace: str, release: str, other: str) -> None:
    install("former", other, "storage.mode=none")
    run("helm", "uninstall", "former", "-n", other)
    with pytest.raises(Refused, match="invalid ownership metadata"):
        install(release, namespace, "storage.mode=none")
    install(release, namespace, "storage.mode=none", "commonLabels.taken=over", flags=["--take-ownership"])


def test_checks_can_be_left_out(namespace: str, release: str) -> None:
    install(release, namespace, "checks.enabled=false")


def test_a_list_of_namespaces_needs_no_rights_to_the_cluster(namespace: str, release: str) -> None:
    """Whoever may do everything in a namespace, and nothing elsewhere, can install there if the CRDs are there."""
    install(release, namespace, "storage.mode=none")
    run("helm", "uninstall", release, "-n", namespace)
    role = ["role", "boss", "-n", namespace, "--verb=*", "--resource=*.*"]
    kubectl("create", *role)
    kubectl("create", "rolebinding", "boss", "-n", namespace, "--role=boss", "--user=boss")
    values = ["crds.enabled=false", f"watchNamespaces={{{namespace}}}", "store.persistence.storageClass=any"]
    install(release, namespace, *values, flags=["--kube-as-user=boss"])
    with pytest.raises(Refused, match="forbidden"):
        install(release, namespace, "crds.enabled=false", "checks.enabled=false", flags=["--kube-as-user=boss"])
