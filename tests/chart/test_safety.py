"""What must hold in every mode: no rights that are not needed, no pod that is not restricted, no name too long."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import ssl
from pathlib import Path

import pytest
import yaml

from chart.rendering import CHART, MODES, ROOT, Object, config, find, objects, pod_specs, rules, text
from chart.restricted import breaches
from trialkeeper_operator.serve import settings

NAMESPACED = "namespaced"
LONG = "r" * 53  # as long as helm takes a release's name


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_nobody_reads_secrets_or_grants_rights(mode: str) -> None:
    for role, rule in rules(objects(mode)):
        name = role["metadata"]["name"]
        for resource in rule.get("resources", []):
            assert resource.split("/")[0] not in ("secrets", "serviceaccounts", "roles", "rolebindings", "*"), name
            assert resource not in ("pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers"), name
        assert "*" not in rule["verbs"] + rule.get("apiGroups", []), name
        assert not {"impersonate", "escalate", "bind"} & set(rule["verbs"]), name


def test_leases_of_others_cannot_be_changed(mode: str) -> None:
    for _, rule in rules(objects(mode)):
        if "leases" in rule.get("resources", []) and {"update", "patch", "delete"} & set(rule["verbs"]):
            assert set(rule["resourceNames"]) <= {"trialkeeper-serves", config(objects(mode))["lease"]}


def test_nothing_but_crds_is_of_the_whole_cluster_with_a_list_of_namespaces() -> None:
    found = objects(NAMESPACED)
    assert not [o for o in found if o["kind"].startswith("Cluster")]
    assert all("namespace" in o["metadata"] for o in found)
    for namespace in ("team-a", "team-b"):
        role = next(o for o in found if o["kind"] == "Role" and o["metadata"]["namespace"] == namespace)
        assert role["metadata"]["labels"]["trialkeeper.dev/serves"] == "this-namespace"
    assert not [rule for _, rule in rules(found) if {"nodes", "namespaces", "tokenreviews"} & set(rule["resources"])]


def test_a_right_of_everybody_is_to_nothing_that_there_is(mode: str) -> None:
    found = objects(mode)
    signs = [role for role in found if role["metadata"]["labels"].get("app.kubernetes.io/component") == "sign"]
    assert bool(signs) is (mode != NAMESPACED)
    said = {f"trialkeeper-system/{config(found)['lease']}"}
    for role in signs:
        for rule in role.get("rules", ()):
            assert (rule["apiGroups"], rule["resources"], rule["verbs"]) == (
                ["trialkeeper.dev"],
                ["installations"],
                ["get"],
            )
            assert set(rule["resourceNames"]) == said


def test_bindings_name_roles_that_are_there(mode: str) -> None:
    found = objects(mode)
    there = {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in found}
    for binding in found:
        if binding["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            role = binding["roleRef"]
            assert (role["kind"], binding["metadata"].get("namespace"), role["name"]) in there
            for subject in binding["subjects"]:
                if subject["kind"] == "Group":
                    assert binding["metadata"]["labels"]["app.kubernetes.io/component"] == "sign"
                    continue
                assert (subject["kind"], subject["namespace"], subject["name"]) in there


def test_pods_are_restricted(mode: str) -> None:
    pods = pod_specs(objects(mode))
    assert pods
    for name, metadata, spec in pods:
        assert list(breaches(metadata, spec)) == [], name
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"], name


def test_the_check_of_pods_finds_what_is_wrong() -> None:
    """The same check of a pod that is as open as can be."""
    spec: Object = {
        "hostNetwork": True,
        "volumes": [{"name": "root", "hostPath": {"path": "/"}}],
        "containers": [{"name": "c", "securityContext": {"privileged": True, "capabilities": {"add": ["SYS_ADMIN"]}}}],
    }
    assert len(list(breaches({}, spec))) == 8


def test_only_the_operator_and_the_test_get_a_token(mode: str) -> None:
    for name, metadata, spec in pod_specs(objects(mode)):
        with_token = metadata["labels"]["app.kubernetes.io/component"] in ("operator", "test")
        assert spec["automountServiceAccountToken"] is with_token, name


def test_keys_come_as_files(mode: str) -> None:
    """No key stands in a variable, and the operator mounts what its configuration names."""
    found = objects(mode)
    for _, _, spec in pod_specs(found):
        assert "secretKeyRef" not in json.dumps(spec)
    [(_, _, spec)] = [p for p in pod_specs(found) if p[1]["labels"]["app.kubernetes.io/component"] == "operator"]
    folders = [m["mountPath"] for m in spec["containers"][0]["volumeMounts"]]
    said = config(found)
    named = [said.get("report", {}).get("tlsDir"), said["store"].get("credentialsDir")]
    named.append(said["store"].get("caFile", "").rpartition("/")[0])
    for folder in filter(None, named):
        assert folder in folders
    assert ("/etc/trialkeeper/store" in folders) is ("credentialsDir" in said["store"])


def test_the_operator_reads_its_configuration(mode: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config(objects(mode))))
    read = settings.read(file)
    assert (read.report is None) is (mode == "none")


@pytest.mark.parametrize("release", ["tk", "trialkeeper", LONG])
def test_names_end_at_63(mode: str, release: str) -> None:
    for o in objects(mode, release=release):
        meta = o["metadata"]
        limit = 52 if o["kind"] in ("StatefulSet", "Deployment") else 63
        if o["kind"] != "CustomResourceDefinition":
            assert len(meta["name"]) <= limit, meta["name"]
        labels = {
            **meta.get("labels", {}),
            **o.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {}),
        }
        for value in labels.values():
            assert len(value) <= 63, value


def test_names_that_are_shortened_do_not_meet() -> None:
    names = {find(objects("default", release=LONG[:-1] + end), "Deployment")["metadata"]["name"] for end in ("x", "y")}
    assert len(names) == 2


def test_everything_says_whose_it_is(mode: str) -> None:
    for o in objects(mode):
        labels = o["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "trialkeeper"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


def test_images_name_no_registry_and_take_digests() -> None:
    for _, _, spec in pod_specs(objects("default")):
        for container in spec["containers"]:
            assert re.fullmatch(r"trialkeeper-(operator|store|trainer):0\.1\.0", container["image"])
    operator = find(objects("gitops"), "Deployment")
    assert "@sha256:" in operator["spec"]["template"]["spec"]["containers"][0]["image"]


@pytest.mark.parametrize("release", ["tk", LONG])
def test_the_certificate_is_good_for_the_service(release: str, tmp_path: Path) -> None:
    """Handshake as strictly as Python 3.13 does by default, with the name that the operator hands out."""
    found = objects("default", release=release)
    host = config(found)["report"]["url"].removeprefix("https://").removesuffix(":8443")
    [secret] = [o["data"] for o in found if o["kind"] == "Secret" and o["type"] == "kubernetes.io/tls"]
    for key, value in secret.items():
        (tmp_path / key).write_bytes(base64.b64decode(value))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(back, there, server_hostname=host)
    theirs = server.wrap_bio(there, back, server_side=True)
    for _ in range(3):
        for side in (ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert ours.getpeercert()
    assert ours.version() == "TLSv1.3"


def test_nothing_is_made_up_where_somebody_else_gives_the_secrets() -> None:
    assert not [o for o in objects("gitops") if o["kind"] == "Secret"]
    assert text("gitops") == text.__wrapped__("gitops")


def test_crds_are_those_of_the_models(mode: str) -> None:
    found = {o["metadata"]["name"]: o for o in objects(mode) if o["kind"] == "CustomResourceDefinition"}
    if mode == NAMESPACED:
        assert not found
        return
    for file in sorted((ROOT / "crds").glob("*.yaml")):
        crd = yaml.safe_load(file.read_text())
        mine = found.pop(crd["metadata"]["name"])
        assert mine["spec"] == crd["spec"]
        assert ("annotations" in mine["metadata"]) is (mode != "none")
    assert not found


def test_metrics_that_are_asked_for_are_made() -> None:
    """Alerts and dashboard know no metric that the operator does not have."""
    from trialkeeper_operator.serve.metrics import Metrics

    made = set()
    for family in Metrics().registry.collect():
        suffix = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        made |= {family.name + s for s in suffix}
    asked = (CHART / "files" / "alerts.yaml").read_text() + (CHART / "files" / "dashboard.json").read_text()
    names = set(re.findall(r"trialkeeper_[a-z_]+", asked))
    assert names and names <= made, names - made
