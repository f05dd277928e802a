"""The pure pieces of local mode: a container's environment, which trials are hit, what the drill says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import builders
from builders import pod
from trialkeeper_operator.local import environment, gpus
from trialkeeper_operator.local.drill import experiment, in_peace, judge, plan, unheard
from trialkeeper_operator.local.environment import CannotStart, expand
from trialkeeper_operator.local.preemption import Preempter, draw, expected_iterations

VALUES = {"A": "1", "B.C": "x", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("--lr=$(A)", "--lr=1"),
        ("$(A)$(A)", "11"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$A ${A}", "$A ${A}"),
        ("$(B.C)", "x"),
        ("[$(EMPTY)]", "[]"),
        ("$(A", "$(A"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expanded: str) -> None:
    assert expand(text, VALUES) == expanded


SECRET = {"secretKeyRef": {"name": "s", "key": "token"}}


def variables(*env: dict[str, Any], shell: dict[str, str] | None = None) -> dict[str, str]:
    return environment.variables({"name": "t", "env": list(env)}, pod(), shell or {})


def test_variables_see_those_before_them() -> None:
    found = variables(
        {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}, {"name": "C", "value": "$(D)"}, {"name": "D"}
    )
    assert found == {"A": "1", "B": "12", "C": "$(D)", "D": ""}


def test_secrets_come_from_the_shell_by_the_variables_name() -> None:
    assert variables({"name": "TOKEN", "valueFrom": SECRET}, shell={"TOKEN": "x"}) == {"TOKEN": "x"}
    optional = {"secretKeyRef": {**SECRET["secretKeyRef"], "optional": True}}
    assert variables({"name": "TOKEN", "valueFrom": optional}) == {}
    with pytest.raises(CannotStart, match=r"env TOKEN: .* export TOKEN=.*key token of Secret s"):
        variables({"name": "TOKEN", "valueFrom": SECRET})


def test_fields_of_the_pod() -> None:
    def field(path: str) -> str:
        return variables({"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}})["X"]

    assert field("metadata.uid") == "pod-1"
    assert field("metadata.name") == "exp-0-a1"
    assert field("metadata.labels['trialkeeper.dev/trial']") == "exp-0"
    with pytest.raises(CannotStart, match=r"status\.nothing"):
        field("status.nothing")


def test_a_command_is_needed_and_a_folder_must_be_there(tmp_path: Path) -> None:
    assert environment.command({"name": "t", "command": ["a"], "args": ["$(A)"]}, VALUES) == ["a", "1"]
    with pytest.raises(CannotStart, match="has no command"):
        environment.command({"name": "t", "args": ["x"]}, {})
    (tmp_path / "src").mkdir()
    assert environment.folder({"workingDir": "src"}, tmp_path) == tmp_path / "src"
    with pytest.raises(CannotStart, match="workingDir /no/such is no folder"):
        environment.folder({"workingDir": "/no/such"}, tmp_path)


@pytest.mark.parametrize(
    ("text", "ids"), [("2", ["0", "1"]), ("0", []), ("0,3", ["0", "3"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])]
)
def test_gpus_are_a_number_or_a_list(text: str, ids: list[str]) -> None:
    assert gpus.parse(text, {}) == ids


@pytest.mark.parametrize(("trials", "kills"), [(8, 6), (8, 8), (3, 7), (1, 4), (5, 0)])
def test_kills_are_spread_over_trials_and_half_have_notice(trials: int, kills: int) -> None:
    plan_ = draw(trials, kills, 7, 20)
    assert plan_ == draw(trials, kills, 7, 20)
    times = [len(t) for t in plan_.values()]
    assert sum(times) == kills
    assert max(times, default=0) - min(times, default=0) <= 1
    hows = Counter(how for t in plan_.values() for _, how in t)
    assert abs(hows["SIGTERM"] - hows["SIGKILL"]) <= 1
    assert all(6 <= iteration <= 16 for t in plan_.values() for iteration, _ in t)
    assert kills == 0 or draw(trials, kills, 8, 20) != plan_


def test_a_trial_that_ends_first_passes_its_kill_on() -> None:
    preempter = Preempter({0: [(5, "SIGKILL")]}, 2)
    assert preempter.due(0, 1, 4) is None
    preempter.over(0)
    assert preempter.due(1, 1, 5) == "SIGKILL"
    assert preempter.due(1, 1, 6) is None, "an attempt is hit once"
    preempter.missed(1, 1)
    assert preempter.due(1, 1, 6) == "SIGKILL"
    preempter.hit(1)
    assert (preempter.done, preempter.left) == (0, 0)
    preempter.ended(1, by_us=True)
    assert (preempter.done, preempter.left) == (1, 0)


def test_a_kill_that_came_too_late_is_passed_on() -> None:
    preempter = Preempter({0: [(2, "SIGTERM")]}, 2)
    assert preempter.due(0, 1, 2) == "SIGTERM"
    preempter.hit(0)
    preempter.ended(0, by_us=False)
    preempter.over(0)
    assert preempter.due(1, 1, 2) == "SIGTERM"
    preempter.hit(1)
    preempter.over(1)
    assert (preempter.done, preempter.left) == (0, 0), "nobody is left to take it"


def test_kills_of_an_earlier_runner_are_not_repeated() -> None:
    preempter = Preempter({0: [(2, "SIGTERM")], 1: [(3, "SIGKILL")], 2: [(4, "SIGTERM")]}, 3)
    preempter.remember(1, 1)
    preempter.remember(1, 0)
    assert (preempter.done, preempter.left) == (1, 2)
    assert preempter.due(1, 2, 9) is None
    preempter.remember(1, 1)
    assert (preempter.done, preempter.left) == (2, 1), "one that somebody else had passed on"
    preempter.remember(2, 5)
    assert (preempter.done, preempter.left) == (7, 0), "an earlier runner was told of more"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"stop": {"maxIterations": 9}}, 9),
        ({"parameters": [{"name": "epochs", "fixed": 20}]}, 20),
        ({"parameters": [{"name": "epochs", "float": {}}]}, None),
        ({}, None),
    ],
)
def test_how_many_iterations_a_trial_will_have(spec: dict[str, Any], expected: int | None) -> None:
    assert expected_iterations(spec) == expected


def test_the_drills_kills_are_spread_and_alternate() -> None:
    found = plan(12, 4, 0)
    assert [how for _, how in found] == ["SIGKILL", "SIGTERM", "SIGKILL", "SIGTERM"]
    assert len({i for i, _ in found}) == 4
    assert all(2 <= i < 12 for i, _ in found)
    assert len(plan(3, 9, 0)) == 1


def rows(*losses: float) -> dict[int, Any]:
    return {i: {"loss": loss} for i, loss in enumerate(losses, 1)}


PEACE = rows(0.9, 0.8, 0.7, 0.6)


@pytest.mark.parametrize(
    ("starts", "phase", "found", "resumes", "words"),
    [
        ([0, 2], "Succeeded", PEACE, True, "its results are those of the undisturbed run"),
        ([0, 0], "Succeeded", PEACE, False, "starts over: it does not call trialkeeper.get_checkpoint"),
        ([0, 2], "Failed", PEACE, False, "fails when it resumes: KeyError"),
        ([0, 2], "Succeeded", rows(0.9, 0.8, 0.9, 0.8), False, "starts over all the same"),
        ([0, 2], "Succeeded", rows(0.9, 0.8, 0.7, 0.6, 0.5, 0.4), False, "6 iterations instead of 4"),
        (
            [0, 2],
            "Succeeded",
            rows(0.9, 0.8, 0.75, 0.6),
            True,
            "not exactly: loss at iteration 3 was 0.75, undisturbed 0.7",
        ),
        ([0], "Succeeded", PEACE, False, "ended before a kill could reach it"),
    ],
)
def test_what_the_drill_says(starts: list[int], phase: str, found: dict[int, Any], resumes: bool, words: str) -> None:
    killed = {
        "phase": phase,
        "message": "KeyError",
        "log": "l",
        "attempts": [{"number": n, "fromIteration": s} for n, s in enumerate(starts, 1)],
        "lostWork": {"iterations": 1},
    }
    verdict = judge(killed, "loss", (PEACE, found), {1}, 1)
    assert verdict.resumes is resumes
    assert words in verdict.sentence


def test_a_kill_that_reaches_nobody_is_said() -> None:
    attempts = [{"number": 1, "fromIteration": 0}, {"number": 2, "fromIteration": 2}]
    killed = {"phase": "Succeeded", "message": "", "log": "l", "attempts": attempts, "lostWork": {"iterations": 1}}
    assert "came too late" not in judge(killed, "loss", (PEACE, PEACE), {1}, 1).sentence
    said = "2 kills, 2 attempts, 1 iterations run again (1 of the kills came too late: that attempt had ended), and"
    assert said in judge(killed, "loss", (PEACE, PEACE), {1}, 2).sentence


FINE = {
    "phase": "Succeeded",
    "iterations": 9,
    "metrics": {"loss": {"last": 1}},
    "checkpoint": "c",
    "message": "m",
    "log": "l",
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"phase": "Failed", "message": "code 3"}, "does not run to its end here: code 3 (output: l)"),
        ({"iterations": 0}, "never calls trialkeeper.report()"),
        ({"metrics": {"acc": {}, "f1": {}}}, "never reports the objective loss: its metrics are acc, f1"),
        ({"metrics": {}}, "its metrics are none that is a finite number"),
        ({"checkpoint": None}, "reports without a checkpoint"),
        ({"iterations": 2}, "reports only 2 times"),
    ],
)
def test_what_the_undisturbed_run_says_already(changed: dict[str, Any], words: str) -> None:
    assert in_peace(FINE, "loss") is None
    verdict = in_peace(FINE | changed, "loss")
    assert verdict is not None
    assert not verdict.resumes
    assert words in verdict.sentence


def test_a_trainer_that_does_not_hear_sigterm_is_told_of_it() -> None:
    attempts = [{"exitCode": 137}, {"exitCode": 143}, {"exitCode": 0}]
    assert unheard(attempts, [(2, "SIGKILL"), (3, "SIGTERM")]) == ""
    assert "without a shell or a pipe" in unheard(attempts, [(2, "SIGTERM"), (3, "SIGTERM")])


def test_a_drill_is_one_short_trial_that_always_saves() -> None:
    raw = builders.experiment(
        enqueue=[{"parameters": {"lr": 0.01}}, {"parameters": {"lr": 0.02}}], stop={"maxIterations": 99}, suspend=True
    )
    spec = experiment(raw, 6)["spec"]
    assert (spec["maxTrials"], spec["parallelism"], len(spec["enqueue"])) == (1, 1, 1)
    assert "suspend" not in spec
    assert (spec["checkpoint"], spec["stop"]["maxIterations"]) == ({"frequency": 1}, 18)
    assert raw["spec"]["maxTrials"] == 4, "the experiment itself stays as it is"
    assert experiment(builders.experiment(stop={"maxIterations": 5}), 4)["spec"]["stop"]["maxIterations"] == 5


def test_beginning_at_zero_is_no_fault_before_the_first_checkpoint() -> None:
    attempts = [{"number": 1, "fromIteration": 0}, {"number": 2, "fromIteration": 0}]
    killed = {"phase": "Succeeded", "message": "", "log": "l", "attempts": attempts, "lostWork": {"iterations": 1}}
    assert judge(killed, "loss", (PEACE, PEACE), {2}, 1).resumes
    sparse = {i: row if i % 2 else {} for i, row in PEACE.items()}
    assert judge(killed, "loss", (sparse, sparse), {2}, 1).resumes
