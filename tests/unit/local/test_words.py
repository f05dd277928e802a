"""What people and programs are told: the document, the summary, the lines, the table. Everything by example."""

from __future__ import annotations

import asyncio
import io
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import builders
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.local import narration, summary
from trialkeeper_operator.local.runner import Diary
from trialkeeper_operator.local.screen import Lines, Live, fitting

RUN = Path("/home/me/runs/exp")
LOG = "logs/exp-0-a1.log"


def record(attempt: int, class_: str, reason: str, **more: Any) -> dict[str, Any]:
    times = {"startTime": "2026-01-01T00:00:00.000000Z", "endTime": "2026-01-01T00:00:09.000000Z"}
    return {"attempt": attempt, "class": class_, "reason": reason, **times, **more}


def trial(index: int, **status: Any) -> Trial:
    spec = {"index": index, "parameters": {"lr": 0.0123456, "kind": "sgd"}}
    return Trial.from_object(builders.trial(f"exp-{index}", uid=f"t{index}", spec=spec, **status))


KILLED = record(
    1,
    "Preempted",
    "DeletionByPodGC",
    message="trialkeeper run --preempt: the node vanished",
    exitCode=137,
    fromIteration=0,
    toIteration=12,
    lostIterations=2,
)
GOOD = trial(
    0,
    phase="Succeeded",
    reason="Completed",
    message="the trainer ran to its end",
    attempt=2,
    closed=2,
    iteration=20,
    trainedSeconds=8.5,
    disruptions=1,
    metrics={"loss": {"last": 0.25, "min": 0.125, "max": 1.0}},
    checkpoint={"attempt": 2, "iteration": 20, "key": "k", "time": "2026-01-01T00:00:00.000000Z"},
    lostWork={"iterations": 2, "seconds": 0.84, "restartSeconds": 0.31},
    history=[KILLED, record(2, "Succeeded", "Completed", exitCode=0, fromIteration=10, toIteration=20)],
)
BAD = trial(
    1,
    phase="Failed",
    reason="ExitCode",
    message="the trainer exited with code 3",
    attempt=1,
    closed=1,
    failures=1,
    history=[record(1, "Failed", "ExitCode", exitCode=3)],
)


def experiment(**status: Any) -> Experiment:
    raw = builders.experiment(uid="0123456789", objectives=[{"metric": "loss", "value": "Best"}])
    return Experiment.from_object(raw | {"status": status})


