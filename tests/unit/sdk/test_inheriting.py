"""Going on where another trial ended: its checkpoints under its own prefix, the counting under this one's."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers import SAVING, Left, Place
from trialkeeper import contract, environment, history, retention
from trialkeeper.store.opening import open_at

UNTIL = "for i in range(start, {end}):\n    trialkeeper.report({{'loss': 1.0 / (i + 1)}}, checkpoint=save)\n"
KILLED = "    if i == {at}: die()\n"


def training(end: int = 9, *, killed: int | None = None) -> str:
    return SAVING + UNTIL.format(end=end) + ("" if killed is None else KILLED.format(at=killed))


@dataclass
class Heir(Place):
    """A trial under a prefix of its own, in a store that others are in, too."""

    prefix: str = "default/b-2/00000"
    base: tuple[str, ...] = ()
    fork: str = ""

    @property
    def store(self) -> Path:
        return self.root / "store" / self.prefix

    def env(self, attempt: int, pod: str | None = None) -> dict[str, str]:
        told = {"TRIALKEEPER_PREFIX": self.prefix, "TRIALKEEPER_BASE": ",".join(self.base)}
        told |= {"TRIALKEEPER_FORK": self.fork} if self.fork else {}
        pod = f"{self.prefix.replace('/', '-')}-{pod or attempt}"
        return {**super().env(attempt, pod), **told}

    def bases(self) -> list[str | None]:
        return [json.loads(f.read_text())["base"] for f in sorted((self.store / "attempts").glob("*.json"))]

    def numbers(self, attempt: int) -> list[int]:
        return [row["training_iteration"] for row in self.rows(attempt)]


def trial(root: Path, name: str, *donors: Heir, known: tuple[int, int] = (0, 0)) -> Heir:
    """A trial that goes on where `donors` ended, the nearest first; `known` is what is known of the nearest."""
    settings: dict[str, Any] = {"objectives": [{"metric": "loss"}], "checkpoint": {"frequency": 3}}
    keys = [contract.inherited_key(d.prefix, *(known if n == 0 else (0, 0))) for n, d in enumerate(donors)]
    return Heir(root, settings=settings, prefix=f"default/{name}/00000", base=tuple(keys))


@pytest.fixture
def donor(tmp_path: Path) -> Heir:
    """A trial that was killed after iteration 5, its checkpoint at 3."""
    found = trial(tmp_path, "a-1")
    assert found.run(training(killed=4)).code == -signal.SIGKILL
    return found


def stated(left: Left) -> tuple[int, int, int, int]:
    assert left.last is not None
    assert left.last.resumed is not None
    r = left.last.resumed
    return r.attempt, r.iteration, r.lostIterations, r.lostBefore


def test_the_first_attempt_goes_on_after_the_donors_checkpoint(donor: Heir) -> None:
    heir = trial(donor.root, "b-2", donor)
    left = heir.run(training())
    assert left.code == 0
    assert heir.numbers(1) == [4, 5, 6, 7, 8, 9]
    key = f"{donor.prefix}/manifests/a000001-i000000000003.json"
    assert heir.bases() == [key]
    assert stated(left) == (0, 3, 2, 0)
    assert left.last is not None
    assert (left.last.iteration, left.last.metrics["loss"].max) == (9, 1.0), "the donor's history is its own"
    assert heir.manifests() == ["a000001-i000000000006", "a000001-i000000000009"]
    assert donor.manifests() == ["a000001-i000000000003"], "a prefix belongs to one experiment"


def test_what_is_newer_than_what_the_snapshot_knew_is_taken(donor: Heir) -> None:
    """The snapshot is seconds old when an experiment is deleted."""
    donor.run(training(killed=7), 2)
    heir = trial(donor.root, "b-2", donor, known=(1, 3))
    left = heir.run(training())
    assert heir.numbers(1) == [7, 8, 9]
    assert stated(left) == (0, 6, 2, 2)


def test_an_attempt_that_left_no_checkpoint_is_followed_by_one_from_the_same_base(donor: Heir) -> None:
    heir = trial(donor.root, "b-2", donor)
    heir.run(training(killed=4))
    assert heir.numbers(1) == [4, 5]
    left = heir.run(training(), 2)
    assert heir.numbers(2) == [4, 5, 6, 7, 8, 9]
    assert heir.bases() == [f"{donor.prefix}/manifests/a000001-i000000000003.json"] * 2
    assert stated(left) == (0, 3, 2, 2)
    rows = sum(len(place.rows(a)) for place in (donor, heir) for a in (1, 2))
    assert rows == 9 + 2 + 2, "what is in the raw results twice is what was lost"


def test_an_attempt_that_died_before_it_began_changes_nothing(donor: Heir) -> None:
    heir = trial(donor.root, "b-2", donor)
    heir.run("sys.exit(3)")
    left = heir.run(training(), 2)
    assert heir.numbers(2) == [4, 5, 6, 7, 8, 9]
    assert stated(left) == (0, 3, 2, 0)


def test_later_attempts_go_on_from_their_own_checkpoints(donor: Heir) -> None:
    heir = trial(donor.root, "b-2", donor)
    heir.run(training(killed=6))
    left = heir.run(training(), 2)
    assert heir.numbers(2) == [7, 8, 9]
    assert stated(left) == (1, 6, 1, 2)


def test_an_heirs_heir_finds_what_the_heir_never_used(donor: Heir) -> None:
    middle = trial(donor.root, "b-2", donor)
    last = trial(donor.root, "c-3", middle, donor)
    left = last.run(training())
    assert last.numbers(1) == [4, 5, 6, 7, 8, 9]
    assert stated(left) == (0, 3, 2, 0)


def test_an_heirs_heir_goes_on_from_the_nearest(donor: Heir) -> None:
    middle = trial(donor.root, "b-2", donor)
    middle.run(training(killed=6))
    last = trial(donor.root, "c-3", middle, donor)
    left = last.run(training())
    assert last.numbers(1) == [7, 8, 9]
    assert stated(left) == (0, 6, 1, 2)
    rows = sum(len(place.rows()) for place in (donor, middle, last))
    assert rows == 9 + 3


def test_a_rotten_checkpoint_of_the_donor_is_passed_over(donor: Heir) -> None:
    donor.run(training(killed=7), 2)
    newest = sorted((donor.store / "data").iterdir())[-1]
    (newest / "i").write_text("9")
    heir = trial(donor.root, "b-2", donor)
    left = heir.run(training())
    assert f"checkpoint {donor.prefix}/manifests/a000002-i000000000006.json is passed over" in left.err
    assert heir.numbers(1)[0] == 4


def test_a_checkpoint_that_is_gone_lets_its_trial_start_over_and_count_that_as_lost(donor: Heir) -> None:
    for file in (donor.store / "manifests").iterdir():
        file.unlink()
    heir = trial(donor.root, "b-2", donor)
    left = heir.run(training())
    assert heir.numbers(1) == list(range(1, 10))
    assert stated(left) == (0, 0, 5, 0)


def test_a_donor_that_never_began_is_a_start(tmp_path: Path) -> None:
    heir = trial(tmp_path, "b-2", trial(tmp_path, "a-1"))
    left = heir.run(training())
    assert stated(left) == (0, 0, 0, 0)
    assert heir.numbers(1) == list(range(1, 10))


def test_a_trainer_that_does_not_ask_starts_over_and_so_do_its_later_attempts(donor: Heir) -> None:
    heir = trial(donor.root, "b-2", donor)
    left = heir.run("trialkeeper.report({'loss': 1.0})")
    assert "get_checkpoint() was not called" in left.err
    assert stated(left) == (0, 0, 5, 0)
    left = heir.run(training(), 2)
    assert heir.numbers(2)[0] == 1
    assert stated(left) == (0, 0, 1, 5)


def test_a_donor_that_cannot_be_read_is_no_start(donor: Heir) -> None:
    (donor.store / "manifests").rename(donor.store / "away")
    (donor.store / "manifests").write_text("")
    heir = trial(donor.root, "b-2", donor)
    left = heir.run(training())
    assert "NotADirectoryError" in left.err
    assert heir.rows(1) == []


def forked(donor: Heir, iteration: int, attempt: int = 0, name: str = "f-3") -> Heir:
    heir = trial(donor.root, name)
    heir.fork = contract.inherited_key(donor.prefix, attempt, iteration)
    return heir


def test_a_fork_begins_at_that_very_checkpoint_and_loses_nothing(donor: Heir) -> None:
    """The donor lives on and is further by now: what it did after the fork is not the fork's to lose."""
    donor.run(training(), 2)
    assert donor.manifests()[-1] == "a000002-i000000000009"
    for number, attempt in enumerate((0, 2)):
        heir = forked(donor, 6, attempt, f"f-{number}")
        left = heir.run(training(killed=6))
        assert heir.bases() == [f"{donor.prefix}/manifests/a000002-i000000000006.json"]
        assert heir.numbers(1) == [7]
        left = heir.run(training(15), 2)
        assert heir.numbers(2) == [*range(7, 16)]
        assert stated(left) == (0, 6, 1, 0)
        assert left.last is not None
        assert left.last.metrics["loss"].max == 1.0, "the donor's history up to there is the fork's own"


