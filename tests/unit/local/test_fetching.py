"""`trialkeeper snapshot fetch`: a snapshot made of what trainers have left in their store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from builders import experiment
from shelf import Shelf
from trialkeeper import contract
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.local import snapshots
from trialkeeper_operator.reconcile import restore
from trialkeeper_operator.state.snapshot import data_of, decode


def fetched(where: Path | str) -> Result:
    return CliRunner().invoke(snapshots.snapshot, ["fetch", str(where)])


def shelf(root: Path, index: int, **more: Any) -> Shelf:
    return Shelf(root / "store", f"team/exp-12345678/{index:05d}", **more)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A trial that is over, one that was killed after a resume, one stopped, one that never saved; and no number 4."""
    over = shelf(tmp_path, 0, parameters={"lr": 0.025})
    over.begin(seed=7)
    over.rows(1, range(1, 6))
    over.save(1, 5)
    words = contract.Message(
        end="complete",
        attempt=1,
        iteration=5,
        trainedSeconds=9.5,
        time=2000.0,
        metrics={"loss": contract.MetricSummary(0.1, 0.05, 0.9)},
    )
    over._write(contract.ended_key(1), words.encode())
    killed = shelf(tmp_path, 1)
    killed.begin()
    killed.rows(1, range(1, 5))
    base = killed.save(1, 3)
    killed.begin(2, base=base, lostIterations=1)
    killed.rows(2, range(4, 9))
    killed.save(2, 6)
    stopped = shelf(tmp_path, 2)
    stopped.begin()
    stopped.end(end="stopped")
    shelf(tmp_path, 3).begin()
    shelf(tmp_path, 5).begin()
    return tmp_path / "store"


def test_a_store_alone_tells_what_is_over_and_where_the_others_go_on(store: Path) -> None:
    done = fetched(store)
    assert done.exit_code == 0, done.output
    found, rows = decode(data_of(json.loads(done.stdout)))
    assert (found["name"], found["namespace"], found["uid"]) == ("exp", "team", "12345678")
    by_index = {row["spec"]["index"]: row for row in rows}
    assert sorted(by_index) == [0, 1, 2, 3, 5]
    assert by_index[0]["spec"]["parameters"] == {"lr": 0.025}
    assert by_index[0]["spec"]["seed"] == 7
    status = by_index[0]["status"]
    assert (status["phase"], status["closed"], status["iteration"]) == ("Succeeded", 1, 5)
    assert status["metrics"] == {"loss": {"last": 0.1, "min": 0.05, "max": 0.9}}
    status = by_index[1]["status"]
    assert (status["phase"], status["attempt"], status["closed"], status["iteration"]) == ("Pending", 2, 1, 8)
    assert status["checkpoint"]["key"] == contract.manifest_key(2, 6)
    assert status["lostWork"]["iterations"] == 1
    assert by_index[2]["status"]["phase"] == "Stopped"
    assert "checkpoint" not in by_index[3]["status"]
    assert "trials 4 had not begun" in done.stderr
    assert "5 trials, 2 of them over, in ConfigMap exp-snapshot of namespace team" in done.stderr


def test_an_operator_goes_on_from_it(store: Path) -> None:
    config_map = json.loads(fetched(store).stdout)
    new = experiment(restoreFrom={"configMap": "exp-snapshot"})
    new["metadata"] |= {"namespace": "team", "uid": "another-uid"}
    donor, rows = restore.read(Experiment.from_object(new), config_map, now=1e9)
    assert donor.prefix(1) == "team/exp-12345678/00001"
    assert [row.finished for row in rows] == [True, False, True, False, False]
    going_on = rows[1]
    assert going_on.spec.base == [contract.inherited_key("team/exp-12345678/00001", 2, 6)]
    assert (going_on.status.attempt, going_on.status.iteration) == (0, 8)
    assert going_on.status.lost_work.iterations == 1


def test_it_is_shown_like_any_other(store: Path) -> None:
    text = fetched(store).stdout
    done = CliRunner().invoke(snapshots.snapshot, ["show", "--file", "-"], input=text)
    assert done.exit_code == 0, done.output
    assert "exp-0  Succeeded" in " ".join(done.stdout.split("\n")).replace("   ", "  ")


def test_a_restored_trial_that_has_not_saved_goes_on_where_its_donor_ended(tmp_path: Path) -> None:
    donor = shelf(tmp_path, 0)
    donor.begin()
    donor.rows(1, range(1, 8))
    donor.save(1, 7)
    heir = Shelf(tmp_path / "store", "team/exp-87654321/00000")
    heir.begin(base=contract.inherited_key("team/exp-12345678/00000", 1, 7))
    done = fetched(tmp_path / "store" / "team" / "exp-87654321")
    assert done.exit_code == 0, done.output
    _, (row,) = decode(data_of(json.loads(done.stdout)))
    inherited = contract.inherited_key("team/exp-12345678/00000", 1, 7)
    assert row["status"]["checkpoint"]["key"] == inherited
    assert row["spec"]["base"] == [inherited]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("none", "is no folder"),
        ("empty", "there are no trials"),
        ("two", "there are 2 experiments"),
        ("plain", "is no experiment's folder"),
    ],
)
def test_what_cannot_be_rebuilt_is_one_sentence(place: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for uid in ("12345678", "87654321"):
        Shelf(tmp_path / "two", f"team/exp-{uid}/00000").begin()
    Shelf(tmp_path / "plain", "team/mine/00000").begin()
    done = fetched(tmp_path / place)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
