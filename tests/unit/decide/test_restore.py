"""Taking over the trials of a snapshot: what goes on, what is over, and what nobody is led to by it."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, experiment
from trialkeeper import contract
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Retried
from trialkeeper_operator.decide import pods
from trialkeeper_operator.decide.restore import Donor, RestoreRefused, Row, donor_of, restored, rows
from trialkeeper_operator.decide.trial import plan
from trialkeeper_operator.decide.view import View

DONOR = Donor("old", "default", "0123456789abcdef")
PREFIX = "default/old-01234567"
KEY = contract.manifest_key(2, 6)


def ours(**changes: Any) -> Experiment:
    raw = experiment(restoreFrom={"configMap": "old-snapshot"})
    return Experiment.from_object({**raw, "metadata": {**raw["metadata"], **changes}})


def found(index: int = 0, *, spec: Any = None, **status: Any) -> dict[str, Any]:
    return {"spec": {"index": index, "parameters": {"lr": 0.01}, "seed": 5, **(spec or {})}, "status": status}


def taken(*trials: dict[str, Any]) -> list[Row]:
    return rows(ours(), DONOR, trials, source="old-snapshot", now=NOW)


RUNNING: dict[str, Any] = {
    "phase": "Running",
    "reason": "",
    "attempt": 3,
    "closed": 2,
    "failures": 1,
    "disruptions": 1,
    "withoutProgress": 4,
    "iteration": 8,
    "trainedSeconds": 80.0,
    "metrics": {"loss": {"last": 0.5, "min": 0.4, "max": 1}},
    "checkpoint": {"attempt": 2, "iteration": 6, "key": KEY, "time": "2023-11-14T22:13:20Z"},
    "lostWork": {"iterations": 3, "seconds": 30.0, "restartSeconds": 5.0},
    "startTime": "2023-11-14T22:13:20Z",
}
DONE: dict[str, Any] = {
    **RUNNING,
    "phase": "Succeeded",
    "reason": "Completed",
    "closed": 3,
    "completionTime": "2023-11-14T22:20:00Z",
}


def test_an_unfinished_trial_begins_anew_from_its_newest_checkpoint() -> None:
    (row,) = taken(found(4, spec={"note": "TPE over 3 results", "name": "first"}, **RUNNING))
    assert row.spec.base == [f"{PREFIX}/00004/{KEY}"]
    assert (row.spec.seed, row.spec.parameters, row.spec.note, row.spec.name) == (
        5,
        {"lr": 0.01},
        "TPE over 3 results",
        "first",
    )
    status = row.status
    assert (status.phase, status.attempt, status.closed, status.without_progress) == ("Pending", 0, 0, 0)
    assert (status.failures, status.disruptions, status.iteration, status.lost_work.iterations) == (1, 1, 8, 3)
    assert status.checkpoint is not None
    assert status.checkpoint.key == f"{PREFIX}/00004/{KEY}"
    assert not row.finished


def test_a_trial_without_a_known_checkpoint_looks_for_one_all_the_same() -> None:
    (row,) = taken(found(**{**RUNNING, "checkpoint": None}))
    assert row.spec.base == [contract.inherited_key(f"{PREFIX}/00000", 0, 0)]


def test_where_the_donor_itself_had_begun_comes_after_it() -> None:
    further = contract.inherited_key("default/older-1/00007", 1, 2)
    (row,) = taken(found(spec={"base": [further]}, phase="Pending"))
    assert row.spec.base == [contract.inherited_key(f"{PREFIX}/00000", 0, 0), further]
    inherited = {**RUNNING["checkpoint"], "key": further}
    (row,) = taken(found(spec={"base": [further]}, **{**RUNNING, "checkpoint": inherited}))
    assert row.spec.base == [contract.inherited_key(f"{PREFIX}/00000", 0, 0), further]
    assert row.status.checkpoint is not None
    assert row.status.checkpoint.key == further


@pytest.mark.parametrize("phase", ["Succeeded", "Failed", "Stopped"])
def test_a_finished_trial_is_over_and_stays_it(phase: str) -> None:
    (row,) = taken(found(**{**DONE, "phase": phase}))
    assert row.finished
    # Another try of one that has failed would begin where that was; what has succeeded never begins again.
    assert row.spec.base == (None if phase == "Succeeded" else [f"{PREFIX}/00000/{DONE['checkpoint']['key']}"])
    status = row.status
    assert (status.phase, status.attempt, status.closed, status.iteration) == (phase, 3, 3, 8)
    assert status.metrics["loss"].min == 0.4
    assert {c.type: c.status for c in status.conditions} == {"Succeeded": "True" if phase == "Succeeded" else "False"}
    of = ours()
    from trialkeeper_operator.api.trial import Trial

    trial = Trial(metadata={"name": "exp-0", "namespace": "default", "uid": "u"}, spec=row.spec, status=status)
    said = plan(View(of, trial, {}), NOW)
    assert (said.status, said.actions) == (None, ())


def test_a_finished_trial_whose_last_attempt_looks_open_is_closed() -> None:
    (row,) = taken(found(**{**DONE, "closed": 2}))
    assert row.status.closed == row.status.attempt == 3


def test_what_a_person_wants_of_a_trial_goes_on() -> None:
    (row,) = taken(found(spec={"desired": "Pause"}, **RUNNING))
    assert row.spec.desired == "Pause"


def test_a_retry_that_was_given_is_not_given_again() -> None:
    retried = {"number": 1, "attempt": 2, "failures": 2}
    (row,) = taken(found(spec={"retries": 1}, **{**DONE, "phase": "Failed", "retried": retried}))
    assert (row.spec.retries, row.status.retried) == (1, Retried(number=1, attempt=2, failures=2))
    (row,) = taken(found(spec={"retries": 1}, **{**RUNNING, "retried": retried}))
    assert row.status.retried == Retried(number=1, attempt=0, failures=2)  # its attempts are numbered anew


def test_the_pod_is_told_where_to_begin_and_never_in_another_namespace() -> None:
    (row,) = taken(found(**RUNNING))
    from trialkeeper_operator.api.trial import Trial

    meta = {"name": "exp-0", "namespace": "default", "uid": "u"}
    assert (
        pods.environment(ours(), Trial(metadata=meta, spec=row.spec), 1)[contract.ENV_BASE] == f"{PREFIX}/00000/{KEY}"
    )
    assert pods.donors(Trial(metadata=meta, spec=row.spec)) == [PREFIX]
    for key in ("others/old-1/00000/", "default/", "default/old-1/", "default/*/00000/", "default/a/b/c/"):
        other = Trial(metadata=meta, spec=row.spec.model_copy(update={"base": [key + KEY]}))
        assert contract.ENV_BASE not in pods.environment(ours(), other, 1)
        assert pods.donors(other) == []


def test_how_much_was_taken_over_is_counted() -> None:
    assert restored(DONOR, taken(found(0, **DONE), found(1, **RUNNING))).to_object() == {
        "experiment": "old",
        "uid": "0123456789abcdef",
        "trials": 2,
        "finished": 1,
    }


BAD = [
    (found(spec={"index": -1}), "spec|index"),
    (found(spec={"index": "0"}), "index"),
    (found(spec={"parameters": []}), "parameters"),
    (found(spec={"seed": 1.5}), "seed"),
    (found(spec={"index": 10_000}), "beyond 10000 trials"),
    (found(spec={"base": "x"}), "base"),
    (found(spec={"desired": "Fly"}), "desired"),
    (found(spec={"extra": 1}), "extra"),
    (found(phase="Flying"), "phase"),
    (found(attempt=-1), "attempt"),
    (found(lostWork={"seconds": float("nan")}), "seconds"),
    (found(checkpoint={"attempt": 1}), "checkpoint"),
]


@pytest.mark.parametrize(("raw", "words"), BAD)
def test_a_row_that_no_operator_writes_is_refused(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(RestoreRefused, match=words):
        taken(found(1), raw)


def test_a_row_twice_is_refused() -> None:
    with pytest.raises(RestoreRefused, match="trial 3 stands twice"):
        taken(found(3), found(3))


def test_a_checkpoint_of_another_namespace_is_left_out() -> None:
    foreign = contract.inherited_key("others/old-1/00000", 1, 5)
    raw = found(spec={"base": [foreign]}, **{**RUNNING, "checkpoint": {**RUNNING["checkpoint"], "key": foreign}})
    (row,) = taken(raw)
    assert row.spec.base == [contract.inherited_key(f"{PREFIX}/00000", 0, 0)]
    assert row.status.checkpoint is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"namespace": "others"}, "of namespace others"),
        ({"uid": "exp-uid"}, "this very experiment's"),
        ({"uid": "../../x"}, "does not say"),
        ({"uid": None}, "does not say"),
        ({"name": "../x"}, "does not say"),
        ({"name": "a" * 41}, "does not say"),
    ],
)
def test_a_donor_that_cannot_be_one_is_refused(changes: dict[str, Any], words: str) -> None:
    good = {"name": "old", "namespace": "default", "uid": "0123"}
    assert donor_of(ours(), good) == Donor("old", "default", "0123")
    with pytest.raises(RestoreRefused, match=words):
        donor_of(ours(), {**good, **changes})
