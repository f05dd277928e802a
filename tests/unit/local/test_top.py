"""`trialkeeper top`: a table of trials, or of experiments; live on a terminal, and whatever happens to kubectl."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from builders import NOW, experiment, trial
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.cluster.journal import attach
from trialkeeper_operator.local import kubectl
from trialkeeper_operator.local.kubectl import Refusal
from trialkeeper_operator.local.place import lock
from trialkeeper_operator.local.top import NOT_RUN, Picture, of_experiments, of_trials, plain, top, watch

LOST = {"iterations": 3, "seconds": 10.0, "restartSeconds": 10.0}
STATUS: dict[str, Any] = {
    "phase": "Running",
    "trials": 2,
    "finished": 1,
    "counts": {"Running": 1, "Succeeded": 1},
    "best": {"trial": "exp-1", "parameters": {"lr": 0.02}, "value": 0.25},
    "disruptions": 2,
    "failures": 1,
    "lostWork": LOST,
    "goodput": 0.8,
}


def of(**status: Any) -> dict[str, Any]:
    return {**experiment(), "status": {**STATUS, **status}}


def trials() -> list[dict[str, Any]]:
    loss = {"loss": {"last": 0.25, "min": 0.25, "max": 1.0}}
    saved = {"attempt": 3, "iteration": 40, "key": "k", "time": stamp(NOW)}
    running: dict[str, Any] = {
        "attempt": 3,
        "closed": 2,
        "iteration": 42,
        "disruptions": 2,
        "lostWork": LOST,
        "goodput": 0.8123,
    }
    return [
        trial(phase="Running", checkpoint=saved, **running),
        trial("exp-1", index=1, phase="Succeeded", reason="Do\x1b[2Jne", attempt=1, iteration=9, metrics=loss),
    ]


def test_trials_and_the_sums_below_them() -> None:
    said = plain(of_trials(Experiment.from_object(of()), [Trial.from_object(t) for t in trials()], left_out=7))
    assert said.splitlines() == [
        "trial  phase      attempts  iteration  objective  checkpoint  disruptions  lost          goodput  reason",
        "exp-0  Running    3         42         -          at 40       2            3 it, 20.0 s  81.2%",
        "exp-1  Succeeded  1         9          0.25       -           0            -             -        Do?[2Jne",
        "",
        "exp: Running; 1 Running, 1 Succeeded",
        "and 7 trials more, which are over",
        "best        exp-1: loss 0.25 with lr=0.02",
        "lost work   3 it, 20.0 s; 2 disruptions, 1 failures; goodput 80.0%",
    ]


def test_what_keeps_an_experiment_from_going_on_is_told() -> None:
    stalled = {"type": "Stalled", "status": "True", "reason": "Quota", "message": "full", "lastTransitionTime": "t"}
    room = {"type": "Enqueued", "status": "True", "reason": "Room", "message": "all", "lastTransitionTime": "t"}
    said = of_trials(Experiment.from_object(of(conditions=[stalled, room])), [])
    assert said.words[-1] == "Quota: full"


def test_all_experiments_of_a_namespace() -> None:
    verdict = {"type": "Succeeded", "status": "True", "reason": "TargetReached", "lastTransitionTime": "t"}
    over = Experiment.from_object(of(phase="Succeeded", conditions=[verdict]))
    assert plain(of_experiments([over])).splitlines() == [
        "experiment  phase      over  of  best  disruptions  lost          goodput  reason",
        "exp         Succeeded  1     2   0.25  2            3 it, 20.0 s  80.0%    TargetReached",
    ]
    assert "there is no Experiment here" in plain(of_experiments([]))


def test_without_a_terminal_it_is_one_table_from_kubectl(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(kind: str, name: str = "", namespace: str | None = None, *more: str) -> dict[str, Any]:
        if kind.startswith("trials"):
            foreign = trial("exp-7", index=7)
            foreign["metadata"]["ownerReferences"][0]["uid"] = "another experiment of this name"
            assert more == ("--selector=trialkeeper.dev/experiment=exp",)
            return {"items": [*reversed(trials()), foreign]}
        if name == "exp":
            return of()
        if name:
            raise Refusal(f'Error from server (NotFound): "{name}" not found')
        return {"items": [of()]}

    monkeypatch.setattr(kubectl, "get", get)
    done = CliRunner().invoke(top, ["exp", "-n", "default"])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()[:4] if line] == ["trial", "exp-0", "exp-1"]
    assert CliRunner().invoke(top, []).output.startswith("experiment  phase")
    done = CliRunner().invoke(top, ["gone"])
    assert (done.exit_code, done.output) == (
        2,
        "trialkeeper: there is no Experiment gone, and no run of this name in a folder\n",
    )


def test_a_run_on_this_machine_is_shown_from_its_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text("not a journal\n")
    done = CliRunner().invoke(top, [str(tmp_path)])
    assert done.exit_code == 2
    assert done.output.startswith("trialkeeper: ")


@pytest.mark.parametrize(("phase", "runner", "said"), [("Running", False, True), ("Running", True, False)])
def test_a_run_that_nobody_carries_out_is_told_apart(tmp_path: Path, phase: str, runner: bool, said: bool) -> None:
    _, journal = attach(tmp_path / "journal.jsonl", now=lambda: NOW)
    journal.record("PUT", of(phase=phase))
    journal.close()
    held = lock(tmp_path) if runner else None
    shown = CliRunner().invoke(top, [str(tmp_path)])
    assert (NOT_RUN in shown.output) == said, shown.output
    if held is not None:
        os.close(held)


class Enough(Exception):
    """The watcher has seen enough."""


def test_it_is_drawn_again_and_again_and_trouble_is_shown_below_the_last_picture() -> None:
    pictures: list[Any] = [
        Picture(("trial", "phase"), [("exp-0", "Running")], ["one"]),
        Refusal("kubectl has not answered within 30 s"),
        Picture(("trial", "phase"), [("exp-1", "Failed")], ["two"]),
    ]
    rooms: list[int] = []

    def see(room: int) -> Picture:
        rooms.append(room)
        if not pictures:
            raise Enough
        found = pictures.pop(0)
        if isinstance(found, Refusal):
            raise found
        assert isinstance(found, Picture)
        return found

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24)
    with pytest.raises(Enough):
        watch(see, console, 0.2, wait=lambda seconds: None)
    said = out.getvalue()
    assert said.index("one") < said.index("since then: kubectl has not answered") < said.index("two")
    assert rooms == [19] * 4