def test_a_fork_holds_what_it_began_from_until_it_has_two_checkpoints_of_its_own(donor: Heir) -> None:
    heir = forked(donor, 3)
    env = environment.read(heir.env(1))
    place = open_at(env, donor.prefix)
    retention.pin(place, env, (1, 3))
    for own, left in ((1, 1), (2, 0)):
        retention.let_go(open_at(env, heir.prefix), env, own, retention.Known())
        assert len(place.list("pins/")) == left


def test_a_fork_of_a_fork_finds_what_that_one_began_from(donor: Heir) -> None:
    donor.run(training(), 2)
    middle = forked(donor, 6, name="m-3")
    middle.run(training(12))
    for iteration in (3, 6):
        last = forked(middle, iteration, name=f"l-{iteration}")
        left = last.run(training(12))
        assert stated(left) == (0, iteration, 0, 0)
        (base,) = last.bases()
        assert base is not None
        assert base.startswith(f"{donor.prefix}/manifests/")
        assert last.numbers(1)[0] == iteration + 1


def test_a_fork_at_what_is_not_there_is_an_error_that_names_what_is(donor: Heir) -> None:
    donor.run(training(), 2)
    heir = forked(donor, 5)
    left = heir.run(training())
    assert left.code == 78
    assert left.last is not None
    assert (left.last.end, left.last.reason) == ("userError", "BaseMissing")
    assert "iteration 5 under default/a-1/00000" in left.last.text
    assert "(3, 6, 9)" in left.last.text
    assert heir.rows(1) == []


