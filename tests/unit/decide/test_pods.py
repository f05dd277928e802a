"""The pod of an attempt in a cluster: what is added, what wins, and what is left to the template."""

from __future__ import annotations

from typing import Any

import pytest

from builders import experiment, trial
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide.pods import Site, render, restricted
from trialkeeper_operator.decide.scratch import size_of

SITE = Site(store="s3://trialkeeper?region=us-east-1", report="https://report.sys.svc:8443", report_ca="PEM")


def rendered(site: Site | None = SITE, **spec: Any) -> dict[str, Any]:
    return render(Experiment.from_object(experiment(**spec)), Trial.from_object(trial()), 2, site)


def variables(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}


def template(**container: Any) -> dict[str, Any]:
    spec = container.pop("spec", {})
    return {"spec": {"containers": [{"name": "trainer", "image": "i", **container}], **spec}}


def test_a_pod_on_this_machine_gets_nothing_of_a_cluster() -> None:
    pod = rendered(site=None)
    assert "volumes" not in pod["spec"]
    assert not any(name.startswith(("WANDB", "TRIALKEEPER_STORE", "TRIALKEEPER_REPORT")) for name in variables(pod))


def test_a_pod_of_a_cluster_knows_the_store_and_the_report_service_and_has_a_token_for_that_alone() -> None:
    pod = rendered()
    told = variables(pod)
    assert told["TRIALKEEPER_STORE"] == SITE.store
    assert (told["TRIALKEEPER_REPORT"], told["TRIALKEEPER_REPORT_CA"]) == (SITE.report, "PEM")
    (source,) = next(v for v in pod["spec"]["volumes"] if v["name"] == "trialkeeper-token")["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "trialkeeper.dev/report"
    mounts = {m["name"]: m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"]}
    assert told["TRIALKEEPER_TOKEN_FILE"] == mounts["trialkeeper-token"] + "/token"
    assert told["TRIALKEEPER_SCRATCH"] == mounts["trialkeeper-scratch"]
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_a_pod_is_told_how_often_pods_are_disrupted() -> None:
    assert variables(rendered())["TRIALKEEPER_MTBF_SECONDS"] == "21600"
    pod = render(Experiment.from_object(experiment()), Trial.from_object(trial()), 2, SITE, 1234.56)
    assert variables(pod)["TRIALKEEPER_MTBF_SECONDS"] == "1235"


def test_no_key_stands_in_a_pod() -> None:
    assert not any("AWS" in name or "SECRET" in name for name in variables(rendered()))


def test_a_lost_node_is_not_waited_for_as_long_as_kubernetes_would() -> None:
    tolerations = rendered()["spec"]["tolerations"]
    assert {t["key"]: t["tolerationSeconds"] for t in tolerations} == {
        "node.kubernetes.io/not-ready": 20,
        "node.kubernetes.io/unreachable": 20,
    }


def test_what_the_template_says_of_tolerations_pre_stop_and_account_stands() -> None:
    forever = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    own = {"exec": {"command": ["sync"]}}
    spec = {"tolerations": [forever], "serviceAccountName": "mine"}
    pod = rendered(template=template(lifecycle={"preStop": own}, spec=spec))
    keys = [t["key"] for t in pod["spec"]["tolerations"]]
    assert keys == ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"]
    assert pod["spec"]["containers"][0]["lifecycle"]["preStop"] == own
    assert "automountServiceAccountToken" not in pod["spec"]


def test_weights_and_biases_has_one_run_a_trial_unless_the_template_says_otherwise() -> None:
    told = variables(rendered(template=template(env=[{"name": "WANDB_RUN_GROUP", "value": "mine"}])))
    assert told["WANDB_RUN_ID"].startswith("exp-0-")
    assert (told["WANDB_RESUME"], told["WANDB_RUN_GROUP"]) == ("allow", "mine")


def test_ours_wins_over_the_template() -> None:
    told = variables(rendered(template=template(env=[{"name": "TRIALKEEPER_ATTEMPT", "value": "7"}])))
    assert told["TRIALKEEPER_ATTEMPT"] == "2"


def test_a_bucket_of_ones_own_comes_with_its_keys_by_reference() -> None:
    s3 = {"bucket": "team-a", "endpoint": "https://s3.local:9000", "secretName": "keys", "caConfigMap": "ca"}
    told = variables(rendered(storage={"s3": s3}))
    assert told["TRIALKEEPER_STORE"] == "s3://team-a?region=us-east-1&endpoint=https%3A%2F%2Fs3.local%3A9000"
    assert told["AWS_SECRET_ACCESS_KEY"] == {"secretKeyRef": {"name": "keys", "key": "secret-key"}}
    assert told["TRIALKEEPER_STORE_CA"] == {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}}


def test_a_volume_of_ones_own_is_mounted() -> None:
    pod = rendered(storage={"volume": {"claimName": "data", "path": "/my data"}})
    assert variables(pod)["TRIALKEEPER_STORE"] == "file:///my%20data"
    assert {"name": "trialkeeper-store", "persistentVolumeClaim": {"claimName": "data"}} in pod["spec"]["volumes"]


@pytest.mark.parametrize("user", [None, 1000])
def test_a_restricted_pod_keeps_what_the_template_says(user: int | None) -> None:
    context = {} if user is None else {"securityContext": {"runAsUser": user}}
    pod = restricted(rendered(template=template(**context)))
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"].get("runAsUser") == (65532 if user is None else None)
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("own", "limit", "told"),
    [
        (None, None, None),
        ({"emptyDir": {}}, None, None),
        ({"emptyDir": {"sizeLimit": "20Gi"}}, None, 20 * 2**30),
        ({"emptyDir": {"sizeLimit": "20Gi"}}, "8G", 8 * 10**9),
        ({"emptyDir": {"sizeLimit": "2Gi"}}, "8G", 2 * 2**30),
        ({"emptyDir": {"sizeLimit": "2Gi", "medium": "Memory"}}, "1M", 2 * 2**30),
        (None, "1.5Ti", 3 * 2**39),
        ({"emptyDir": {"sizeLimit": "plenty"}}, 5e9, 5 * 10**9),
        (
            {"ephemeral": {"volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "1e3Gi"}}}}}},
            "1G",
            None,
        ),
        ({"ephemeral": {"volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "9k"}}}}}}, "1G", 9000),
    ],
)
def test_a_trainer_knows_how_much_may_lie_in_its_scratch(own: Any, limit: Any, told: int | None) -> None:
    volumes = [{"name": "trialkeeper-scratch", **own}] if own else []
    resources = {"limits": {"ephemeral-storage": limit}} if limit else None
    pod = rendered(template=template(resources=resources, spec={"volumes": volumes}))
    assert variables(pod).get("TRIALKEEPER_SCRATCH_BYTES") == (None if told is None else str(told))
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "trialkeeper-scratch"]
    assert volume == {"name": "trialkeeper-scratch", **(own or {"emptyDir": {}})}


def test_scratch_that_outlives_its_pod_is_none() -> None:
    claimed = {"name": "trialkeeper-scratch", "persistentVolumeClaim": {"claimName": "data"}}
    pod = rendered(template=template(spec={"volumes": [claimed]}))
    assert {"name": "trialkeeper-scratch", "emptyDir": {}} in pod["spec"]["volumes"]


@pytest.mark.parametrize(
    ("quantity", "size"),
    [
        ("0", 0), ("128974848", 128974848), ("129e6", 129_000_000), ("129M", 129_000_000), ("123Mi", 128974848),
        ("128974848000m", 128974848), (".5Ki", 512), ("1.", 1), ("+2k", 2000), (7, 7), (1e9, 10**9), ("1E2", 100),
        ("1E", 10**18), ("", None), ("1K", None), ("1kib", None), ("-1", None), ("1 Gi", None),
        (True, None), (None, None),
    ],
)  # fmt: skip
def test_quantities(quantity: Any, size: int | None) -> None:
    assert size_of(quantity) == size


NONSENSE = [
    {"spec": {"tolerations": "all"}},
    {"spec": {"tolerations": [1]}},
    {"spec": {"volumes": [1, 2]}},
    {"spec": {"volumes": {"name": "data"}}},
    {"lifecycle": "forever"},
    {"volumeMounts": "here"},
    {"volumeMounts": ["here"]},
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=str)
def test_a_field_that_no_pod_can_have_is_passed_on_for_the_api_server_to_name(nonsense: dict[str, Any]) -> None:
    pod = rendered(template=template(**nonsense))
    (name, value) = next(iter(nonsense.get("spec", nonsense).items()))
    where = pod["spec"] if "spec" in nonsense else pod["spec"]["containers"][0]
    assert where[name] == value


def test_null_is_an_absent_field() -> None:
    nothing = {"volumes": None, "tolerations": None, "securityContext": None, "initContainers": None}
    pod = restricted(rendered(template=template(spec=nothing, lifecycle=None, volumeMounts=None)))
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert [v["name"] for v in pod["spec"]["volumes"]] == ["trialkeeper-scratch", "trialkeeper-token"]
    assert pod["spec"]["containers"][0]["lifecycle"]["preStop"]
