"""The values: each is explained, each is checked, and what cannot work is refused with a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import generate
import pytest
import yaml

from chart.rendering import CHART, KUBE_VERSION, MODES, ROOT, Refused, config, find, helm, objects, one_line, text, tool

VALUES = (CHART / "values.yaml").read_text()
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """The path of each value that is not itself a group of documented ones."""
    named = dict(generate.documented(VALUES))
    for key, inner in value.items():
        here = f"{path}{key}"
        if isinstance(inner, dict) and inner and any(name.startswith(f"{here}.") for name in named):
            yield from leaves(inner, f"{here}.")
        else:
            yield here


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = SCHEMA["definitions"][name] if name else schema
    return found


@pytest.mark.parametrize("mode", MODES)
def test_lint(mode: str) -> None:
    helm("lint", "--strict", "--kube-version", KUBE_VERSION, "--values", str(MODES[mode]), str(CHART))


def test_suites_of_helm_unittest() -> None:
    done = subprocess.run([tool("helm-unittest"), "--strict", str(CHART)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_every_value_is_explained() -> None:
    named = dict(generate.documented(VALUES))
    assert [path for path in leaves(yaml.safe_load(VALUES)) if path not in named] == []


def test_schema_and_values_know_the_same_keys() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        schema = resolved(schema)
        if "properties" not in schema or set(schema["properties"]) == {"requests", "limits", "claims"}:
            return
        assert schema["additionalProperties"] is False, path
        assert set(schema["properties"]) - {"global"} == set(values), path
        for key, value in values.items():
            if isinstance(value, dict):
                compare(value, schema["properties"][key], f"{path}{key}.")

    compare(yaml.safe_load(VALUES), SCHEMA, "")


def groups(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each object of the schema that is closed."""
    schema = resolved(schema)
    if schema.get("additionalProperties") is False:
        yield path
        for key, inner in schema["properties"].items():
            yield from groups(inner, (*path, key))


@pytest.mark.parametrize("path", [".".join(p) for p in groups(SCHEMA)])
def test_a_key_that_is_not_known_is_refused_by_name(path: str) -> None:
    value: Any = {"surprise": True}
    for step in reversed(path.split(".") if path else []):
        value = {step: value}
    with pytest.raises(Refused, match="surprise"):
        text("default", *(f"{key}={json.dumps(inner)}" for key, inner in value.items()))


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ('replicas="two"', "replicas"),
        ('logLevel="loud"', "logLevel"),
        ('watchNamespaces=["Team_A"]', "watchNamespaces"),
        ('watchNamespaces=["a","a"]', "watchNamespaces"),
        ('storage={"mode":"cloud"}', "mode"),
        ('storage={"mode":"external","external":{"endpoint":"s3.example.com","bucket":"abc"}}', "endpoint"),
        ('storage={"mode":"external","external":{"endpoint":"https://key@s3.example.com","bucket":"abc"}}', "endpoint"),
        ('image={"digest":"sha256:123"}', "digest"),
        ('commonLabels={"app.kubernetes.io/name":"mine"}', "app.kubernetes.io/name"),
        ('store={"persistence":{"size":"much"}}', "size"),
        ('store={"uid":0}', "uid"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(value: str, word: str) -> None:
    with pytest.raises(Refused, match=word):
        text("default", value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (['storage={"mode":"external"}'], "set storage.external.endpoint and storage.external.bucket"),
        (['storage={"external":{"endpoint":"https://s3.example.com"}}'], "set storage.mode to external"),
        (['report={"enabled":false}'], "trials get their keys to the embedded store from the report service"),
        (['watchNamespaces=["a"]', 'test={"namespace":"b"}'], "test.namespace b is not in watchNamespaces"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(values: list[str], sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        text("default", *values)
    assert sentence in one_line(refused)


def test_an_old_cluster_is_refused() -> None:
    with pytest.raises(Refused, match="kubeVersion"):
        helm("template", "tk", str(CHART), "--kube-version", "1.30.9")


def test_what_is_generated_is_not_stale() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "charts" / "generate.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_explains_every_value() -> None:
    readme = (CHART / "README.md").read_text()
    for path, about in generate.documented(VALUES):
        assert f"| `{path}` |" in readme
        assert about in readme


def test_external_store() -> None:
    store = config(objects("external"))["store"]
    assert store == {
        "mode": "external",
        "endpoint": "https://s3.example.com",
        "bucket": "checkpoints",
        "region": "eu-central-1",
        "sts": False,
        "credentialsDir": "/etc/trialkeeper/store",
        "caFile": "/etc/trialkeeper/store-ca/ca.crt",
    }


def test_embedded_store_has_an_address_that_is_served() -> None:
    found = objects("default")
    store = config(found)["store"]
    service = find(found, "Service", "tk-trialkeeper-store")
    assert store["endpoint"] == "http://tk-trialkeeper-store.trialkeeper-system.svc:9000"
    pod = find(found, "StatefulSet")["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == pod["spec"]["containers"][0]["ports"][0]["name"]


def test_the_report_service_reaches_the_leader_only() -> None:
    found = objects("default")
    service = find(found, "Service", "tk-trialkeeper-report")
    pod = find(found, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].pop("trialkeeper.dev/leader") == "true"
    assert service["spec"]["selector"].items() <= pod.items()
    assert "trialkeeper.dev/leader" not in pod
    assert config(found)["report"]["url"] == "https://tk-trialkeeper-report.trialkeeper-system.svc:8443"


def test_a_change_of_the_configuration_starts_new_pods() -> None:
    def checksum(*sets: str) -> str:
        template = find(objects("gitops", *sets), "Deployment")["spec"]["template"]
        found: str = template["metadata"]["annotations"]["checksum/config"]
        return found

    assert checksum() == checksum("replicas=3")
    assert checksum() != checksum('logLevel="debug"')


def test_a_new_version_of_the_chart_restarts_no_store() -> None:
    labels = find(objects("default"), "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


def test_no_store_and_no_reports() -> None:
    found = objects("none")
    assert config(found)["store"] == {"mode": "none"}
    assert "report" not in config(found)
    assert not [o for o in found if o["kind"] in ("StatefulSet", "Secret", "PersistentVolumeClaim", "NetworkPolicy")]


def test_volumes_and_keys_are_kept() -> None:
    kept = {"helm.sh/resource-policy": "keep"}
    for kind, name in (("PersistentVolumeClaim", "tk-trialkeeper-store"), ("Secret", "tk-trialkeeper-store")):
        assert find(objects("default"), kind, name)["metadata"]["annotations"] == kept
        gone = find(objects("default", 'store={"persistence":{"keep":false}}'), kind, name)
        assert "annotations" not in gone["metadata"]


def test_policies_let_trials_in_and_nobody_else() -> None:
    found = objects("namespaced")
    policy = find(found, "NetworkPolicy", "tk-trialkeeper")
    health, report = policy["spec"]["ingress"]
    assert "from" not in health
    [peer] = report["from"]
    assert peer["podSelector"]["matchExpressions"] == [{"key": "trialkeeper.dev/experiment", "operator": "Exists"}]
    assert peer["namespaceSelector"]["matchExpressions"][0]["values"] == ["team-a", "team-b"]
    store = find(found, "NetworkPolicy", "tk-trialkeeper-store")
    assert len(store["spec"]["ingress"][0]["from"]) == 2
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert find(objects("everything"), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
