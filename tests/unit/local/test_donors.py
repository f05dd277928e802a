"""Going on from a snapshot on one machine: the donor's journal and store stand in a folder beside, or in the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trialkeeper_operator.cluster.journal import replay
from trialkeeper_operator.local.commands import run
from trialkeeper_operator.local.donors import find, link

TELL = 'echo "{\\"metrics\\": {\\"loss\\": $TRIALKEEPER_PARAM_X}}" > "$TRIALKEEPER_TERMINATION_LOG"; echo x >> ran'


def experiment(folder: Path, name: str, **spec: Any) -> Path:
    container = {"name": "t", "image": "i", "command": ["sh", "-c", TELL]}
    file = folder / f"{name}.yaml"
    document = {
        "apiVersion": "trialkeeper.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": name},
        "spec": {
            "objectives": [{"metric": "loss"}],
            "parameters": [{"name": "x", "float": {"min": 0.5, "max": 1.0}}],
            "maxTrials": 3,
            "parallelism": 2,
            "template": {"spec": {"containers": [container]}},
            **spec,
        },
    }
    file.write_text(json.dumps(document))
    return file


def started(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(run, [str(file), "--dir", str(file.parent / "runs"), "--output", "json", *arguments])


def said(file: Path, *arguments: str) -> dict[str, Any]:
    done = started(file, *arguments)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def runs(folder: Path) -> int:
    return len((folder / "ran").read_text().splitlines())


def snapshots(folder: Path) -> list[str]:
    objects, *_ = replay(folder / "journal.jsonl")
    return sorted(obj["metadata"]["name"] for obj in objects if obj["kind"] == "ConfigMap")


def test_another_experiment_goes_on_where_one_ended(tmp_path: Path) -> None:
    first = said(experiment(tmp_path, "exp"))
    more = said(experiment(tmp_path, "more", maxTrials=5, restoreFrom={"configMap": "exp-snapshot"}))
    assert more["counts"] == {"Succeeded": 5}
    assert runs(tmp_path) == 5, "what is over is not run again"
    kept = ("parameters", "seed", "phase")
    assert [[t[k] for k in kept] for t in more["trials"][:3]] == [[t[k] for k in kept] for t in first["trials"]]
    for taken, was in zip(more["trials"], first["trials"], strict=False):  # to the digits that a snapshot keeps
        assert taken["metrics"].keys() == was["metrics"].keys()
        assert all(taken["metrics"][m] == pytest.approx(was["metrics"][m], rel=1e-5) for m in was["metrics"])
    assert len({t["parameters"]["x"] for t in more["trials"]}) == 5
    again = said(tmp_path / "more.yaml")
    assert (again["uid"], runs(tmp_path)) == (more["uid"], 5)


def test_the_same_name_begun_anew_goes_on_from_its_older_journal(tmp_path: Path) -> None:
    first = said(experiment(tmp_path, "exp"))
    file = experiment(tmp_path, "exp", maxTrials=4, restoreFrom={"configMap": "exp-snapshot"})
    second = said(file, "--fresh")
    assert second["uid"] != first["uid"]
    assert (second["counts"], runs(tmp_path)) == ({"Succeeded": 4}, 4)
    assert snapshots(tmp_path / "runs" / "exp") == ["exp-snapshot", f"exp-snapshot-{first['uid'][:8]}"]
    third = said(file, "--fresh", "--set", "spec.maxTrials=5")
    assert (third["counts"], runs(tmp_path)) == ({"Succeeded": 5}, 5)


def test_an_experiment_of_another_name_that_begins_alike_is_not_taken_for_it(tmp_path: Path) -> None:
    said(experiment(tmp_path, "exp"))
    said(experiment(tmp_path, "exp-snapshot"))
    found, folder = find("exp-snapshot-snapshot", tmp_path / "runs" / "new")
    assert found is not None
    assert folder == tmp_path / "runs" / "exp-snapshot"
    found, folder = find("exp-snapshot", tmp_path / "runs" / "new")
    assert folder == tmp_path / "runs" / "exp"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"restoreFrom": {"configMap": "gone-snapshot"}},
            "has the snapshot gone-snapshot: name that of a run that is there",
        ),
        (
            {
                "restoreFrom": {"configMap": "exp-snapshot"},
                "parameters": [{"name": "x", "float": {"min": 2.0, "max": 3.0}}],
            },
            "does not fit spec.parameters: x must be between 2.0 and 3.0",
        ),
    ],
)
def test_what_cannot_be_gone_on_from_is_one_sentence(spec: dict[str, Any], words: str, tmp_path: Path) -> None:
    said(experiment(tmp_path, "exp"))
    done = started(experiment(tmp_path, "more", **spec))
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert runs(tmp_path) == 3


def test_files_are_linked_whole_or_not_at_all_and_growing_ones_are_copied(tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "default" / "e-1", tmp_path / "new" / "default" / "e-1"
    for name in ("00000/data/c/state", "00000/results/a000001.jsonl", "00000/manifests/.torn"):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(name)
    link(old, new)
    link(old, new)
    assert (new / "00000/data/c/state").samefile(old / "00000/data/c/state")
    assert not (new / "00000/results/a000001.jsonl").samefile(old / "00000/results/a000001.jsonl")
    assert (new / "00000/results/a000001.jsonl").read_text() == "00000/results/a000001.jsonl"
    assert not (new / "00000/manifests/.torn").exists()
    assert [path.name for path in new.parent.iterdir()] == ["e-1"]
