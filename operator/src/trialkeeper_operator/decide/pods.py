"""Rendering: the pod of one attempt, from the experiment's template and where it is to run.

What we inject wins over the template: the trainer's variables, labels and the owner. What a person may
rightly want otherwise (tolerations, a preStop hook, a service account) is only added where the template is silent.
A field that no pod can have (`tolerations: all`) is passed on as it is: the API server says best what is wrong with it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from trialkeeper import contract
from trialkeeper.store.address import Bucket
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment, Storage
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide import nodes, placement, scratch

SCRATCH = "/trialkeeper"
TOKEN_FOLDER = "/var/run/trialkeeper"
TOKEN_SECONDS = 3600  # the kubelet renews it after four fifths
LOST_NODE_SECONDS = 20  # Kubernetes' own default is 300, of which every one is lost work
_LOST_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


@dataclass(frozen=True)
class Site:
    """What pods of a cluster are told: URLs of the store and of the report service, and PEM of whom to trust there.

    Whatever is empty is not offered. `swept`: the operator itself sweeps that store.
    """

    store: str = ""
    store_ca: str = ""
    report: str = ""
    report_ca: str = ""
    swept: bool = False

    def environment(self) -> dict[str, str]:
        """The variables of every trainer."""
        values = {
            contract.ENV_SCRATCH: SCRATCH,
            contract.ENV_STORE: self.store,
            contract.ENV_STORE_CA: self.store_ca,
            contract.ENV_REPORT: self.report,
            contract.ENV_REPORT_CA: self.report_ca,
            contract.ENV_TOKEN_FILE: f"{TOKEN_FOLDER}/token" if self.report else "",
        }
        return {name: value for name, value in values.items() if value}


def inherited(trial: Trial) -> list[str]:
    """The keys of `spec.base` under other trials' prefixes in the same namespace.

    Trials are objects that others may write, too: no trainer is sent, or let, into anything else.
    """
    return [key for key in trial.spec.base or () if _is_inside(key, trial.namespace)]


def forked_at(trial: Trial) -> list[str]:
    """The key of `spec.fork`, if it is one under another trial's prefix in the same namespace."""
    return [key for key in (trial.spec.fork,) if key is not None and _is_inside(key, trial.namespace)]


def _is_inside(key: str, namespace: str) -> bool:
    parsed = contract.parse_inherited_key(key)
    steps = parsed[0].split("/") if parsed is not None else []
    return len(steps) == 3 and steps[0] == namespace


def donors(trial: Trial) -> list[str]:
    """The experiments' folders in the store that a trial may have to read beside its own, the nearest first."""
    keys = (*forked_at(trial), *inherited(trial))
    return list(dict.fromkeys(key.rpartition("/manifests/")[0].rpartition("/")[0] for key in keys))


def settings(experiment: Experiment, held: Collection[int] = ()) -> dict[str, Any]:
    """What the trainer judges by itself, as the SDK reads it from its environment; `held`: see `decide.fork`."""
    spec = experiment.spec.to_object()
    checkpoint = spec.get("checkpoint", {}) | ({"held": sorted(held)} if held else {})
    return {
        "objectives": spec["objectives"],
        "onNonFinite": experiment.spec.on_non_finite,
        "stop": spec.get("stop", {}),
        "checkpoint": checkpoint,
    }


def environment(
    experiment: Experiment,
    trial: Trial,
    attempt: int,
    mtbf: float = contract.PRIOR_MTBF_SECONDS,
    held: Collection[int] = (),
) -> dict[str, str]:
    """The variables of one attempt; every value is text. `mtbf`: seconds, see `decide.disruptions`."""
    parameters = trial.spec.parameters
    compact = (",", ":")
    values = {
        contract.ENV_NAMESPACE: trial.namespace,
        contract.ENV_EXPERIMENT: experiment.name,
        contract.ENV_TRIAL: trial.name,
        contract.ENV_INDEX: str(trial.spec.index),
        contract.ENV_ATTEMPT: str(attempt),
        contract.ENV_SEED: str(trial.spec.seed),
        contract.ENV_PARAMS: json.dumps(parameters, separators=compact),
        contract.ENV_SETTINGS: json.dumps(settings(experiment, held), separators=compact),
        contract.ENV_PREFIX: contract.prefix(trial.namespace, experiment.name, experiment.uid, trial.spec.index),
        contract.ENV_MTBF_SECONDS: f"{mtbf:.0f}",
    }
    bases = inherited(trial)
    values |= {contract.ENV_BASE: ",".join(bases)} if bases else {}
    for key in forked_at(trial):
        values[contract.ENV_FORK] = key
    for name, value in parameters.items():
        text = value if isinstance(value, str) else json.dumps(value)
        values[contract.ENV_PARAM_PREFIX + name.upper()] = text
    return values


