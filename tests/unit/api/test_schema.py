"""The CRDs: structural, small, those of the models; and that nothing of a model is lost in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from trialkeeper_operator.api import rules, schema
from trialkeeper_operator.api.rule import Rule

LIMIT = 32 * 1024  # bytes of a CRD: it has to fit into an annotation of 256 KiB many times over
FILES = schema.files()


def parts(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, schema) of every part of a structural schema."""
    yield path, node
    for name, inner in node.get("properties", {}).items():
        yield from parts(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from parts(node[key], f"{path}[]")


def root(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILES[name])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_crd_is_small(name: str) -> None:
    assert len(FILES[name].encode()) < LIMIT


@pytest.mark.parametrize("name", FILES)
def test_every_part_is_structural(name: str) -> None:
    for path, part in parts(root(name)):
        assert not part.keys() & {"$ref", "$defs", "anyOf", "oneOf", "title", "const"}, path
        # What has no type may be null where it is an entry: a null that no schema allows makes every rule fail.
        untyped = {"x-kubernetes-preserve-unknown-fields": True} | ({"nullable": True} if path.endswith("[]") else {})
        assert ("type" in part and "nullable" not in part) or part == untyped, path
        assert not (part.get("properties") and part.get("additionalProperties")), path
        assert part.get("default", "") is not None, path


@pytest.mark.parametrize("name", FILES)
def test_whatever_a_rule_walks_over_is_bounded(name: str) -> None:
    spec = root(name)["properties"]["spec"]
    for path, part in parts(spec, "spec"):
        if part.get("type") == "array":
            assert "maxItems" in part, path
        if "additionalProperties" in part:
            assert "maxProperties" in part or path.startswith("spec.template"), path


@pytest.mark.parametrize(("name", "declared"), [("experiments.yaml", rules.EXPERIMENT), ("trials.yaml", rules.TRIAL)])
def test_every_rule_with_cel_stands_in_the_crd_once(name: str, declared: tuple[Rule, ...]) -> None:
    found = [v["rule"] for _, part in parts(root(name)) for v in part.get("x-kubernetes-validations", ())]
    assert sorted(found) == sorted(rule.cel for rule in declared if rule.cel is not None)


@pytest.mark.parametrize("rule", [*rules.EXPERIMENT, *rules.TRIAL], ids=lambda rule: f"{rule.on}: {rule.message}")
def test_a_rule_is_asked_somewhere_and_says_why_not_everywhere(rule: Rule) -> None:
    assert (rule.cel is None) == bool(rule.without_cel)
    assert rule.cel is not None or (rule.twin is None) != (rule.transition is None)
    assert not (rule.twin and rule.transition)
    if rule.cel is not None and (rule.twin or rule.transition):
        assert ("oldSelf" in rule.cel) == (rule.transition is not None)


STRANGE: dict[str, dict[str, Any]] = {
    "a union": {"anyOf": [{"type": "string"}, {"type": "object"}]},
    "one of models": {"oneOf": [{"type": "object"}]},
    "a set": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    "a duration": {"type": "string", "format": "duration"},
    "a bound that int64 cannot hold": {"type": "number", "maximum": 1e300},
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_a_structural_schema_cannot_say_is_refused(name: str) -> None:
    with pytest.raises(schema.NotStructural, match=r"^spec\.x: "):
        schema.convert(STRANGE[name], {}, "spec.x")


CONVERTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "absent by default": ({"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}, {"type": "string"}),
    "an open bound": (
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "number", "minimum": 0, "exclusiveMinimum": True},
    ),
    "one value": ({"type": "string", "const": "Never"}, {"type": "string", "enum": ["Never"]}),
    "a whole number": ({"type": "integer", "default": 1}, {"type": "integer", "format": "int64", "default": 1}),
    "free form": (
        {"type": "object", "additionalProperties": True},
        {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    ),
    "a reference": (
        {"$ref": "#/$defs/A", "default": {"b": 1}},
        {"type": "object", "properties": {"b": {"type": "string"}}, "default": {}},
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_pydantic_writes_becomes_structural(name: str) -> None:
    given, expected = CONVERTED[name]
    definitions = {"A": {"type": "object", "properties": {"b": {"type": "string"}}, "additionalProperties": False}}
    assert schema.convert(given, definitions, "spec.x") == expected


def test_check_tells_stale_files_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert schema.main([str(tmp_path)]) == 0
    assert schema.main(["--check", str(tmp_path)]) == 0
    (tmp_path / "trials.yaml").write_text("other\n")
    assert schema.main(["--check", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'trials.yaml'} is not what the models say: make crds\n"
