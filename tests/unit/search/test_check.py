"""What the search refuses of an Experiment that its models have accepted."""

from __future__ import annotations

from typing import Any

import pytest

from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.search.check import problems

PARAMETERS = [
    {"name": "lr", "float": {"min": 1e-5, "max": 0.1, "scale": "Log"}},
    {"name": "optimizer", "choice": {"values": ["sgd", "adam", 1]}},
    {"name": "momentum", "float": {"min": 0, "max": 0.9}, "when": {"parameter": "optimizer", "in": ["sgd", 1]}},
    {"name": "mode", "fixed": "fast"},
    {"name": "depth", "int": {"min": 1, "max": 9}, "when": {"parameter": "mode", "in": ["fast"]}},
]
FIRST = "spec.enqueue[0].parameters"


def found(**spec: Any) -> list[str]:
    template = {"spec": {"containers": [{"name": "trainer", "image": "trainer"}]}}
    whole = {"objectives": [{"metric": "loss"}], "parameters": PARAMETERS, "template": template, **spec}
    return [str(p) for p in problems(Experiment.from_object({"metadata": {"name": "e"}, "spec": whole}))]


ENQUEUED = {
    "nothing": ({}, []),
    "all": ({"lr": 0.01, "optimizer": "sgd", "momentum": 0.5, "depth": 3}, []),
    "what a fixed one allows": ({"depth": 3}, []),
    "what a given one forbids": (
        {"optimizer": "adam", "momentum": 0.5},
        [f"{FIRST}.momentum: exists only if optimizer is one of 'sgd', 1: give that value too"],
    ),
    "what nobody knows of": (
        {"momentum": 0.5},
        [f"{FIRST}.momentum: exists only if optimizer is one of 'sgd', 1: give that value too"],
    ),
    "true for 1": ({"optimizer": True}, [f"{FIRST}.optimizer: must be one of 'sgd', 'adam', 1, not True"]),
    "another fixed value": ({"mode": "slow"}, [f"{FIRST}.mode: must be 'fast', which is fixed, not 'slow'"]),
    "a fraction": ({"depth": 2.5}, [f"{FIRST}.depth: must be a whole number, not 2.5"]),
    "a stranger": (
        {"rate": 1},
        [f"{FIRST}.rate: is not a parameter; there are: lr, optimizer, momentum, mode, depth"],
    ),
}


@pytest.mark.parametrize("case", ENQUEUED)
def test_an_enqueued_entry_must_fit_the_space(case: str) -> None:
    given, sentences = ENQUEUED[case]
    assert found(enqueue=[{"parameters": given}]) == sentences


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (1, ""),
        (10_000, ""),
        (0, "must be a whole number of at least 1, not 0"),
        (True, "must be a whole number of at least 1, not True"),
        (2.5, "must be a whole number of at least 1, not 2.5"),
        (10_001, "must be at most 10000, not 10001"),
    ],
)
def test_a_setting_is_a_whole_number_that_the_operator_can_afford(value: Any, sentence: str) -> None:
    search = {"algorithm": "TPE", "settings": {"candidates": value}}
    assert found(search=search) == ([f"spec.search.settings.candidates: {sentence}"] if sentence else [])


def test_an_algorithm_without_settings_says_so() -> None:
    search = {"algorithm": "Random", "settings": {"candidates": 3}}
    assert found(search=search) == ["spec.search.settings.candidates: is not a setting; Random has none"]
