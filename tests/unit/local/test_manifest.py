"""YAML as kubectl reads it: the table was made by its own library (sigs.k8s.io/yaml 1.6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trialkeeper_operator.api.validate import InvalidObject
from trialkeeper_operator.local.documents import documents
from trialkeeper_operator.local.manifest import load

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
    if isinstance(wanted, int) and not -(2**63) <= wanted < 2**63:
        wanted = float(wanted)  # as the API server reads it
    assert value == wanted
    assert type(value) is type(wanted)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\na: 2\n", "line 2, column 1: the key 'a' stands twice"),
        ("a:\n\tb: 1\n", "line 2, column 1: found character '\\t' that cannot start any token"),
        ("a: b: c\n", "line 1, column 5: mapping values are not allowed here (text with ': ' in it needs quotes"),
        ("a: @b\n", "line 1, column 4: found character '@' that cannot start any token (text that begins with it"),
        ("a: *.py\n", "but found '.' (text that begins with * or & needs quotes)"),
        ("a: 1\n b: 2\n", "line 2, column 3: mapping values are not allowed here"),
        ("a: \x07\n", "this is no YAML: unacceptable character #x0007"),
        ('a: "x\\0"\n', "line 1, column 4: text with NUL or half a character in it can be given to no program"),
        ('a: "\\ud83d"\n', "line 1, column 4: text with NUL or half a character in it can be given to no program"),
        ("a: !!int one\n", "line 1, column 4: 'one' is not what its tag !!int says"),
        ("? [a]\n: 1\n", "line 1, column 3: a key must be text"),
        ("~: 1\n", "line 1, column 1: a key must be text"),
        ("x: &x {a: 1}\nb: {a: 2, <<: *x}\n", "line 2, column 11: << would override 'a' above it: put << first"),
        ("x: &x {a: 1}\nb: {<<: *x, <<: *x}\n", "line 2, column 13: the key '<<' stands twice"),
        ("b: {<<: 1}\n", "line 1, column 9: << takes a mapping"),
        ("a: " + "[" * 2000 + "]" * 2000 + "\n", "the file is too deep"),
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


@pytest.mark.parametrize(("key", "read"), [("on", "true"), ("1", "1"), ("1.0", "1"), ("0x10", "16"), ("0.5", "0.5")])
def test_a_key_is_text_as_kubectl_makes_it(key: str, read: str) -> None:
    assert next(documents(f"{key}: 1\n")) == {read: 1}


def test_of_several_merged_mappings_the_first_has_its_way() -> None:
    text = "one: &x {a: 1}\ntwo: &z {a: 2, b: 1}\nthree: {<<: [*x, *z], c: 3}\n"
    assert next(documents(text))["three"] == {"a": 1, "b": 1, "c": 3}


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=40) | st.lists(st.sampled_from(list("&*!|>%@`{}[],:?-#'\"\n \t<~.0e")), max_size=24).map("".join)
)
def test_any_text_is_read_or_refused_and_never_crashes(text: str) -> None:
    try:
        found = list(documents(text))
    except InvalidObject as refusal:
        assert all(problem.sentence for problem in refusal.problems)
    else:
        json.dumps(found, allow_nan=False).encode()


@pytest.mark.parametrize(
    "assignment", ["", "=", "=1", ".=1", "[0]=1", "spec", "spec.x[=1", "spec=[", "spec..=1", "a=b=c"]
)
def test_any_assignment_is_taken_or_refused_and_never_crashes(assignment: str, tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(HEAD)
    try:
        load(file, [assignment])
    except InvalidObject as refusal:
        assert str(refusal).startswith(f"--set {assignment}: ")


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