def render(
    experiment: Experiment,
    trial: Trial,
    attempt: int,
    site: Site | None = None,
    mtbf: float = contract.PRIOR_MTBF_SECONDS,
    held: Collection[int] = (),
    *,
    rank: int = 0,
) -> dict[str, Any]:
    """The pod of `attempt`, ready to be created: on this machine, or in the cluster that `site` describes.

    Of several pods it is that of `rank`. Where it may run there is told by the trial's status, as it is when the
    attempt is open.
    """
    template = copy.deepcopy(experiment.spec.template.to_object())
    meta, spec = template.get("metadata") or {}, template["spec"]
    grace = spec.setdefault("terminationGracePeriodSeconds", experiment.spec.timeouts.grace_seconds)
    spec["restartPolicy"] = "Never"
    container = next(c for c in spec["containers"] if c["name"] == experiment.spec.container_name)
    injected = environment(experiment, trial, attempt, mtbf, held) | {contract.ENV_GRACE_SECONDS: str(grace)}
    many, several = experiment.spec.nodes, experiment.spec.nodes > 1
    defaults = nodes.variables(trial.name, attempt, rank, many, container) if several else {}
    referred: list[dict[str, Any]] = []
    if site is not None:
        placement.settle(spec, experiment.spec, trial.status)
        injected |= site.environment()
        defaults |= _grouping(experiment, trial)
        injected |= _settle(spec, container, site)
        if experiment.spec.storage is not None:
            own, referred = _own_store(spec, container, experiment.spec.storage)
            injected = {k: v for k, v in injected.items() if k not in _STORE} | own
    container["env"] = _variables(container.get("env") or [], injected, defaults, referred)
    container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    if several:
        nodes.place(spec, trial.name, attempt, rank)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": names.pod_names(trial.name, attempt, many)[rank],
            "namespace": trial.namespace,
            "labels": dict(meta.get("labels") or {})
            | _queue(experiment)
            | {
                names.LABEL_MANAGED_BY: names.MANAGED_BY,
                names.LABEL_EXPERIMENT: experiment.name,
                names.LABEL_TRIAL: trial.name,
                names.LABEL_ATTEMPT: str(attempt),
            }
            | (nodes.labels(trial.name, attempt, rank, many) if several else {}),
            "annotations": dict(meta.get("annotations") or {})
            | {names.ANNOTATION_TRAINER: experiment.spec.container_name}
            | (nodes.notes(many) if several else {}),
            "ownerReferences": [names.owner(names.TRIAL, trial.name, trial.uid)],
        },
        "spec": spec,
    }


def _queue(experiment: Experiment) -> dict[str, str]:
    """The labels by which an Experiment says in which queue its pods wait."""
    labels = experiment.metadata.get("labels") or {}
    return {name: labels[name] for name in names.QUEUE_LABELS if name in labels}


_STORE = frozenset({contract.ENV_STORE, contract.ENV_STORE_CA})


