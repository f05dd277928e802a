"""A run's folder: what its journal knows beside the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

import trialkeeper
from trialkeeper_operator.local.commands import run


def started(folder: Path, *arguments: str, **spec: Any) -> None:
    tell = 'echo "{\\"metrics\\": {\\"loss\\": $TRIALKEEPER_PARAM_X}}" > "$TRIALKEEPER_TERMINATION_LOG"'
    container = {"name": "t", "image": "i", "command": ["sh", "-c", tell]}
    document = {
        "apiVersion": "trialkeeper.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": "exp"},
        "spec": {
            "objectives": [{"metric": "loss", "direction": "Maximize"}],
            "parameters": [{"name": "x", "float": {"min": 0.5, "max": 1.0}}],
            "maxTrials": 2,
            "template": {"spec": {"containers": [container]}},
            **spec,
        },
    }
    (folder / "e.yaml").write_text(json.dumps(document))
    done = CliRunner().invoke(
        run, [str(folder / "e.yaml"), "--dir", str(folder / "runs"), "--output", "quiet", *arguments]
    )
    assert done.exit_code == 0, done.output


def test_states_and_objectives_come_from_the_journal(tmp_path: Path) -> None:
    started(tmp_path)
    results = trialkeeper.open_results(str(tmp_path / "runs" / "exp"))
    assert (results.experiment, results.finished) == ("exp", True)
    assert [(t.name, t.state, list(t.parameters)) for t in results.trials] == [
        ("exp-0", "Succeeded", ["x"]),
        ("exp-1", "Succeeded", ["x"]),
    ]
    assert (results.objective().metric, results.objective().direction) == ("loss", "Maximize")
    assert results.best() is None, "without the SDK there are no rows"


def test_after_fresh_the_new_run_is_read(tmp_path: Path) -> None:
    started(tmp_path)
    results = trialkeeper.open_results(str(tmp_path / "runs" / "exp"))
    before = results.trials[0].prefix
    started(tmp_path, "--fresh", maxTrials=1)
    results.refresh()
    assert [t.prefix == before for t in results.trials] == [False]


def test_a_journal_that_is_broken_leaves_what_the_store_knows(tmp_path: Path) -> None:
    started(tmp_path)
    folder = tmp_path / "runs" / "exp"
    results = trialkeeper.open_results(str(folder))
    prefix = Path("/", results.trials[0].prefix)
    (prefix / "attempts").mkdir(parents=True)
    (prefix / "attempts" / "000001.json").write_text('{"attempt": 1, "base": null, "trial": "exp-0"}')
    (folder / "journal.jsonl").write_text("{\n{\n")
    results.refresh()
    assert [(t.name, t.state) for t in results.trials] == [("exp-0", None)]
