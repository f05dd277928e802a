"""The pure pieces of local mode: a container's environment, which trials are hit, what the drill says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from builders import pod
from trialkeeper_operator.local import environment, gpus
from trialkeeper_operator.local.drill import judge, plan
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
    assert gpus.parse(text) == ids


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
    assert (preempter.done, preempter.left) == (1, 0)


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
        "attempts": [{"fromIteration": s} for s in starts],
        "lostWork": {"iterations": 1},
    }
    verdict = judge({}, killed, "loss", (PEACE, found), 1)
    assert verdict.resumes is resumes
    assert words in verdict.sentence