def _own_store(
    spec: dict[str, Any], container: dict[str, Any], storage: Storage
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """(variables, variables by reference) of an experiment's own store; a volume is mounted."""
    if storage.volume is not None:
        claim = {"persistentVolumeClaim": {"claimName": storage.volume.claim_name}}
        _mount(spec, container, "trialkeeper-store", storage.volume.path, claim)
        return {contract.ENV_STORE: f"file://{quote(storage.volume.path)}"}, []
    bucket = storage.s3
    assert bucket is not None  # a rule: exactly one of the two
    url = Bucket(bucket.bucket, endpoint=bucket.endpoint or "", region=bucket.region).url
    referred = []
    if bucket.secret_name is not None:
        for variable, key in (("AWS_ACCESS_KEY_ID", "access-key"), ("AWS_SECRET_ACCESS_KEY", "secret-key")):
            source = {"secretKeyRef": {"name": bucket.secret_name, "key": key}}
            referred.append({"name": variable, "valueFrom": source})
    if bucket.ca_config_map is not None:
        source = {"configMapKeyRef": {"name": bucket.ca_config_map, "key": "ca.crt"}}
        referred.append({"name": contract.ENV_STORE_CA, "valueFrom": source})
    return {contract.ENV_STORE: url}, referred


def _variables(
    own: list[dict[str, Any]], injected: dict[str, str], defaults: dict[str, str], referred: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Ours first, since $(VAR) in the template's may refer to them."""
    ours = {contract.ENV_POD_UID, *injected, *(e["name"] for e in referred)}
    kept = [e for e in own if e.get("name") not in ours]
    named = {e.get("name") for e in kept}
    return [
        {"name": contract.ENV_POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        *({"name": name, "value": value} for name, value in injected.items()),
        *referred,
        *({"name": name, "value": value} for name, value in defaults.items() if name not in named),
        *kept,
    ]


def _grouping(experiment: Experiment, trial: Trial) -> dict[str, str]:
    """Weights & Biases: all attempts of a trial are one run, all trials one group."""
    run = f"{trial.name}-{experiment.uid[:8]}"
    return {"WANDB_RUN_ID": run, "WANDB_RESUME": "allow", "WANDB_RUN_GROUP": experiment.name}


def _settle(spec: dict[str, Any], container: dict[str, Any], site: Site) -> dict[str, str]:
    """What a pod needs in a cluster: a scratch folder, a token, notice of SIGTERM, no long wait for lost nodes.

    Answers with variables that follow from it.
    """
    source = scratch.volume(spec)
    _mount(spec, container, scratch.VOLUME, SCRATCH, source)
    room = scratch.room(source, container)
    told = {contract.ENV_SCRATCH_BYTES: str(room)} if room is not None else {}
    if site.report:
        token = {"audience": contract.AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
        _mount(
            spec,
            container,
            "trialkeeper-token",
            TOKEN_FOLDER,
            {"projected": {"sources": [{"serviceAccountToken": token}]}},
            readOnly=True,
        )
    # SIGTERM often never reaches the trainer (sh -c, a pipe): a file does.
    notice = {"exec": {"command": ["/bin/sh", "-c", f"touch {SCRATCH}/{contract.NOTIFY_FILE}"]}}
    lifecycle = container.get("lifecycle") or {}
    if isinstance(lifecycle, dict) and not lifecycle.get("preStop"):
        container["lifecycle"] = lifecycle | {"preStop": notice}
    if not spec.get("serviceAccountName"):
        spec.setdefault("automountServiceAccountToken", False)
    tolerations = spec.get("tolerations") or []
    if not _objects(tolerations):
        return told
    tolerated = {t.get("key") for t in tolerations if t.get("effect") in (None, "", "NoExecute")}
    spec["tolerations"] = tolerations + [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_SECONDS}
        for key in _LOST_NODE_TAINTS
        if key not in tolerated and None not in tolerated
    ]
    return told


def _mount(
    spec: dict[str, Any], container: dict[str, Any], name: str, path: str, source: dict[str, Any], **how: Any
) -> None:
    volumes, mounts = spec.get("volumes") or [], container.get("volumeMounts") or []
    if _objects(volumes):
        spec["volumes"] = [*(v for v in volumes if v.get("name") != name), {"name": name, **source}]
    if _objects(mounts):
        kept = (m for m in mounts if m.get("mountPath") != path and m.get("name") != name)
        container["volumeMounts"] = [*kept, {"name": name, "mountPath": path, **how}]


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


NOBODY = 65532


def restricted(pod: dict[str, Any]) -> dict[str, Any]:
    """The same pod as Pod Security `restricted` wants it: fields are added where the template is silent.

    An API server has read it before, so its fields are what they should be, or null.
    """
    pod = copy.deepcopy(pod)
    spec = pod["spec"]
    whole = _part(spec, "securityContext")
    whole.setdefault("runAsNonRoot", True)
    whole.setdefault("seccompProfile", {"type": "RuntimeDefault"})
    if not any("runAsUser" in (c.get("securityContext") or {}) for c in spec["containers"]):
        whole.setdefault("runAsUser", NOBODY)
        whole.setdefault("fsGroup", NOBODY)
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        context = _part(container, "securityContext")
        context.setdefault("allowPrivilegeEscalation", False)
        _part(context, "capabilities").setdefault("drop", ["ALL"])
    return pod


def _part(of: dict[str, Any], name: str) -> dict[str, Any]:
    """A member to be filled in; null is an absent one."""
    if of.get(name) is None:
        of[name] = {}
    found: dict[str, Any] = of[name]
    return found
