"""Admission for the memory cluster: what an API server would refuse and default.

For the custom resources the models do it that the CRDs are made from; of Kubernetes' own kinds only those
rules are here that something in this project could run into.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import ExperimentStatus
from trialkeeper_operator.api.resource import StatusModel
from trialkeeper_operator.api.trial import Trial, TrialStatus
from trialkeeper_operator.api.validate import InvalidObject, check_trial
from trialkeeper_operator.cluster.memory import Admit
from trialkeeper_operator.reconcile.ports import Invalid, Object
from trialkeeper_operator.search.check import checked

S = TypeVar("S", bound=StatusModel)

CONFIG_MAP_LIMIT = 1024 * 1024  # bytes of keys and values

_RESTART_POLICIES = ("Always", "OnFailure", "Never")
_MUTABLE = ("activeDeadlineSeconds", "tolerations", "schedulingGates")  # of a pod's spec, images aside


def admission() -> dict[str, Admit]:
    """What a Memory asks before each write."""
    return {names.EXPERIMENT: _experiment, names.TRIAL: _trial, names.POD: _pod, names.CONFIG_MAP: _config_map}


def _status(old: Object | None, new: Object, model: type[S]) -> Object:
    """Unknown fields of a status are pruned, wrong ones refused; what is stored has been through this."""
    if "status" not in new or (old is not None and new["status"] is old.get("status")):
        return new
    try:
        return {**new, "status": model.model_validate(new["status"]).to_object()}
    except ValidationError as wrong:
        first = wrong.errors()[0]
        path = ".".join(map(str, ("status", *first["loc"])))
        raise Invalid(f"{new['kind']} {new['metadata']['name']}: {path}: {first['msg']}") from wrong


def _experiment(old: Object | None, new: Object) -> Object:
    if old is None or new.get("spec") != old.get("spec"):
        try:
            parsed = checked(new, old)
        except InvalidObject as refusal:
            raise Invalid(str(refusal)) from refusal
        new = {**new, "spec": parsed.spec.to_object()}
    return _status(old, new, ExperimentStatus)


def _trial(old: Object | None, new: Object) -> Object:
    if old is None or new.get("spec") != old.get("spec"):
        try:
            parsed: Trial = check_trial(new, old)
        except InvalidObject as refusal:
            raise Invalid(str(refusal)) from refusal
        new = {**new, "spec": parsed.spec.to_object()}
    return _status(old, new, TrialStatus)


def _pod(old: Object | None, new: Object) -> Object:
    spec = new.get("spec")
    if old is not None and spec == old["spec"]:
        return new
    refusal = _refusal(spec) if old is None else _frozen(old["spec"], spec)
    if refusal:
        raise Invalid(f"Pod {new['metadata']['name']}: spec{refusal}")
    return new


def _refusal(spec: Any) -> str:
    """What a pod's spec lacks."""
    containers = spec.get("containers") if isinstance(spec, dict) else None
    if not isinstance(containers, list) or not containers:
        return ".containers: at least one container is needed"
    called: set[str] = set()
    for index, container in enumerate(containers):
        container = container if isinstance(container, dict) else {}
        for field in ("name", "image"):
            if not isinstance(container.get(field), str) or not container[field]:
                return f".containers[{index}].{field}: is needed"
        if container["name"] in called:
            return f".containers[{index}].name: {container['name']!r} is the name of another container"
        called.add(container["name"])
    if spec.get("restartPolicy", "Always") not in _RESTART_POLICIES:
        return f".restartPolicy: is one of {', '.join(_RESTART_POLICIES)}"
    return ""


def _frozen(old: Mapping[str, Any], new: Any) -> str:
    """What of a pod's spec cannot change once there is the pod."""
    if isinstance(new, dict) and not _refusal(new) and _lasting(old) == _lasting(new):
        return ""
    return f": only images and {', '.join(_MUTABLE)} can change: create another pod"


def _lasting(spec: Mapping[str, Any]) -> dict[str, Any]:
    containers = [{k: v for k, v in container.items() if k != "image"} for container in spec["containers"]]
    return {k: v for k, v in spec.items() if k not in _MUTABLE} | {"containers": containers}


def _config_map(_old: Object | None, new: Object) -> Object:
    size = 0
    for field in ("data", "binaryData"):
        values = new.get(field) or {}
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise Invalid(f"ConfigMap {new['metadata']['name']}: {field}: every value must be text: put it in quotes")
        # Base64 is counted as the bytes that it stands for.
        size += sum(len(k) + (len(v) * 3 // 4 if field == "binaryData" else len(v.encode())) for k, v in values.items())
    if size > CONFIG_MAP_LIMIT:
        raise Invalid(
            f"ConfigMap {new['metadata']['name']}: {size} bytes are more than the {CONFIG_MAP_LIMIT} it can hold"
        )
    return new
