"""`trialkeeper run` and `drill` from outside: exit codes, sentences, and what is left in the run's folder."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trialkeeper.contract import Message
from trialkeeper_operator.cluster.journal import replay
from trialkeeper_operator.local.commands import drill, run
from trialkeeper_operator.local.place import lock
from trialkeeper_operator.local.process import of_run

# Trainers without the SDK, since a shell starts ten times as fast: parameter x is the loss.
TELL = 'echo "{\\"metrics\\": {\\"loss\\": $TRIALKEEPER_PARAM_X}}" > "$TRIALKEEPER_TERMINATION_LOG"\n'
REPORT = Message(attempt=1, iteration=9, time=1.0, firstReport=1.0).encode()
REPORT_ONCE = f"""
if [ "$TRIALKEEPER_ATTEMPT" = 1 ]; then
  echo '{REPORT}' > "${{TRIALKEEPER_REPORT#file://}}"
  exec sleep 600
fi
{TELL}"""


def experiment(folder: Path, script: str = TELL, **spec: Any) -> Path:
    container = {"name": "t", "image": "i", "command": ["sh", "-c", script.replace("$$", "$$$$")]}
    file = folder / "e.yaml"
    document = {
        "apiVersion": "trialkeeper.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": "exp"},
        "spec": {
            "objectives": [{"metric": "loss"}],
            "parameters": [{"name": "x", "float": {"min": 0.5, "max": 1.0}}],
            "maxTrials": 3,
            "parallelism": 2,
            "failurePolicy": {"maxFailures": 0, "backoffSeconds": 0},
            "template": {"spec": {"containers": [container | spec.pop("container", {})], **spec.pop("pod", {})}},
            **spec,
        },
    }
    file.write_text(json.dumps(document))
    return file


def started(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(run, [str(file), "--dir", str(file.parent / "runs"), *arguments])


def said(file: Path, *arguments: str) -> dict[str, Any]:
    done = started(file, "--output", "json", *arguments)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def stored(file: Path) -> list[Any]:
    """Experiment and Trials as the journal has them; pods are cleared away whenever there is time."""
    objects, *_ = replay(file.parent / "runs" / "exp" / "journal.jsonl")
    return [obj for obj in objects if obj["kind"] in ("Experiment", "Trial")]


def test_a_finished_experiment_is_told_again_and_not_run_again(tmp_path: Path) -> None:
    file = experiment(tmp_path)
    first = said(file)
    assert (first["phase"], first["counts"]) == ("Succeeded", {"Succeeded": 3})
    best = min(first["trials"], key=lambda t: t["parameters"]["x"])
    assert (first["best"]["trial"], first["best"]["value"]) == (best["name"], best["parameters"]["x"])
    before = stored(file)
    assert said(file) == first
    assert stored(file) == before
    assert list((tmp_path / "runs" / "exp" / "pods").iterdir()) == []


def test_more_trials_are_added_to_a_finished_experiment(tmp_path: Path) -> None:
    file = experiment(tmp_path)
    first = said(file)
    more = said(file, "--set", "spec.maxTrials=5", "--parallel", "3")
    assert more["trials"][:3] == first["trials"]
    assert more["counts"] == {"Succeeded": 5}


def test_another_experiment_is_refused_with_what_differs_and_the_two_ways_out(tmp_path: Path) -> None:
    file = experiment(tmp_path)
    first = said(file)
    experiment(tmp_path, parallelism=1, parameters=[{"name": "x", "float": {"min": 0.25, "max": 1.0}}])
    refused = started(file)
    assert refused.exit_code == 2
    assert "spec.parameters[0].float.min: 0.5 -> 0.25" in refused.stderr
    assert "--fresh" in refused.stderr
    assert "metadata.name" in refused.stderr
    assert "parallelism" not in refused.stderr, "that may change"
    anew = said(file, "--fresh")
    assert anew["uid"] != first["uid"]
    assert len(list((tmp_path / "runs" / "exp").glob("journal-*.jsonl"))) == 1


def test_fewer_trials_than_before_are_refused_with_the_numbers(tmp_path: Path) -> None:
    file = experiment(tmp_path)
    said(file)
    refused = started(file, "--set", "spec.maxTrials=2")
    assert refused.exit_code == 2
    assert "spec.maxTrials: 3 -> 2: it can only grow, write 3 or more" in refused.stderr
    assert "--fresh" not in refused.stderr
    refused = started(file, "--set", "spec.maxTrials=2", "--set", "spec.search.seed=9")
    assert "spec.maxTrials: 3 -> 2: it can only grow" in refused.stderr
    assert "--fresh" in refused.stderr


def test_a_second_runner_is_refused_with_the_first_ones_number(tmp_path: Path) -> None:
    file = experiment(tmp_path)
    held = lock(tmp_path / "runs" / "exp")
    try:
        refused = started(file)
    finally:
        os.close(held)
    assert refused.exit_code == 2
    assert f"in use by process {os.getpid()}" in refused.stderr
    assert said(file)["phase"] == "Succeeded"


def test_an_experiment_that_fails_says_why_and_exits_with_1(tmp_path: Path) -> None:
    file = experiment(tmp_path, "echo no data >&2; exit 3")
    done = started(file)
    assert done.exit_code == 1
    assert "failed      exp-0: the trainer exited with code 3: no data" in done.stdout
    assert "\x1b" not in done.stdout, "no control codes where nobody reads them"


def test_an_entry_that_can_never_be_is_told_when_it_is_passed_over_and_at_the_end(tmp_path: Path) -> None:
    file = experiment(tmp_path, enqueue=[{"base": {"trial": "other-7"}}])
    words = "enqueue[0] is passed over: there is no Trial other-7"
    done = started(file)
    assert done.exit_code == 0
    told = [line.partition(words)[0] for line in done.output.splitlines() if words in line]
    assert told == ["", "enqueue     "]
    assert words in said(file)["notEnqueued"]


def test_every_problem_of_a_file_is_one_line_and_nothing_is_started(tmp_path: Path) -> None:
    file = experiment(tmp_path, onNonFinite="Maybe", parallelism="two")
    done = started(file)
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [str(file), "spec.onNonFinite"],
        [str(file), "spec.parallelism"],
    ]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--gpus", "0,0"], 2, "list of different ids"),
        (["--set", "spec.nothing=1"], 2, "spec.nothing"),
        (["--set", "spec.nodes=2"], 2, "spec.nodes: one machine is one node"),
        (["--parallel", "0"], 2, "--parallel"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    done = started(experiment(tmp_path), *arguments)
    assert done.exit_code == code
    assert words in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    done = started(experiment(tmp_path))
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "runs") in done.stderr


def test_a_disk_that_is_full_ends_the_run_with_one_sentence_and_no_trainer_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = experiment(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        done = started(file)
    assert done.exit_code == 1
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert of_run(tmp_path / "runs" / "exp" / "pods") == {}
    assert said(file)["counts"] == {"Succeeded": 3}


def test_a_broken_journal_is_one_sentence(tmp_path: Path) -> None:
    file = experiment(tmp_path)
    said(file)
    journal = tmp_path / "runs" / "exp" / "journal.jsonl"
    journal.write_bytes(b"{}\n" + journal.read_bytes())
    done = started(file)
    assert done.exit_code == 2
    assert "line 1 is broken" in done.stderr


def test_what_means_nothing_here_is_noted_once(tmp_path: Path) -> None:
    container = {"envFrom": [{"secretRef": {"name": "s"}}]}
    file = experiment(tmp_path, pod={"volumes": [{"name": "v", "emptyDir": {}}]}, container=container)
    done = started(file, "--output", "quiet")
    assert done.stdout == ""
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "volumes" in notes[0]
    assert "envFrom" in notes[0]


@pytest.mark.parametrize("signal", ["INT", "TERM", "HUP"])
def test_ctrl_c_gives_trainers_time_and_the_same_command_goes_on(signal: str, tmp_path: Path) -> None:
    script = f"""
