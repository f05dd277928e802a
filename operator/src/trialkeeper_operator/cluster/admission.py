"""Admission for the memory cluster: what the CRDs would refuse and default, done by the models they come from."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment, ExperimentStatus
from trialkeeper_operator.api.resource import StatusModel
from trialkeeper_operator.api.trial import Trial, TrialStatus
from trialkeeper_operator.api.validate import InvalidObject, check_experiment, check_trial
from trialkeeper_operator.cluster.memory import Admit
from trialkeeper_operator.reconcile.ports import Invalid, Object
from trialkeeper_operator.search.check import problems

S = TypeVar("S", bound=StatusModel)


def admission() -> dict[str, Admit]:
    """What a Memory asks before each write."""
    return {names.EXPERIMENT: _experiment, names.TRIAL: _trial, names.POD: _pod}


def _status(new: Object, model: type[S]) -> Object:
    """Unknown fields of a status are pruned, wrong ones refused."""
    if "status" not in new:
        return new
    try:
        return {**new, "status": model.model_validate(new["status"]).to_object()}
    except ValidationError as wrong:
        raise Invalid(f"{new['kind']} {new['metadata']['name']}: status: {wrong.errors()[0]['msg']}") from wrong


def _experiment(old: Object | None, new: Object) -> Object:
    if old is None or new.get("spec") != old.get("spec"):
        try:
            parsed: Experiment = check_experiment(new, old)
            if found := problems(parsed):
                raise InvalidObject(found)
        except InvalidObject as refusal:
            raise Invalid(str(refusal)) from refusal
        new = {**new, "spec": parsed.spec.to_object()}
    return _status(new, ExperimentStatus)


def _trial(old: Object | None, new: Object) -> Object:
    if old is None or new.get("spec") != old.get("spec"):
        try:
            parsed: Trial = check_trial(new, old)
        except InvalidObject as refusal:
            raise Invalid(str(refusal)) from refusal
        new = {**new, "spec": parsed.spec.to_object()}
    return new if old is not None and new.get("status") == old.get("status") else _status(new, TrialStatus)


def _pod(_old: Object | None, new: Object) -> Object:
    containers = new.get("spec", {}).get("containers")
    if not isinstance(containers, list) or not containers:
        raise Invalid(f"Pod {new['metadata']['name']}: spec.containers: at least one container is needed")
    names_ = [c.get("name") for c in containers if isinstance(c, dict)]
    if len(names_) != len(containers) or len(set(names_)) != len(names_):
        raise Invalid(f"Pod {new['metadata']['name']}: spec.containers: each needs a name of its own")
    return new
