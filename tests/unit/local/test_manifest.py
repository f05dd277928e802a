"""YAML as kubectl reads it: the table was made by its own library (sigs.k8s.io/yaml 1.6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trialkeeper_operator.api.validate import InvalidObject
from trialkeeper_operator.local.manifest import documents, load

SCALARS: dict[str, Any] = json.loads((Path(__file__).parent / "scalars.json").read_text())
# The library decodes binary into text that need not be text; we refuse the tag instead.
REFUSED_HERE = {"!!binary aGk="}


@pytest.mark.parametrize("text", SCALARS)
def test_a_value_means_what_it_means_to_kubectl(text: str) -> None:
    expected = SCALARS[text]
    if text in REFUSED_HERE or expected == {"refused": True}:
        with pytest.raises(InvalidObject):
            list(documents(f"a: {text}\n"))
        return
    found = list(documents(f"a: {text}\n"))
    value, wanted = found[0]["a"], expected["a"]
    if isinstance(wanted, int) and not -(2**63) <= wanted < 2**64:
        wanted = float(wanted)  # Go prints a float without its fraction
    assert value == wanted
    assert isinstance(value, bool) == isinstance(wanted, bool)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\na: 2\n", "line 2, column 1: the key 'a' stands twice"),
        ("a:\n\tb: 1\n", "line 2, column 1: found character '\\t' that cannot start any token"),
        ("a: [1\n", "line 2, column 1: expected ',' or ']', but got '<stream end>'"),
        ("a: &x [*x]\n", "line 1, column 4: the file is too large or too deep, or an alias contains itself"),
        ("a: !!python/object:os.system x\n", "the tag tag:yaml.org,2002:python/object:os.system is not known"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_its_place(text: str, sentence: str) -> None:
    with pytest.raises(InvalidObject) as refusal:
        list(documents(text))
    assert sentence in str(refusal.value)


def test_a_bomb_of_aliases_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(InvalidObject, match="too large"):
        list(documents("\n".join(lines)))


def test_merge_keys_give_way_to_own_ones() -> None:
    assert next(documents("one: &x {a: 1, b: 2}\ntwo: {<<: *x, b: 3}\n"))["two"] == {"a": 1, "b": 3}


HEAD = "apiVersion: trialkeeper.dev/v1alpha1\nkind: Experiment\n"


def test_set_enters_lists_by_index_and_by_name(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(HEAD + "spec:\n  parameters:\n  - {name: lr, fixed: 1}\n  - {name: epochs, fixed: 2}\n")
    sets = ["spec.parameters[0].fixed=1e-3", "spec.parameters.epochs.fixed=7", "spec.maxTrials=4", "spec.search.seed=1"]
    spec = load(file, sets).raw["spec"]
    assert [p["fixed"] for p in spec["parameters"]] == [0.001, 7]
    assert (spec["maxTrials"], spec["search"]) == (4, {"seed": 1})


def test_other_documents_are_passed_over_with_a_note(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("kind: Secret\n---\n" + HEAD + "---\n")
    assert load(file).notes == ("document 1 (Secret) is passed over",)