if [ "$TRIALKEEPER_ATTEMPT" = 1 ]; then
  trap 'echo saved; exit 143' TERM
  kill -{signal} $PPID
  sleep 600 & wait
fi
{TELL}"""
    file = experiment(tmp_path, script, maxTrials=1)
    done = started(file, "--set", "spec.timeouts.graceSeconds=42")
    assert done.exit_code == 130
    assert "SIGTERM and up to 42 s to save" in done.output
    assert "the same command goes on" in done.stderr
    assert (tmp_path / "runs" / "exp" / "logs" / "exp-0-a1.log").read_text() == "saved\n"
    again = said(file)
    assert again["counts"] == {"Succeeded": 1}
    reasons = [(a["class"], a["reason"]) for a in again["trials"][0]["attempts"]]
    assert reasons == [("Preempted", "TerminationByKubelet"), ("Succeeded", "Completed")]


def test_kills_are_shared_out_over_all_points_of_a_grid(tmp_path: Path) -> None:
    file = experiment(
        tmp_path,
        REPORT_ONCE,
        parameters=[{"name": "x", "choice": {"values": [1, 2]}}],
        search={"algorithm": "Grid"},
        maxTrials=None,
    )
    found = said(file, "--preempt", "2")
    assert [len(t["attempts"]) for t in found["trials"]] == [2, 2]
    assert found["preempted"] == 2
    again = said(file, "--preempt", "2")
    assert again == found, "kills of an earlier runner are not forgotten"


def test_the_drill_tells_a_trainer_that_never_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    done = CliRunner().invoke(drill, [str(experiment(tmp_path, "exit 0"))])
    assert done.exit_code == 1
    assert "never calls trialkeeper.report()" in done.stdout.splitlines()[-1]


def test_a_drill_that_is_interrupted_has_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    done = CliRunner().invoke(drill, [str(experiment(tmp_path, "kill -INT $PPID; exec sleep 600"))])
    assert done.exit_code == 130
    assert "says nothing about your trainer" in done.stderr


@pytest.mark.parametrize("what", ["the folder", "the journal", "another folder"])
def test_a_run_whose_folder_is_gone_stops_its_trainers_and_is_no_success(what: str, tmp_path: Path) -> None:
    run_folder, old, new = tmp_path / "runs" / "exp", tmp_path / "old", tmp_path / "new"
    # In one process, so that hardly anybody sees the moment without a folder.
    swap = f"import os; os.rename('{run_folder}', '{old}'); os.rename('{new}', '{run_folder}')"
    gone = {
        "the folder": f'rm -rf "{run_folder}"',
        "the journal": f'rm "{run_folder}/journal.jsonl"',
        "another folder": f'cp -r "{run_folder}" "{new}"; {sys.executable} -c "{swap}"',
    }[what]
    file = experiment(tmp_path, f"if [ $TRIALKEEPER_INDEX = 0 ]; then {gone}; fi\nexec sleep 600\n")
    done = started(file)
    assert done.exit_code == 1, done.output
    verb = "replaced" if what == "another folder" else "deleted"
    assert f"{run_folder} was {verb} while it ran" in done.stderr.splitlines()[-1]
    assert "Succeeded" not in done.output
    assert "reconciling failed" not in done.output
    kept = (run_folder / "pods" / "exp-0-a1").is_dir()
    assert kept == (what == "another folder"), "which may be another runner's"
    assert of_run(run_folder / "pods") == {}


def test_a_run_that_ends_without_its_folder_is_no_success(tmp_path: Path) -> None:
    done = started(experiment(tmp_path, f'{TELL}rm -rf "{tmp_path}/runs"', maxTrials=1))
    assert done.exit_code == 1
    assert "was deleted while it ran" in done.stderr


def test_a_run_that_lost_its_journal_says_that_it_begins_anew(tmp_path: Path) -> None:
    file = experiment(tmp_path)
    store = tmp_path / "runs" / "exp" / "store"
    (store / "default").mkdir(parents=True)
    first = started(file)
    assert first.exit_code == 0
    assert first.stderr.count("begins anew, and the old store in it stays") == 1
    assert (store / "default").is_dir()
    assert "begins anew" not in started(file).stderr
