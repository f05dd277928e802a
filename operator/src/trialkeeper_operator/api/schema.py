"""The CRDs, converted from the models and their rules: `python -m trialkeeper_operator.api.schema [--check] DIR`.

The API server wants structural schemas, which are less than what pydantic writes: no references, no unions
with null, no closed objects. Whatever is not in the table below raises, so that nothing is lost in silence.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment, ExperimentSpec, ExperimentStatus
from trialkeeper_operator.api.rule import Rule
from trialkeeper_operator.api.rules import EXPERIMENT, TRIAL
from trialkeeper_operator.api.trial import Trial, TrialSpec, TrialStatus

Schema = dict[str, Any]

_KEPT = ("type", "enum", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern", "required")
_DROPPED = frozenset(
    {"title", "description", "additionalProperties", "properties", "items", "default", "anyOf", "$ref"}
)
_FREE: Schema = {"x-kubernetes-preserve-unknown-fields": True}

# Lists whose entries are told apart by a key: the API server refuses a key that stands twice.
LIST_KEYS = {
    "spec.objectives": "metric",
    "spec.parameters": "name",
    "spec.placements": "name",
    "spec.template.spec.containers": "name",
    "status.conditions": "type",
    "status.history": "attempt",
}


class NotStructural(TypeError):
    """Raised when a model has something that a structural schema cannot say."""


def convert(schema: Schema, definitions: Schema, path: str) -> Schema:
    """A structural schema from pydantic's, at a path that errors name."""
    if "$ref" in schema:
        named = definitions[schema["$ref"].rpartition("/")[2]]
        schema = {**named, **{k: v for k, v in schema.items() if k != "$ref"}}
    if "anyOf" in schema:
        return _union(schema, definitions, path)
    if "const" in schema:
        schema = {**{k: v for k, v in schema.items() if k != "const"}, "enum": [schema["const"]]}
    found: Schema = {k: schema[k] for k in _KEPT if k in schema}
    for bound, kind in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in schema:
            found |= {kind: schema[bound], bound: True}
    if any(abs(found.get(kind, 0)) >= 2**63 for kind in ("minimum", "maximum")):
        raise NotStructural(f"{path}: a bound beyond int64, which the API server would wrap around")
    if found.get("type") == "integer":
        found["format"] = "int64"
    found |= _contents(schema, definitions, path)
    default = schema.get("default")
    if default is not None and default != [] and not isinstance(default, dict):
        found["default"] = default
    if isinstance(default, dict) and path.startswith("spec"):
        found["default"] = {}  # the members have defaults of their own, which need their parent to be there
    unknown = schema.keys() - _DROPPED - found.keys() - {"exclusiveMinimum", "exclusiveMaximum", "maxProperties"}
    if unknown:
        raise NotStructural(f"{path}: {', '.join(sorted(unknown))}")
    return found


def _contents(schema: Schema, definitions: Schema, path: str) -> Schema:
    found: Schema = {}
    if schema.get("type") == "array":
        found["items"] = _member(convert(schema["items"], definitions, f"{path}[]") if schema.get("items") else _FREE)
        key = LIST_KEYS.get(path)
        kind = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
        found |= kind if key else {"x-kubernetes-list-type": "atomic"}
    if schema.get("type") == "object":
        properties, extra = schema.get("properties"), schema.get("additionalProperties")
        if properties:
            found["properties"] = {
                name: convert(inner, definitions, f"{path}.{name}" if path else name)
                for name, inner in properties.items()
            }
            found |= _FREE if extra is True else {}
        elif extra is True or extra is None:
            found |= _FREE
        elif isinstance(extra, dict):
            found["additionalProperties"] = _member(convert(extra, definitions, f"{path}{{}}"))
        found |= {"maxProperties": schema["maxProperties"]} if "maxProperties" in schema else {}
    return found


def _member(schema: Schema) -> Schema:
    """An entry of a list or a map. One without a type may be null: the operator refuses it with a sentence.

    Left out of the schema, null would be let in all the same, and no rule could be asked ever after: every write,
    the operator's own included, would be refused.
    """
    return schema | {"nullable": True} if schema == _FREE else schema


def _union(schema: Schema, definitions: Schema, path: str) -> Schema:
    """X or null is X, absent by default; scalars of several types are a value without a type."""
    branches = [b for b in schema["anyOf"] if b.get("type") != "null"]
    if len(branches) == 1:
        return convert(branches[0], definitions, path)
    if {b.get("type") for b in branches} == {"boolean", "integer", "number", "string"}:
        return dict(_FREE)
    raise NotStructural(f"{path}: a union of {', '.join(str(b.get('type')) for b in branches)}")


