"""`trialkeeper results`, `checkpoints` and `download` from outside: what they print, exit codes, sentences."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shelf import Shelf
from trialkeeper import contract
from trialkeeper.results import commands
from trialkeeper.results.tensorboard import NAME

COMMANDS = {"results": commands.results, "checkpoints": commands.checkpoints, "download": commands.download}


def said(*arguments: str) -> Result:
    return CliRunner().invoke(COMMANDS[arguments[0]], arguments[1:])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two trials; the first was killed and has gone on."""
    first, second = (
        Shelf(tmp_path / "store", f"default/exp-12345678/{i:05d}", {"lr": 0.1 * (i + 1), "kind": "sgd"}) for i in (0, 1)
    )
    first.begin()
    first.rows(1, range(1, 5))
    first.begin(2, first.save(1, 3))
    first.rows(2, range(4, 6), accuracy="NaN")
    first.save(2, 5)
    first.end(2)
    second.begin()
    second.rows(1, range(1, 3))
    return tmp_path


def test_a_table_of_trials(run: Path) -> None:
    done = said("results", str(run))
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "trial  state      attempts  iteration  loss   checkpoint  parameters",
        "exp-0  Succeeded  2         5          1.001  at 5        lr=0.1 kind=sgd",
        "exp-1  -          1         2          1.001  -           lr=0.2 kind=sgd",
        "",
        "best  exp-0: loss 1.001",
    ]


def test_a_table_of_one_trial(run: Path) -> None:
    assert said("results", str(run), "--trial", "exp-0").stdout.splitlines() == [
        "training_iteration  loss   accuracy",
        "1                   1.001  -",
        "2                   1.002  -",
        "3                   1.003  -",
        "4                   2.004  nan",
        "5                   2.005  nan",
    ]
    both = said("results", str(run), "--trial", "0", "--trial", "1", "--raw").stdout
    assert [line for line in both.splitlines() if line.startswith("exp")] == ["exp-0", "exp-1"]


def test_csv_has_all_trials_and_all_columns(run: Path) -> None:
    done = said("results", str(run), "--format", "csv")
    assert done.stdout.splitlines()[0] == (
        "trial_id,training_iteration,loss,accuracy,config/lr,config/kind,timestamp,attempt"
    )
    found = [(r["trial_id"], int(r["training_iteration"]), r["attempt"], r["accuracy"]) for r in csv.DictReader(
        done.stdout.splitlines()
    )]  # fmt: skip
    assert found == [
        *(("exp-0", i, "1", "") for i in (1, 2, 3)),
        *(("exp-0", i, "2", "nan") for i in (4, 5)),
        *(("exp-1", i, "1", "") for i in (1, 2)),
    ]
    raw = said("results", str(run), "--format", "csv", "--raw", "--trial", "0").stdout
    assert [r["attempt"] for r in csv.DictReader(raw.splitlines())] == ["1", "1", "1", "1", "2", "2"]


def test_json_is_an_object_a_line_and_always_valid(run: Path, tmp_path: Path) -> None:
    done = said("results", str(run), "--format", "json", "--output", str(tmp_path / "all.jsonl"))
    assert (done.exit_code, done.output) == (0, "")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [row["training_iteration"] for row in found] == [1, 2, 3, 4, 5, 1, 2]
    assert (found[3]["accuracy"], found[3]["config/lr"]) == ("NaN", 0.1)
    assert sorted(p.name for p in tmp_path.iterdir() if "all" in p.name) == ["all.jsonl"]


def test_tensorboard_gets_a_folder_for_each_trial(run: Path, tmp_path: Path) -> None:
    for _ in (1, 2):
        done = said("results", str(run), "--format", "tensorboard", "--output", str(tmp_path / "tb"))
        assert (done.exit_code, done.output) == (0, "")
    sizes = {p.parent.name: p.stat().st_size for p in (tmp_path / "tb").rglob("*") if p.is_file()}
    assert sizes.keys() == {"exp-0", "exp-1"}
    assert b"\x0a\x04loss\x15" in (tmp_path / "tb" / "exp-0" / NAME).read_bytes()
    assert b"accuracy" not in (tmp_path / "tb" / "exp-0" / NAME).read_bytes(), "NaN is no point of a curve"
    assert said("results", str(run), "--format", "tensorboard").exit_code == 2


