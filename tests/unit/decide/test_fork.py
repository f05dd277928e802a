"""Which checkpoint a fork begins from, whose turn it is, and what is kept for it until it has it."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, experiment, trial
from trialkeeper import contract
from trialkeeper_operator.api.experiment import EnqueuedBase, Experiment
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide import pods
from trialkeeper_operator.decide.fork import NoBase, NotYet, fork, held, queued
from trialkeeper_operator.search.check import problems

PREFIX = "default/exp-exp-uid/00003"
LATEST = contract.inherited_key(PREFIX, 2, 40)


def of(**spec: Any) -> Experiment:
    return Experiment.from_object(experiment(**spec))


def donor(iteration: int = 40, phase: str = "Running", key: str = "") -> Trial:
    key = key or contract.manifest_key(2, iteration)
    saved = {"attempt": 2, "iteration": iteration, "key": key, "time": stamp(NOW)}
    return Trial.from_object(trial("exp-3", index=3, phase=phase, checkpoint=saved if iteration else None))


def base(iteration: int | None = None) -> EnqueuedBase:
    return EnqueuedBase(trial="exp-3", iteration=iteration)


@pytest.mark.parametrize(
    ("wanted", "key"),
    [(None, LATEST), (40, LATEST), (12, contract.inherited_key(PREFIX, 0, 12))],
    ids=["the newest", "the newest by its number", "an older one, whoever wrote it"],
)
def test_a_fork_names_one_checkpoint_of_its_donor(wanted: int | None, key: str) -> None:
    found = fork(of(), base(wanted), donor(), of())
    assert (found.key, found.parameters) == (key, {"lr": 0.01})
    assert found.note == f"forked from exp-3 at {wanted or 40}"


def test_a_donor_that_has_only_what_it_began_from_itself_hands_that_on() -> None:
    inherited = contract.inherited_key("default/old-1/00000", 1, 40)
    assert fork(of(), base(), donor(key=inherited), of()).key == inherited


@pytest.mark.parametrize(
    ("known", "wanted", "raised", "words"),
    [
        (donor(0), None, NotYet, "exp-3: it has no checkpoint yet"),
        (donor(30), 40, NotYet, "exp-3: its newest checkpoint is of iteration 30, not yet of 40"),
        (donor(0, "Failed"), None, NoBase, "exp-3 is over, and it has no checkpoint"),
        (donor(30, "Succeeded"), 40, NoBase, "exp-3 is over, and its newest checkpoint is of iteration 30"),
        (None, None, NoBase, "there is no Trial exp-3 in namespace default"),
    ],
)
def test_what_is_not_there_is_waited_for_only_if_it_may_come(
    known: Trial | None, wanted: int | None, raised: type[Exception], words: str
) -> None:
    with pytest.raises(raised) as why:
        fork(of(), base(wanted), known, of())
    assert str(why.value) == words


def test_a_checkpoint_in_another_store_is_none() -> None:
    with pytest.raises(NoBase, match="another store"):
        fork(of(storage={"volume": {"claimName": "c"}}), base(), donor(), of())


def made(position: int, index: int, **status: Any) -> Trial:
    return Trial.from_object(trial(f"exp-{index}", index=index, spec={"enqueued": position, "fork": LATEST}, **status))


def test_every_entry_has_its_turn_once_also_if_its_trial_is_deleted() -> None:
    assert queued(of(), []) == 0
    assert queued(of(), [made(0, 0), Trial.from_object(trial("exp-1", index=1)), made(1, 2)]) == 2
    known = Experiment.from_object(experiment() | {"status": {"enqueued": 3}})
    assert queued(known, [made(0, 0)]) == 3


FORKS = [{"parameters": {}}, {"base": {"trial": "exp-3"}}, {"base": {"trial": "exp-3", "iteration": 12}}]


@pytest.mark.parametrize(
    ("trials", "iterations"),
    [
        ([], {12}),
        ([made(0, 4)], {12}),
        ([made(1, 5)], {12, 40}),
        ([made(1, 5, base={"attempt": 0, "iteration": 40})], {12}),
        ([made(1, 5, phase="Failed"), made(2, 6, phase="Stopped")], set()),
        ([made(2, 6, base={"attempt": 0, "iteration": 12})], set()),
    ],
    ids=["to come", "an entry without a base", "made", "begun", "over", "the last has begun, the others were deleted"],
)
def test_what_a_fork_is_to_begin_from_is_held_until_it_has(trials: list[Trial], iterations: set[int]) -> None:
    assert held(of(enqueue=FORKS), trials) == ({"exp-3": iterations} if iterations else {})


def test_a_pod_is_told_of_its_fork_and_what_others_wait_for() -> None:
    child = made(1, 5)
    told = pods.environment(of(), child, 1)
    assert told[contract.ENV_FORK] == LATEST
    assert pods.donors(child) == ["default/exp-exp-uid"]
    foreign = child.spec.model_copy(update={"fork": contract.inherited_key("other/exp-1/00000", 1, 1)})
    child = child.model_copy(update={"spec": foreign})
    assert contract.ENV_FORK not in pods.environment(of(), child, 1)
    assert pods.donors(child) == []
    assert pods.settings(of(checkpoint={"numToKeep": 1}), {40, 12})["checkpoint"]["held"] == [12, 40]
    assert "held" not in pods.settings(of())["checkpoint"]


def test_a_fork_needs_not_repeat_its_donors_parameters() -> None:
    """A parameter that exists only beside another one's value: the donor has that, which nobody knows here."""
    optimizer = {"name": "optimizer", "choice": {"values": ["sgd", "adam"]}}
    momentum = {
        "name": "momentum",
        "float": {"min": 0, "max": 1},
        "when": {"parameter": "optimizer", "in": ["sgd"]},
    }
    alone = {"parameters": {"momentum": 0.5}}
    assert problems(of(parameters=[optimizer, momentum], enqueue=[alone]))
    assert problems(of(parameters=[optimizer, momentum], enqueue=[{**alone, "base": {"trial": "exp-0"}}])) == []