def of_model(model: type[BaseModel], path: str) -> Schema:
    """The structural schema of a model that stands at `path`."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return convert({k: v for k, v in schema.items() if k != "$defs"}, schema.get("$defs", {}), path)


def attach(schema: Schema, rules: tuple[Rule, ...]) -> None:
    """Hang each rule's CEL text where it belongs."""
    for rule in rules:
        if rule.cel is None:
            continue
        here = schema
        for step in rule.on.split(".") if rule.on else ():
            here = here["properties"][step.rstrip("[]{}")]
            here = here["items"] if step.endswith("[]") else here
            here = here["additionalProperties"] if step.endswith("{}") else here
        here.setdefault("x-kubernetes-validations", []).append({"rule": rule.cel, "message": rule.message})


def _column(name: str, kind: str, path: str, priority: int = 0) -> Schema:
    column = {"name": name, "type": kind, "jsonPath": path}
    return column | ({"priority": priority} if priority else {})


def _crd(
    kind: str, short: str, schema: Schema, subresources: Schema, columns: list[Schema], fields: list[str]
) -> Schema:
    plural = f"{kind.lower()}s"
    version = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "subresources": subresources,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }
    if fields:
        version["selectableFields"] = [{"jsonPath": field} for field in fields]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}", "annotations": {"helm.sh/resource-policy": "keep"}},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["trialkeeper"],
            },
            "versions": [version],
        },
    }


def _whole(spec: type[BaseModel], status: type[BaseModel], rules: tuple[Rule, ...], about: str) -> Schema:
    schema: Schema = {
        "type": "object",
        "description": about,
        "required": ["spec"],
        "properties": {"spec": of_model(spec, "spec"), "status": of_model(status, "status")},
    }
    attach(schema, rules)
    return schema


def experiments() -> Schema:
    """The CRD of Experiments."""
    columns = [
        _column("Phase", "string", ".status.phase"),
        _column("Trials", "integer", ".status.trials"),
        _column("Active", "integer", ".status.active"),
        _column("Done", "integer", ".status.finished"),
        _column("Best", "number", ".status.best.value"),
        _column("Disruptions", "integer", ".status.disruptions"),
        _column("Best Trial", "string", ".status.best.trial", 1),
        _column("Goodput", "number", ".status.goodput", 1),
        _column("Age", "date", ".metadata.creationTimestamp"),
    ]
    scale = {"specReplicasPath": ".spec.parallelism", "statusReplicasPath": ".status.active"}
    schema = _whole(ExperimentSpec, ExperimentStatus, EXPERIMENT, (Experiment.__doc__ or "").strip())
    return _crd(names.EXPERIMENT, "exp", schema, {"status": {}, "scale": scale}, columns, [])


def trials() -> Schema:
    """The CRD of Trials."""
    columns = [
        _column("Experiment", "string", ".spec.experiment"),
        _column("Phase", "string", ".status.phase"),
        _column("Attempt", "integer", ".status.attempt"),
        _column("Iteration", "integer", ".status.iteration"),
        _column("Checkpoint", "integer", ".status.checkpoint.iteration"),
        _column("Disruptions", "integer", ".status.disruptions"),
        _column("Reason", "string", ".status.reason"),
        _column("Age", "date", ".metadata.creationTimestamp"),
    ]
    fields = [".spec.experiment", ".status.phase"]
    schema = _whole(TrialSpec, TrialStatus, TRIAL, (Trial.__doc__ or "").strip())
    return _crd(names.TRIAL, "tri", schema, {"status": {}}, columns, fields)


def files() -> dict[str, str]:
    """File names and texts of all CRDs."""
    head = "# Written by `make crds` from the models: change those.\n"
    return {
        f"{crd['spec']['names']['plural']}.yaml": head
        + yaml.safe_dump(crd, sort_keys=False, width=120, default_flow_style=None)
        for crd in (experiments(), trials())
    }


def main(arguments: list[str]) -> int:
    """Write the CRDs into a folder, or say which of them are not those of the models."""
    folder = Path(arguments[-1])
    if "--check" not in arguments:
        for name, text in files().items():
            (folder / name).write_text(text)
        return 0
    stale = [n for n, text in files().items() if not (folder / n).exists() or (folder / n).read_text() != text]
    for name in stale:
        sys.stderr.write(f"{folder / name} is not what the models say: make crds\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