DONE = experiment(
    phase="Failed",
    trials=2,
    finished=2,
    counts={"Succeeded": 1, "Failed": 1},
    best={"trial": "exp-0", "parameters": {"lr": 0.0123456, "kind": "sgd"}, "value": 0.125, "iteration": 20},
    disruptions=1,
    failures=1,
    lostWork={"iterations": 2, "seconds": 0.84, "restartSeconds": 0.31},
    goodput=0.7255,
    startTime="2026-01-01T00:00:00.000000Z",
    completionTime="2026-01-01T00:03:05.500000Z",
    conditions=[
        {
            "type": "Succeeded",
            "status": "False",
            "reason": "TooManyFailures",
            "message": "1 trial failed",
            "lastTransitionTime": "2026-01-01T00:03:05.500000Z",
        }
    ],
)
DOCUMENT: dict[str, Any] = {
    "experiment": "exp",
    "uid": "0123456789",
    "phase": "Failed",
    "reason": "TooManyFailures",
    "message": "1 trial failed",
    "notEnqueued": "",
    "counts": {"Succeeded": 1, "Failed": 1},
    "best": {
        "trial": "exp-0",
        "parameters": {"lr": 0.0123456, "kind": "sgd"},
        "value": 0.125,
        "iteration": 20,
        "checkpoint": None,
    },
    "disruptions": 1,
    "failures": 1,
    "lostWork": {"iterations": 2, "seconds": 0.84, "restartSeconds": 0.31},
    "goodput": 0.7255,
    "wallSeconds": 185.5,
    "preempted": 1,
    "preemptAsked": 2,
    "seed": 1,
    "directory": "/home/me/runs/exp",
    "trials": [
        {
            "name": "exp-0",
            "phase": "Succeeded",
            "reason": "Completed",
            "message": "the trainer ran to its end",
            "parameters": {"lr": 0.0123456, "kind": "sgd"},
            "seed": 5,
            "metrics": {"loss": {"last": 0.25, "min": 0.125, "max": 1.0}},
            "iterations": 20,
            "trainedSeconds": 8.5,
            "lostWork": {"iterations": 2, "seconds": 0.84, "restartSeconds": 0.31},
            "goodput": None,
            "attempts": [
                {
                    "number": 1,
                    "class": "Preempted",
                    "reason": "DeletionByPodGC",
                    "message": "trialkeeper run --preempt: the node vanished",
                    "exitCode": 137,
                    "fromIteration": 0,
                    "toIteration": 12,
                    "lostIterations": 2,
                    "lostSeconds": 0.0,
                    "restartSeconds": 0.0,
                },
                {
                    "number": 2,
                    "class": "Succeeded",
                    "reason": "Completed",
                    "message": "",
                    "exitCode": 0,
                    "fromIteration": 10,
                    "toIteration": 20,
                    "lostIterations": 0,
                    "lostSeconds": 0.0,
                    "restartSeconds": 0.0,
                },
            ],
            "checkpoint": None,
            "store": "/home/me/runs/exp/store/default/exp-01234567/00000",
            "log": "/home/me/runs/exp/logs/exp-0-a2.log",
        },
        {
            "name": "exp-1",
            "phase": "Failed",
            "reason": "ExitCode",
            "message": "the trainer exited with code 3",
            "parameters": {"lr": 0.0123456, "kind": "sgd"},
            "seed": 5,
            "metrics": {},
            "iterations": 0,
            "trainedSeconds": 0.0,
            "lostWork": {"iterations": 0, "seconds": 0.0, "restartSeconds": 0.0},
            "goodput": None,
            "attempts": [
                {
                    "number": 1,
                    "class": "Failed",
                    "reason": "ExitCode",
                    "message": "",
                    "exitCode": 3,
                    "fromIteration": None,
                    "toIteration": 0,
                    "lostIterations": 0,
                    "lostSeconds": 0.0,
                    "restartSeconds": 0.0,
                }
            ],
            "checkpoint": None,
            "store": "/home/me/runs/exp/store/default/exp-01234567/00001",
            "log": "/home/me/runs/exp/logs/exp-1-a1.log",
        },
    ],
}
TEXT = """
trial  phase      attempts  iteration  objective  checkpoint  disruptions  lost         reason
exp-0  Succeeded  2         20         0.125      at 20       1            2 it, 1.1 s  Completed
exp-1  Failed     1         0          -          -           0            -            ExitCode

best        exp-0: loss 0.125 with lr=0.01235, kind=sgd
checkpoint  runs/exp/store/default/exp-01234567/00000/data/a000002-i000000000020-x
disruptions 1 survived (1 of 2 kills of --preempt found a running trial)
lost work   2 iterations, 0.8 s of work run again, 0.3 s of restarts
goodput     72.5% of the time was progress
wall time   3 min 06 s
failed      exp-1: the trainer exited with code 3; output: runs/exp/logs/exp-1-a1.log
exp: Failed (TooManyFailures): 1 trial failed"""


def test_the_document_has_everything_that_a_program_needs() -> None:
    assert summary.document(DONE, [GOOD, BAD], RUN, (1, 2)) == DOCUMENT


def test_the_newest_checkpoints_folder_is_named(tmp_path: Path) -> None:
    data = tmp_path / "store" / "default" / "exp-01234567" / "00000" / "data"
    for name in ("a000001-i000000000020-y", "a000002-i000000000010-z", "a000002-i000000000020-x"):
        (data / name).mkdir(parents=True)
    said = summary.document(DONE, [GOOD, BAD], tmp_path, (0, 0))
    assert said["best"]["checkpoint"] == said["trials"][0]["checkpoint"] == str(data / "a000002-i000000000020-x")


def test_the_summary_says_the_same_to_people() -> None:
    folder = f"{RUN}/store/default/exp-01234567/00000/data/a000002-i000000000020-x"
    said = DOCUMENT | {"best": DOCUMENT["best"] | {"checkpoint": folder}}
    assert summary.text(DONE, [GOOD, BAD], said, Path("/home/me")) == TEXT
    assert f"checkpoint  {folder}\n" in summary.text(DONE, [GOOD, BAD], said, Path("/elsewhere"))


def test_many_failures_are_counted_instead_of_listed() -> None:
    trials = [trial(i, phase="Failed", message="broken") for i in range(8)]
    said = summary.document(DONE, [*trials, GOOD], RUN, (0, 0)) | {"best": None}
    lines = summary.text(DONE, trials, said, RUN).splitlines()
    assert sum(line.startswith("failed ") for line in lines) == 5
    assert "            and 3 more" in lines


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (119.9, "119.9 s"), (120, "2 min 00 s"), (7384, "2 h 03 min")]
)
def test_a_time_is_written_for_people(seconds: float, words: str) -> None:
    assert summary.duration(seconds) == words


# Lines.

RUNNING: dict[str, Any] = {"phase": "Running", "attempt": 1, "closed": 0, "iteration": 12}
POD = {"name": "p", "uid": "u", "startTime": "2026-01-01T00:00:00.000000Z"}
CLOSED = {"attempt": 1, "closed": 1, "iteration": 12}
AGAIN = {**CLOSED, "phase": "Running", "attempt": 2, "pod": POD}