def test_a_fork_never_begins_at_an_older_one_if_its_own_is_rotten(donor: Heir) -> None:
    donor.run(training(), 2)
    for newest in (donor.store / "data").glob("*i000000000006*"):
        (newest / "i").write_text("0")
    left = forked(donor, 6).run(training())
    assert left.code == 78
    assert "is passed over" in left.err


@pytest.mark.parametrize("key", ["../x/manifests/a000001-i000000000001.json", "x", "/manifests/", "a/b/c"])
def test_a_base_that_is_no_key_is_refused_by_name(key: str, tmp_path: Path) -> None:
    heir = Heir(tmp_path, base=(key,))
    left = heir.run("trialkeeper.get_checkpoint()")
    assert "TRIALKEEPER_BASE names no checkpoint" in left.err
    assert left.code != 0


@given(st.text(alphabet="ab-./0\n", max_size=30), st.integers(0, 999_999), st.integers(0, 10**12 - 1))
def test_a_key_is_read_as_it_was_written_and_never_leaves_the_store(donor: str, attempt: int, iteration: int) -> None:
    found = contract.parse_inherited_key(contract.inherited_key(donor, attempt, iteration))
    if found is not None:
        assert found == (donor, attempt, iteration)
        assert not os.path.isabs(donor)
        assert ".." not in donor.split("/")


def test_an_attempt_whose_record_cannot_be_read_leaves_the_root_open() -> None:
    key = contract.inherited_key("a/b", 1, 3)
    assert history.branch({1: {"base": key}}, 1).root == ("a/b", 1, 3)
    assert history.branch({1: {"base": key}, 2: {"base": contract.manifest_key(1, 2)}}, 2).root == ("a/b", 1, 3)
    assert history.branch({1: {"base": key}, 2: {}}, 2).root == ("a/b", 1, 3)
    assert history.branch({1: {"base": None}}, 1) == history.Branch([(1, None)], None, True)
    assert not history.branch({1: {}}, 1).known
    assert not history.branch({}, 1).known
