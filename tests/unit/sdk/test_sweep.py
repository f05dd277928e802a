"""Sweeping: orphans go and nothing else does, a budget is kept as far as it may be, results never go."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_s3 import Fault, fake_s3
from manifests import body, entry
from minio_server import KEYS
from stores import environment_of
from trialkeeper import contract, manifest, retention, sweep
from trialkeeper.retention import Committed, Policy
from trialkeeper.store.opening import open_tree
from trialkeeper.store.tree import Tree
from trialkeeper.sweep import DAY, Rules, Sized, Sweep, beyond, bytes_of

EXP, OTHER = "space/exp-1", "space/other-2"
LATER = time.time() + 400 * DAY  # everything is old by then
LOSS = Policy(0, "loss", "min")


@pytest.fixture(params=["directory", "fake"])
def tree(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with fake_s3() if request.param == "fake" else nullcontext() as server:
        if server is not None:
            server.page = 3
        url = server.url if server is not None else (tmp_path / "store").as_uri()
        yield open_tree(environment_of(url, tmp_path))


def attempt(tree: Tree, trial: str, number: int, base: str | None = None) -> None:
    record = {"attempt": number, "base": base}
    tree.at(trial).put_new(contract.attempt_key(number), json.dumps(record).encode())


def checkpoint(
    tree: Tree,
    trial: str,
    number: int,
    iteration: int,
    *,
    loss: Any = 1.0,
    size: int = 100,
    refers: tuple[str, ...] = (),
) -> str:
    """A committed checkpoint of so many bytes of its own; its data key."""
    store, data = tree.at(trial), contract.data_key(number, iteration, "0a")
    store.put_new(f"{data}/deep/w", b"w" * size)
    files = [entry(f"deep/{n}", key=key) for n, key in enumerate((f"{data}/deep/w", *refers))]
    said = body(attempt=number, iteration=iteration, metrics={"loss": loss}, files=files, data=data)
    store.put_new(contract.manifest_key(number, iteration), manifest.encode(said))
    return data


def trial_of(tree: Tree, trial: str, losses: list[Any], *, finished: bool = False) -> None:
    """A trial of one attempt, with results."""
    attempt(tree, trial, 1)
    for n, loss in enumerate(losses, 1):
        checkpoint(tree, trial, 1, n, loss=loss)
    tree.at(trial).put_new("results/a000001.jsonl/000001", b"{}\n")
    end = contract.END_COMPLETE if finished else contract.END_PREEMPTED
    tree.at(trial).put_new(contract.ended_key(1), contract.Message(end=end, attempt=1).encode().encode())


def keys(tree: Tree, top: str = "") -> set[str]:
    return {item.key for item in tree.objects(top)}


def iterations(tree: Tree, trial: str) -> list[int]:
    found = [contract.parse_manifest_key(key) for key in tree.at(trial).list("manifests/")]
    return [place[1] for place in found if place is not None]


# What nobody looks at.


def test_what_no_manifest_refers_to_goes_when_it_is_old(tree: Tree) -> None:
    trial_of(tree, f"{EXP}/00000", [1.0, 2.0])
    before, store = keys(tree), tree.at(f"{EXP}/00000")
    for key in ("data/a000001-i000000000003-ff/deep/w", "data/a000001-i000000000002-ee/x", "probes/0a"):
        store.put_new(key, b"123")
    assert Sweep(tree, now=time.time(), older_than=60 * DAY).run().objects == 0
    dry = Sweep(tree, now=LATER, dry_run=True).run()
    assert len(keys(tree)) == len(before) + 3
    swept = Sweep(tree, now=LATER).run()
    assert (dry.objects, dry.bytes) == (swept.objects, swept.bytes) == (3, 9)
    assert keys(tree) == before
    assert swept.left == 200


def test_a_part_that_a_later_checkpoint_refers_to_stays(tree: Tree) -> None:
    trial = f"{EXP}/00000"
    attempt(tree, trial, 1)
    first = checkpoint(tree, trial, 1, 1)
    tree.at(trial).put_new(f"{first}/more", b"m")
    checkpoint(tree, trial, 1, 2, refers=(f"{first}/deep/w",))
    tree.at(trial).delete(contract.manifest_key(1, 1))
    Sweep(tree, now=LATER).run()
    assert tree.at(trial).list(f"{first}/") == [f"{first}/deep/w"]


def test_what_lies_beside_a_manifest_that_cannot_be_read_stays(tree: Tree) -> None:
    trial = f"{EXP}/00000"
    attempt(tree, trial, 1)
    for nonce in ("aa", "bb"):
        tree.at(trial).put_new(f"data/a000001-i000000000001-{nonce}/w", b"w")
    tree.at(trial).put_new(contract.manifest_key(1, 1), b"rot")
    assert Sweep(tree, now=LATER).run().objects == 0


def test_what_is_not_ours_stays(tree: Tree) -> None:
    tree.at("a/b").put_new("data/x", b"")
    tree.at(f"{EXP}/00000").put_new("data/mine", b"")
    tree.at(f"{EXP}/00000").put_new("data/mine-too/x", b"")
    tree.at(f"{EXP}/00000/scratch/00001").put_new("scratch/x", b"")
    before = keys(tree)
    Sweep(tree, now=LATER).run()
    assert keys(tree) == before


def test_pins_go_when_their_holder_is_gone_or_has_two_of_its_own(tree: Tree) -> None:
    trial_of(tree, f"{EXP}/00000", [1.0])
    store = tree.at(f"{EXP}/00000")
    for n, count in enumerate((0, 1, 2)):
        trial_of(tree, f"{OTHER}/{n:05d}", [1.0] * count)
    holders = ["space/gone-9/00000", *(f"{OTHER}/{n:05d}" for n in range(3)), f"{EXP}/00000"]
    for holder in holders:
        store.put_new(contract.pin_key(holder, 1, 1, 1), b"{}")
    store.put_new(contract.pin_key(f"{EXP}/00000", 2, 1, 1), b"{}")
    Sweep(tree, now=LATER).run()
    left = [contract.parse_pin_key(key) for key in store.list("pins/")]
    assert [(pin.holder, pin.holder_attempt) for pin in left if pin] == [
        (f"{EXP}/00000", 2),
        (f"{OTHER}/00000", 1),
        (f"{OTHER}/00001", 1),
    ]


def test_a_store_that_goes_away_is_trouble_of_what_could_not_be_done(tmp_path: Path, monkeypatch: Any) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with fake_s3() as server:
        tree = open_tree(environment_of(server.url, tmp_path))
        for n in (0, 1):
            trial_of(tree, f"{EXP}/{n:05d}", [1.0])
            tree.at(f"{EXP}/{n:05d}").put_new("probes/0a", b"")
        server.fault = lambda request: Fault(403) if request.method == "DELETE" and "/00000/" in request.key else None
        swept = Sweep(tree, now=LATER).run()
        assert swept.objects == 1
        assert len(swept.trouble) == 1
        assert tree.at(f"{EXP}/00001").list("probes/") == []
        server.fault = lambda request: Fault(403)
        with pytest.raises(OSError, match="403"):
            Sweep(tree, now=LATER).run()


def test_a_sweep_that_is_stopped_says_so(tree: Tree) -> None:
    for n in range(3):
        trial_of(tree, f"{EXP}/{n:05d}", [1.0])
        tree.at(f"{EXP}/{n:05d}").put_new("probes/0a", b"")
    looks = iter([False, True])
    swept = Sweep(tree, now=LATER, stop=lambda: next(looks)).run()
    assert not swept.whole
    assert swept.objects == 1


# The budget.


def budget(size: int, **more: Any) -> Any:
    return lambda experiment: Rules(size, LOSS, **more)


def test_the_worst_go_first_and_the_newest_two_of_what_may_go_on_never(tree: Tree) -> None:
    trial_of(tree, f"{EXP}/00000", [5.0, 1.0, 9.0, 9.0])
    trial_of(tree, f"{EXP}/00001", [4.0, "NaN", 9.0, 9.0])
    assert Sweep(tree, now=time.time(), rules=budget(10**6)).run().checkpoints == 0
    swept = Sweep(tree, now=time.time(), rules=budget(600)).run()
    assert (swept.checkpoints, swept.bytes, swept.left, swept.over) == (2, 200, 600, {})
    assert (iterations(tree, f"{EXP}/00000"), iterations(tree, f"{EXP}/00001")) == ([2, 3, 4], [1, 3, 4])
    swept = Sweep(tree, now=time.time(), rules=budget(0)).run()
    assert (iterations(tree, f"{EXP}/00000"), iterations(tree, f"{EXP}/00001")) == ([2, 3, 4], [3, 4])
    assert swept.over == {EXP: 500}, "the best of all stays, too"
    assert tree.at(f"{EXP}/00001").list("data/a000001-i000000000001") == []
    assert len(tree.at(f"{EXP}/00001").list("results/")) == 1


def test_the_newest_of_a_finished_trial_goes_after_all_others(tree: Tree) -> None:
    trial_of(tree, f"{EXP}/00000", [3.0, 2.0], finished=True)
    trial_of(tree, f"{EXP}/00001", [9.0, 8.0], finished=True)
    trial_of(tree, f"{EXP}/00002", [7.0, 7.0])
    Sweep(tree, now=time.time(), rules=budget(400)).run()
    assert [iterations(tree, f"{EXP}/0000{n}") for n in range(3)] == [[2], [2], [1, 2]]
    Sweep(tree, now=time.time(), rules=budget(0)).run()
    assert [iterations(tree, f"{EXP}/0000{n}") for n in range(3)] == [[2], [], [1, 2]]
    Sweep(tree, now=time.time(), rules=budget(0, finished=lambda prefix: prefix.endswith("2"))).run()
    assert [iterations(tree, f"{EXP}/0000{n}") for n in range(3)] == [[2], [], []]


def test_a_base_and_what_is_pinned_stay(tree: Tree) -> None:
    trial = f"{EXP}/00000"
    trial_of(tree, trial, [9.0, 9.0, 9.0, 9.0, 9.0])
    tree.at(trial).put_new(contract.pin_key(f"{OTHER}/00000", 1, 1, 3), b"{}")
    attempt(tree, trial, 2, contract.manifest_key(1, 1))
    checkpoint(tree, trial, 2, 2)
    checkpoint(tree, trial, 2, 3)
    Sweep(tree, now=time.time(), rules=budget(0)).run()
    assert tree.at(trial).list("manifests/") == [
        contract.manifest_key(*place) for place in ((1, 1), (1, 3), (2, 2), (2, 3))
    ]


def test_an_attempt_that_begins_meanwhile_ends_the_pass_over_its_trial(tree: Tree, monkeypatch: Any) -> None:
    trial_of(tree, f"{EXP}/00000", [9.0, 9.0, 9.0, 9.0])
    deleted = retention.delete

    def late(*args: Any, **more: Any) -> Iterator[str]:
        attempt(tree, f"{EXP}/00000", 2, contract.manifest_key(1, 4))
        return deleted(*args, **more)

    monkeypatch.setattr(retention, "delete", late)
    swept = Sweep(tree, now=time.time(), rules=budget(0)).run()
    assert swept.checkpoints == 0
    assert "a later attempt has begun" in swept.trouble[0]
    assert iterations(tree, f"{EXP}/00000") == [1, 2, 3, 4]


def sized(prefix: str, committed: list[Committed], sizes: dict[str, int], kept: set[tuple[int, int]]) -> Sized:
    return Sized(prefix, 1, committed, sizes, {key: key for key in sizes}, kept, ())


def test_links_to_one_file_are_counted_once(tmp_path: Path) -> None:
    tree = open_tree(environment_of((tmp_path / "store").as_uri(), tmp_path))
    trial_of(tree, f"{EXP}/00000", [9.0, 8.0, 7.0])
    files = sorted((tmp_path / "store" / EXP / "00000" / "data").glob("*/deep/w"))
    for file in files[1:]:
        file.unlink()
        os.link(files[0], file)
    assert Sweep(tree, now=time.time(), rules=budget(100)).run().checkpoints == 0
    swept = Sweep(tree, now=time.time(), rules=budget(99)).run()
    assert (swept.checkpoints, swept.bytes, swept.over) == (1, 0, {EXP: 1})


def test_halves_of_killed_writers_go(tmp_path: Path) -> None:
    trial = tmp_path / "store" / EXP / "00000"
    for room in ("manifests", "attempts"):
        (trial / room).mkdir(parents=True)
        (trial / room / ".a000001-i000000000001.json.4711-0123abcd").write_text("{")
        (trial / room / ".mine").write_text("{")
    tree = open_tree(environment_of((tmp_path / "store").as_uri(), tmp_path))
    assert Sweep(tree, now=LATER).run().objects == 2
    assert keys(tree) == {f"{EXP}/00000/{room}/.mine" for room in ("manifests", "attempts")}


def test_what_is_shared_is_counted_once_and_freed_with_the_last_that_refers_to_it() -> None:
    def made(iteration: int, loss: float, *objects: str) -> Committed:
        return Committed(1, iteration, {"loss": loss}, "", "", frozenset(objects))

    committed = [made(1, 5.0, "a", "b"), made(2, 4.0, "a", "c"), made(3, 3.0, "a"), made(4, 1.0, "d")]
    trial = sized("t", committed, {"a": 100, "b": 10, "c": 10, "d": 10}, {(1, 4)})
    assert trial.size_of(committed) == 130
    assert beyond([trial], 130, LOSS) == []
    assert beyond([trial], 125, LOSS) == [("t", (1, 1))]
    assert beyond([trial], 109, LOSS) == [("t", (1, 1)), ("t", (1, 2)), ("t", (1, 3))]


@given(
    st.lists(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 50), st.booleans()), max_size=5), max_size=4),
    st.integers(0, 400),
)
def test_a_budget_is_kept_unless_all_that_is_left_must_stay(given_trials: list[Any], limit: int) -> None:
    trials = []
    for n, rows in enumerate(given_trials):
        committed = [
            Committed(1, i, {"loss": loss}, "", "", frozenset({f"k{i}"})) for i, (loss, _, _) in enumerate(rows)
        ]
        sizes = {f"k{i}": size for i, (_, size, _) in enumerate(rows)}
        trials.append(sized(str(n), committed, sizes, {(1, i) for i, row in enumerate(rows) if row[2]}))
    going = beyond(trials, limit, LOSS)
    assert len(set(going)) == len(going)
    rest = {(t.prefix, c.place) for t in trials for c in t.committed} - set(going)
    left = sum(t.size_of([c for c in t.committed if (t.prefix, c.place) in rest]) for t in trials)
    must = {(t.prefix, place) for t in trials for place in t.kept}
    assert must <= rest
    assert left <= limit or len(rest - must) <= 1, "but for the best of all"
    assert going == beyond(trials, limit, LOSS)


# All of an experiment.


def test_an_experiment_goes_as_a_whole_unless_another_one_needs_it(tree: Tree) -> None:
    trial_of(tree, f"{EXP}/00000", [1.0])
    trial_of(tree, f"{EXP}/00001", [1.0])
    trial_of(tree, f"{OTHER}/00000", [1.0])
    tree.at(EXP).put_new(contract.policy_key(1), b"{}")
    pin = contract.pin_key(f"{OTHER}/00000", 1, 1, 1)
    tree.at(f"{EXP}/00000").put_new(pin, b"{}")
    tree.at(f"{EXP}/00000").put_new(contract.pin_key(f"{EXP}/00001", 1, 1, 1), b"{}")
    before = keys(tree, f"{OTHER}/")
    with pytest.raises(ValueError, match="space/exp-1 is kept: space/other-2/00000 began from it"):
        sweep.remove(tree, EXP)
    tree.at(f"{EXP}/00000").delete(pin)
    assert sweep.remove(tree, EXP, dry_run=True).checkpoints == 2
    assert sweep.remove(tree, EXP).checkpoints == 2
    assert keys(tree) == before
    assert tree.folders("space/") == ["other-2"]


def test_a_removal_that_is_stopped_keeps_what_says_that_it_is_to_go(tree: Tree, monkeypatch: Any) -> None:
    monkeypatch.setattr(sweep, "BATCH", 1)
    trial_of(tree, f"{EXP}/00000", [1.0, 2.0])
    tree.at(EXP).put_new(contract.policy_key(1), b"{}")
    looks = iter([False, False, False, True])
    assert not sweep.remove(tree, EXP, stop=lambda: next(looks)).whole
    assert tree.at(f"{EXP}/00000").list("manifests/") == []
    assert tree.at(EXP).list("experiment/") == [contract.policy_key(1)]
    assert sweep.remove(tree, EXP).whole
    assert keys(tree) == set()


@pytest.mark.parametrize("place", ["", "space", "..", "/", "space/..", "space/exp-1/00000"])
def test_nothing_but_an_experiment_is_removed(tree: Tree, place: str) -> None:
    trial_of(tree, f"{EXP}/00000", [1.0])
    before = keys(tree)
    with pytest.raises(ValueError, match="is no experiment's folder"):
        sweep.remove(tree, place)
    assert keys(tree) == before


def test_the_newest_generation_says_what_is_wanted(tree: Tree) -> None:
    assert sweep.written_policy(tree, EXP) == {}
    for n in (1, 2, 10):
        tree.at(EXP).put_new(contract.policy_key(n), json.dumps({"v": 1, "checkpoints": str(n)}).encode())
    tree.at(EXP).put_new(contract.policy_key(11), b"rot")
    assert sweep.written_policy(tree, EXP)["checkpoints"] == "10"


def test_what_was_moved_there_is_as_old_as_the_move(tmp_path: Path) -> None:
    """A trainer's files may be old when they are reported, and not committed yet."""
    made = tmp_path / "made"
    made.mkdir()
    (made / "w").write_text("w")
    os.utime(made / "w", (1, 1))
    trial = tmp_path / "store" / EXP / "00000"
    (trial / "data").mkdir(parents=True)
    made.rename(trial / "data" / "a000001-i000000000001-aa")
    tree = open_tree(environment_of((tmp_path / "store").as_uri(), tmp_path))
    assert Sweep(tree, now=time.time()).run().objects == 0


@pytest.mark.parametrize(
    ("text", "size"), [("50Gi", 50 << 30), ("1.5T", 1_500_000_000_000), ("1000", 1000), ("2k", 2000), ("1Ki", 1024)]
)
def test_sizes_are_read_as_kubernetes_writes_them(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "50GB", "-1", "1e3", "Gi"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        bytes_of(text)