LINES: dict[str, tuple[dict[str, Any] | None, dict[str, Any], list[str]]] = {
    "a new trial": (None, {}, []),
    "an earlier runner's": (None, {**CLOSED, "phase": "Waiting", "history": [KILLED]}, []),
    "a report": (RUNNING, {**RUNNING, "iteration": 13}, []),
    "a preemption": (
        RUNNING,
        {**CLOSED, "phase": "Pending", "history": [KILLED]},
        ["exp-0 attempt 1: Preempted (DeletionByPodGC) at iteration 12"],
    ),
    "a failure": (
        RUNNING,
        {**CLOSED, "phase": "Waiting", "history": [record(1, "Failed", "ExitCode", message="code 3: no data")]},
        ["exp-0 attempt 1: Failed (ExitCode) at iteration 12", f"  code 3: no data; output: {LOG}"],
    ),
    "a resume": (
        AGAIN,
        {**AGAIN, "pod": {**POD, "fromIteration": 12}, "lostWork": {"seconds": 0.42}},
        ["exp-0 attempt 2: resumed from iteration 12, 0.4 s of work lost"],
    ),
    "a start from nothing": (
        AGAIN,
        {**AGAIN, "pod": {**POD, "fromIteration": 0}},
        ["exp-0 attempt 2: started over, 0.0 s of work lost"],
    ),
    "a success": (
        RUNNING,
        {**CLOSED, "phase": "Succeeded", "metrics": {"loss": {"last": 1, "min": 0.5, "max": 2}}},
        ["exp-0: Succeeded after 12 iterations, loss 0.5"],
    ),
    "a success without an objective": (
        RUNNING,
        {**CLOSED, "phase": "Succeeded", "message": "never reported a metric"},
        ["exp-0: Succeeded after 12 iterations, never reported a metric"],
    ),
    "the end of a failed trial": (
        RUNNING,
        {**CLOSED, "phase": "Failed", "reason": "ExitCode", "message": "code 3"},
        ["exp-0: Failed (ExitCode) code 3", f"  output: {LOG}"],
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_lines_about_a_trial(case: str) -> None:
    before, after, lines = LINES[case]
    old = None if before is None else trial(0, **before)
    assert narration.of_trial(old, trial(0, **after), DONE.spec.objectives[0], LOG) == lines


def test_a_better_trial_is_told_once_it_is_finished() -> None:
    first = experiment(finished=1, best={"trial": "exp-0", "value": 0.5})
    better = experiment(finished=1, best={"trial": "exp-1", "value": 0.4})
    finished = experiment(finished=2, best={"trial": "exp-1", "value": 0.4})
    assert narration.of_experiment(None, first) == ["best so far: exp-0, loss 0.5"]
    assert narration.of_experiment(first, better) == []
    assert narration.of_experiment(first, finished) == ["best so far: exp-1, loss 0.4"]
    assert narration.of_experiment(finished, finished) == []


# The screen.


def test_a_table_that_is_too_tall_shows_those_that_are_not_over() -> None:
    trials = [trial(i, phase="Running" if i in (1, 7) else "Succeeded") for i in range(9)]
    shown, hidden = fitting(trials, 4)
    assert [t.spec.index for t in shown] == [1, 6, 7, 8]
    assert hidden == 5
    assert fitting(trials, 99) == (trials, 0)
    assert len(fitting(trials, -1)[0]) == 1


def test_the_live_table_is_drawn_after_a_change_and_lines_stand_above_it() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=6, color_system=None)

    async def scene() -> None:
        live = Live(lambda: (DONE, [GOOD, BAD, trial(2, **RUNNING)]), console)
        try:
            live.line("a [bold]line[/bold]")
            assert "exp-2" not in out.getvalue() or out.getvalue().index("line") < out.getvalue().index("exp-2")
            live.touch()
            live.touch()
            drawn = len(out.getvalue())
            await asyncio.sleep(0)
            assert len(out.getvalue()) == drawn, "not for every change"
            live._draw()
            assert len(out.getvalue()) > drawn
        finally:
            live.touch()
            live.close()

    asyncio.run(scene())
    assert "a [bold]line[/bold]" in out.getvalue()
    assert "exp-2" in out.getvalue()
    assert "and 1 more" in out.getvalue()


def test_a_reader_that_goes_away_takes_only_the_lines_with_it() -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    screen = Lines(Closed())
    screen.line("x")
    screen.line("y")
    screen.touch()
    screen.close()


def test_the_operators_troubles_are_kept_and_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    file = tmp_path / "operator.log"
    diary = Diary(file)
    assert not file.exists()
    diary.tell = told.append
    log = logging.getLogger("trialkeeper_operator.reconcile.loop")
    log.warning("no %s", "memory")
    log.warning("no disk")
    diary.close()
    assert told == [f"trialkeeper: no memory (this and what follows is in {file})"]
    assert [line.rpartition(": ")[2] for line in file.read_text().splitlines()] == ["no memory", "no disk"]
