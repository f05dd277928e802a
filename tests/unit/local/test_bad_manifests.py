"""Bad YAML files: exit 2, one sentence with the place, nothing started. What the rules refuse is in `objects`, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from objects import BAD, changed
from trialkeeper_operator.local.commands import drill, run

GOOD = """\
apiVersion: trialkeeper.dev/v1alpha1
kind: Experiment
metadata:
  name: exp
spec:
  objectives:
  - {metric: loss}
  parameters:
  - {name: lr, float: {min: 1e-5, max: 0.1, scale: Log}}
  template:
    spec:
      containers:
      - {name: t, image: i, command: [python, t.py]}
"""

FILES: dict[str, tuple[str, str]] = {
    "empty": ("", "the file is empty"),
    "only comments": ("# nothing\n", "the file is empty"),
    "a list": ("- a\n- b\n", "document 1 is a list: an object with apiVersion and kind is needed"),
    "a word": ("hello\n", "document 1 is no mapping: an object with apiVersion and kind is needed"),
    "a pod": ("apiVersion: v1\nkind: Pod\n", "kind: must be Experiment, not the text 'Pod'"),
    "no kind": ("apiVersion: v1\n", "kind: is missing: Experiment is needed"),
    "another version": (
        GOOD.replace("v1alpha1", "v1"),
        "apiVersion: must be trialkeeper.dev/v1alpha1, not the text 'trialkeeper.dev/v1'",
    ),
    "no apiVersion": (
        GOOD.replace("apiVersion: trialkeeper.dev/v1alpha1\n", ""),
        "apiVersion: is missing: trialkeeper.dev/v1alpha1 is needed",
    ),
    "two experiments": (GOOD + "---\n" + GOOD, "2 Experiments in one file: put each into a file of its own"),
    "a tab": (
        GOOD.replace("  name: exp", "\tname: exp"),
        (
            "line 4, column 1: found character '\\t' that cannot start any token "
            "(YAML is indented by spaces, never by tabs)"
        ),
    ),
    "a bracket left open": (
        GOOD.replace("command: [python, t.py]}", "command: [python"),
        "line 14, column 1: expected ',' or ']', but got '<stream end>'",
    ),
    "a key twice": (
        GOOD + "  parallelism: 1\n  parallelism: 2\n",
        "line 15, column 3: the key 'parallelism' stands twice",
    ),
    "a key twice further down": (
        GOOD.replace("{metric: loss}", "{metric: loss, metric: acc}"),
        "line 7, column 20: the key 'metric' stands twice",
    ),
    "an alias that nobody defined": (
        GOOD + "  stop: *rules\n",
        "line 14, column 9: found undefined alias 'rules' (text that begins with * needs quotes)",
    ),
    "a Python object": (
        GOOD + "  stop: !!python/name:os.system x\n",
        "line 14, column 9: the tag tag:yaml.org,2002:python/name:os.system is not known",
    ),
    "not a number": (
        GOOD.replace("max: 0.1", "max: .nan"),
        "line 9, column 40: .nan is no number that Kubernetes knows",
    ),
    "infinite": (GOOD.replace("max: 0.1", "max: .inf"), "line 9, column 40: .inf is no number that Kubernetes knows"),
    "no metadata": (GOOD.replace("metadata:\n  name: exp\n", ""), "metadata.name: is missing"),
    "a number as name": (GOOD.replace("name: exp", "name: 7"), "metadata.name: must be text, not 7"),
    "no spec": (GOOD.partition("spec:")[0], "spec: is missing"),
    "no template": (GOOD.partition("  template:")[0], "spec.template: is missing"),
    "quoted numbers": (
        GOOD.replace("min: 1e-5", 'min: "1e-5"'),
        "spec.parameters[0].float.min: must be a number, not the text '1e-5'",
    ),
    "yes is no metric": (
        GOOD.replace("metric: loss", "metric: yes"),
        "spec.objectives[0].metric: must be text, not true",
    ),
    "spec.parallelism in quotes": (
        GOOD + '  parallelism: "2"\n',
        "spec.parallelism: must be a whole number, not the text '2'",
    ),
}


def refused(tmp_path: Path, text: str, *arguments: str) -> list[str]:
    file = tmp_path / "e.yaml"
    file.write_text(text)
    result = CliRunner().invoke(run, [str(file), "--dir", str(tmp_path / "runs"), *arguments])
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "runs").exists()
    return [line.removeprefix(f"{file}: ") for line in result.output.splitlines()]


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    text, sentence = FILES[name]
    assert refused(tmp_path, text) == [sentence]


@pytest.mark.parametrize("name", BAD)
def test_whatever_the_rules_refuse_is_refused_here_as_well(name: str, tmp_path: Path) -> None:
    text = json.dumps(changed(BAD[name].changes))
    assert refused(tmp_path, text) == [f"{BAD[name].path}: {BAD[name].sentence}"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "spec.maxTrials"], "--set spec.maxTrials: write path=value, for example spec.maxTrials=4"),
        (["--set", "spec.maxTrials=many"], "spec.maxTrials: must be a whole number, not the text 'many'"),
        (
            ["--set", "spec.parameters.nothing.fixed=1"],
            "--set spec.parameters.nothing.fixed=1: there is no entry nothing",
        ),
        (["--gpus", "0,0"], "--gpus 0,0: give a number (2) or a list of different ids (0,3)"),
    ],
)
def test_bad_options_are_refused_like_bad_files(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD, *arguments) == [sentence]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for command in (run, drill):
        result = CliRunner().invoke(command, [str(tmp_path / "none.yaml")])
        assert result.exit_code == 2
        assert result.output == f"{tmp_path / 'none.yaml'}: the file cannot be read: No such file or directory\n"


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("max: 0.1", "max: yes") + "  paralelism: 2\n"
    assert refused(tmp_path, text) == [
        "spec.paralelism: is not a field; did you mean parallelism?",
        "spec.parameters[0].float.max: must be a number, not true",
    ]


def test_a_wrong_indentation_is_seen_from_both_sides(tmp_path: Path) -> None:
    assert refused(tmp_path, GOOD.replace("  template:", "template:")) == [
        "spec.template: is missing",
        "template: is not a field; did you mean spec.template?",
    ]