@pytest.mark.parametrize("format_", ["csv", "json", "table", "tensorboard"])
def test_what_is_followed_comes_as_it_comes_and_ends_with_the_experiment(
    format_: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Shelf(run / "store", "default/exp-12345678/00001", {"lr": 0.2})
    monkeypatch.setattr("trialkeeper.results.reading.QUIET", 0.0)

    def resume() -> None:
        second.begin(2, second.save(1, 3))
        second.rows(2, range(4, 6))

    events: list[Callable[[], object]] = [partial(second.rows, 1, range(3, 5), late=1), resume, partial(second.end, 2)]
    monkeypatch.setattr("trialkeeper.results.commands.sleep", lambda _: events.pop(0)())
    done = said("results", str(run), "--format", format_, "--follow", "--output", str(run / "followed"))
    assert (done.exit_code, events) == (0, [])
    if format_ == "tensorboard":
        assert (run / "followed" / "exp-1" / NAME).read_bytes().count(b"\x3a\x02\x08\x01") == 1, "4 is done again"
        return
    text = (run / "followed").read_text()
    if format_ == "csv":
        found = [(r["trial_id"], int(r["training_iteration"])) for r in csv.DictReader(text.splitlines())]
        assert "late came later and has no column" in done.stderr
    elif format_ == "json":
        rows = [json.loads(line) for line in text.splitlines()]
        found = [(row["trial_id"], row["training_iteration"]) for row in rows]
    else:
        found = [(line.split()[0], int(line.split()[2])) for line in text.splitlines()]
    assert found == [*(("exp-0", i) for i in range(1, 6)), *(("exp-1", i) for i in (1, 2, 3, 4, 4, 5))]


def test_checkpoints_are_listed(run: Path) -> None:
    lines = said("checkpoints", str(run)).stdout.splitlines()
    assert lines[0].split() == ["trial", "iteration", "attempt", "size", "saved", "reason", "whole", "loss"]
    assert [line.split()[:5] for line in lines[1:]] == [["exp-0", "5", "2", "3", "B"], ["exp-0", "3", "1", "3", "B"]]
    found = json.loads(said("checkpoints", str(run), "exp-0", "--format", "json").stdout)
    assert [(c["iteration"], c["files"], c["whole"], c["metrics"]) for c in found] == [
        (5, ["w"], True, {"loss": 2.005}),
        (3, ["w"], True, {"loss": 1.003}),
    ]
    assert json.loads(said("checkpoints", str(run), "1", "--format", "json").stdout) == []


@pytest.mark.parametrize(
    ("trial", "folder", "content"),
    [
        ("exp-0", "exp-0-i5", "2-5"),
        ("0@latest", "exp-0-i5", "2-5"),
        ("exp-0@3", "exp-0-i3", "1-3"),
        ("exp-0@best", "exp-0-i3", "1-3"),
        ("best@best", "exp-0-i3", "1-3"),
    ],
)
def test_a_checkpoint_is_downloaded(
    trial: str, folder: str, content: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = said("download", str(run), trial)
    assert (done.exit_code, done.output) == (0, f"{tmp_path / folder}\n")
    assert (tmp_path / folder / "w").read_text() == content


def test_a_checkpoint_that_is_not_whole_is_passed_over_and_that_is_said(run: Path, tmp_path: Path) -> None:
    newest = sorted((run / "store" / "default" / "exp-12345678" / "00000" / "data").iterdir())[-1]
    (newest / "w").unlink()
    done = said("download", str(run), "0", "--to", str(tmp_path / "out"))
    assert (done.exit_code, done.stderr) == (
        0,
        "trialkeeper: the checkpoint at iteration 5 is not whole: that at 3 is taken\n",
    )
    done = said("download", str(run), "0@5", "--to", str(tmp_path / "other"))
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["results", "nowhere"], 2, "is no folder"),
        (["results", "RUN", "--trial", "x"], 2, "there is no trial x, there are: exp-0, exp-1"),
        (["results", "RUN", "--format", "xml"], 2, "xml"),
        (["checkpoints", "gs://x"], 2, "is not a place of results"),
        (["download", "RUN", "0@4"], 2, "no such checkpoint, it has some at iterations 5, 3"),
        (["download", "RUN", "1"], 2, "exp-1 has no such checkpoint"),
        (["download", "RUN", "0@soon"], 2, "is no iteration, nor best, nor latest"),
        (["download", "RUN", "0", "--files", "*.pt"], 2, "no file is called *.pt, there are: w"),
        (["download", "RUN", "0", "--to", "RUN"], 2, "holds something else"),
        (["results", "s3://trials?endpoint=http://127.0.0.1:1"], 1, "cannot be reached"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_an_exit_code(
    arguments: list[str], code: int, words: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trialkeeper.store.wire.TRIES", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    done = said(*(str(run) if a == "RUN" else a for a in arguments))
    assert done.exit_code == code, done.output
    assert words in done.stderr
    assert "Traceback" not in done.output


def test_nothing_in_a_store_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "store", parameters={"\x1b[31m": "\x07"}, objectives=[{"metric": "\x1b]0;t\x07"}])
    shelf.begin(trial="\x1b[2J", experiment="\x1b[2J")
    shelf.rows(1, range(1, 2), **{"\x1b[1m": 1})
    shelf.save(1, 1)
    for arguments in (["results"], ["results", "--trial", "0"], ["checkpoints"]):
        done = said(arguments[0], str(tmp_path / "store"), *arguments[1:])
        assert done.exit_code == 0, done.output
        assert "\x1b" not in done.output
        assert "\x07" not in done.output


def test_ctrl_c_and_a_closed_pipe_are_no_tracebacks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trialkeeper.results.commands.sleep", interrupt)
    assert said("results", str(run), "--follow").exit_code == 130
    shelf = Shelf(run / "store", "default/exp-12345678/00001")
    shelf.text(1, "".join(f'{{"training_iteration":{i},"loss":0.5}}\n' for i in range(3, 20_000)))
    command = f"{sys.executable} -m trialkeeper results {run} --format json | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env={**os.environ})
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_the_command_line_has_them_without_the_operators_package(run: Path) -> None:
    code = "import sys; sys.modules['trialkeeper_operator'] = None; from trialkeeper.command_line import main; main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    done = subprocess.run([*command, "results", str(run)], capture_output=True, text=True, check=False)
    assert "best  exp-0" in done.stdout, done.stderr


def test_the_store_says_whose_it_is_even_if_the_journal_cannot_be_read(run: Path) -> None:
    (run / "journal.jsonl").write_text("{\n{\n")
    assert "exp-0  Succeeded" in said("results", str(run)).stdout
    assert contract.prefix("default", "exp", "12345678", 0) == "default/exp-12345678/00000"
