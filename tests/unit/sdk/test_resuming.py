"""Resuming: what an attempt begins from, what it counts as lost, and what it never believes."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers import PREAMBLE, SAVING, Place
from trialkeeper import contract, environment, history, manifest, saving
from trialkeeper.store import AlreadyThere, Appender, Store
from trialkeeper.store.directory import DirectoryStore

UNTIL = "for i in range(start, 9):\n    trialkeeper.report({'loss': 1.0 / (i + 1)}, checkpoint=save)\n"
KILLED_AT = UNTIL + "    if trialkeeper.get_context().attempt == 1 and i == 4: die()\n"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_attempt_goes_on_after_its_checkpoint(place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 3}
    assert place.run(SAVING + KILLED_AT).code == -signal.SIGKILL
    left = place.run(SAVING + KILLED_AT, 2)
    assert [row["training_iteration"] for row in place.rows(1)] == [1, 2, 3, 4, 5]
    assert [row["training_iteration"] for row in place.rows(2)] == [4, 5, 6, 7, 8, 9]
    assert left.last is not None
    assert left.last.resumed is not None
    assert (left.last.resumed.attempt, left.last.resumed.iteration, left.last.resumed.lostIterations) == (1, 3, 2)
    assert (left.last.iteration, left.last.checkpoint and left.last.checkpoint.iteration) == (9, 9)
    assert left.last.metrics["loss"] == contract.MetricSummary(1 / 9, 1 / 9, 1.0)


def test_losses_of_several_attempts_add_up(place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 4}
    script = SAVING + UNTIL + "    if i - start == trialkeeper.get_context().attempt: die()\n"
    for attempt in (1, 2, 3, 4):
        place.run(script, attempt)
    raw = sum(len(place.rows(a)) for a in (1, 2, 3, 4, 5))
    left = place.run(SAVING + UNTIL, 5)
    raw += len(place.rows(5))
    assert left.last is not None
    assert left.last.resumed is not None
    assert left.last.iteration == 9
    assert left.last.resumed.lostBefore + left.last.resumed.lostIterations == raw - 9 > 0


def test_a_trainer_that_does_not_ask_starts_over_and_is_told(place: Place) -> None:
    place.run(SAVING + KILLED_AT)
    left = place.run("trialkeeper.report({'loss': 1.0})", 2)
    assert "get_checkpoint() was not called" in left.err
    assert [row["training_iteration"] for row in place.rows(2)] == [1]
    assert left.last is not None
    assert left.last.resumed == contract.Resumed(0, 0, left.last.resumed.time if left.last.resumed else 0, 5, 0)


def test_a_rotten_checkpoint_is_passed_over_for_an_older_one(place: Place) -> None:
    place.run(SAVING + KILLED_AT)
    newest = sorted((place.store / "data").iterdir())[-1]
    (newest / "i").write_text("5")
    left = place.run(SAVING + KILLED_AT, 2)
    assert "is passed over" in left.err
    assert place.rows(2)[0]["training_iteration"] == 5


@pytest.mark.parametrize("harm", ["missing", "short", "manifest", "emptied"])
def test_whatever_is_wrong_with_a_checkpoint_an_older_one_serves(harm: str, place: Place) -> None:
    place.run(SAVING + KILLED_AT)
    newest = sorted((place.store / "data").iterdir())[-1]
    body = sorted((place.store / "manifests").iterdir())[-1]
    if harm == "missing":
        (newest / "i").unlink()
    elif harm == "short":
        (newest / "i").write_text("")
    elif harm == "manifest":
        body.write_bytes(body.read_bytes()[:-20])
    else:
        body.write_text("{}")
    place.run(SAVING + KILLED_AT, 2)
    assert place.rows(2)[0]["training_iteration"] == 5


def test_a_zombie_is_fenced_at_its_next_commit(place: Place) -> None:
    script = (
        SAVING
        + """
i = 0
trialkeeper.report({'loss': 1.0}, checkpoint=save)
trialkeeper.flush()
os.makedirs(os.environ['STORE'] + '/attempts', exist_ok=True)
open(os.environ['STORE'] + '/attempts/000002.json', 'w').write('{"attempt": 2, "podUid": "x", "base": null}')
i = 1
trialkeeper.report({'loss': 0.5}, checkpoint=save)
trialkeeper.flush()
print('no')
"""
    )
    left = place.run(script.replace("os.environ['STORE']", repr(str(place.store))))
    assert (left.code, left.end) == (75, ("fenced", "StaleAttempt"))
    assert place.manifests() == ["a000001-i000000000001"]


def test_a_zombie_leaves_no_files_behind(place: Place) -> None:
    test_a_zombie_is_fenced_at_its_next_commit(place)
    assert len(list((place.store / "data").iterdir())) == 1
    assert not list(place.root.glob("scratch*/saves/*"))


@pytest.mark.parametrize("folder", ["attempts", "manifests"])
def test_who_cannot_read_the_store_does_not_start_over(folder: str, place: Place) -> None:
    place.run(SAVING + KILLED_AT)
    (place.store / folder).rename(place.store / "away")
    (place.store / folder).write_text("")
    left = place.run(SAVING + UNTIL, 2)
    assert "NotADirectoryError" in left.err
    assert place.rows(2) == []
    (place.store / folder).unlink()
    (place.store / "away").rename(place.store / folder)
    place.run(SAVING + UNTIL, 3)
    assert place.rows(3)[0]["training_iteration"] == 6


def test_two_pods_of_one_attempt_are_not_both_in_it(place: Place) -> None:
    place.run("trialkeeper.report({'loss': 1.0})", pod="one")
    left = place.run("trialkeeper.report({'loss': 1.0})", pod="other")
    assert (left.code, left.end) == (75, ("fenced", "StaleAttempt"))
    assert len(place.rows()) == 1


def test_the_same_pod_may_come_again(place: Place) -> None:
    place.run(SAVING + KILLED_AT, pod="one")
    place.run(SAVING + KILLED_AT.replace("== 1", "== 9"), pod="one")
    assert [row["training_iteration"] for row in place.rows()] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_the_same_pod_passes_over_its_own_rotten_checkpoint(place: Place) -> None:
    place.run(SAVING + KILLED_AT, pod="one")
    (sorted((place.store / "data").iterdir())[-1] / "i").write_text("rot")
    left = place.run(SAVING + UNTIL, pod="one")
    assert left.end == ("complete", ""), left.err
    assert [row["training_iteration"] for row in place.rows()] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]


def test_a_torn_last_line_of_results_is_passed_over(place: Place) -> None:
    place.run(SAVING + KILLED_AT)
    with (place.store / "results" / "a000001.jsonl").open("a") as file:
        file.write('{"training_iteration": 6, "lo')
    left = place.run(SAVING + KILLED_AT, 2)
    assert left.last is not None
    assert left.last.resumed is not None
    assert left.last.resumed.lostIterations == 0


def _outlives(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Let a process live for so long."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


@pytest.mark.timeout(120)
def test_forty_kills_at_random_instants_tear_nothing(place: Place) -> None:
    """A trainer saves as fast as it can and is killed: every manifest that is there is whole."""
    rng = random.Random(3)
    script = PREAMBLE + SAVING.replace(
        "write_text(str(i))", "write_text(str(i)); (folder / 'w').write_bytes(bytes(1 << 20))"
    )
    script += (
        "import itertools\nfor i in itertools.count(start):\n    trialkeeper.report({'loss': 1.0}, checkpoint=save)\n"
    )
    (place.root / "t.py").write_text(script)
    reached = 0
    for attempt in range(1, 41):
        process = subprocess.Popen(
            [sys.executable, "t.py"], cwd=place.root, env=place.env(attempt), stderr=subprocess.DEVNULL
        )
        record = place.store / "attempts" / f"{attempt:06d}.json"
        for moment in [0.005] * 4000:
            if record.exists() or process.poll() is not None:
                break
            _outlives(process, moment)
        _outlives(process, rng.uniform(0.1, 0.5))
        process.kill()
        process.wait()
        base = json.loads(record.read_text())["base"]
        began = 0 if base is None else int(base[19:31])
        assert began >= reached, "a committed checkpoint was lost"
        for name in place.manifests():
            if int(name[1:7]) == attempt:
                body = manifest.decode((place.store / "manifests" / f"{name}.json").read_bytes())
                DirectoryStore(place.store).fetch(body["data"], body["files"])
                reached = max(reached, body["iteration"])
    assert reached > 5, reached


Step = st.one_of(
    st.sampled_from(["save", "resume", "forget"]),
    st.tuples(st.just("zombie"), st.integers(1, 9), st.integers(1, 60)),
    st.tuples(st.just("rot"), st.integers(1, 9)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(Step, max_size=40))
def test_the_newest_whole_checkpoint_of_the_highest_attempts_branch_is_visible(steps: list[Any]) -> None:
    """Any interleaving of saves, resumes, restarts from nothing, rotten files and zombies of any age.

    The model keeps the branch as a list, newest first; the reader has nothing but keys and records.
    """
    attempts: dict[int, dict[str, object]] = {1: {"base": None}}
    manifests: set[str] = set()
    current, iteration = 1, 0
    branch: list[str] = []
    for step in steps:
        if step == "save":
            iteration += 1
            branch.insert(0, contract.manifest_key(current, iteration))
            manifests.add(branch[0])
        elif step == "forget":
            current, iteration, branch = current + 1, 0, []
            attempts[current] = {"base": None}
        elif step == "resume" or step[0] == "rot":
            # Rotten ones are passed over when the base is chosen; they stay in the store.
            passed = 0 if step == "resume" else step[1]
            branch = branch[passed:]
            current += 1
            attempts[current] = {"base": branch[0] if branch else None}
            iteration = int(branch[0][19:31]) if branch else 0
        elif current > 1:
            _, age, ahead = step
            manifests.add(contract.manifest_key(max(1, current - age), iteration + ahead))
        found = [contract.manifest_key(*m) for m in history.visible(manifests, attempts, current)]
        assert found == branch


def test_an_unreadable_attempt_record_costs_no_checkpoint(place: Place) -> None:
    place.run(SAVING + KILLED_AT)
    (place.store / "attempts" / "000002.json").write_text("{")
    left = place.run(SAVING + UNTIL, 3)
    assert [row["training_iteration"] for row in place.rows(3)] == [6, 7, 8, 9]
    assert left.last is not None
    assert left.last.resumed is not None
    assert left.last.resumed.lostIterations == 0


def test_a_stop_rule_that_holds_at_the_base_ends_the_attempt_at_once(place: Place) -> None:
    place.run(SAVING + KILLED_AT)
    place.settings["stop"] = {"maxIterations": 5}
    left = place.run(SAVING + UNTIL, 2)
    assert left.end == ("complete", "MaxIterations")
    assert place.rows(2) == []


def test_results_are_durable_before_the_manifest_and_the_fence_is_looked_at_before_both(tmp_path: Path) -> None:
    calls: list[str] = []

    class Spy(DirectoryStore):
        def keep(self, folder: Path, key: str, older: Sequence[manifest.Entry]) -> Sequence[manifest.Entry]:
            calls.append("keep")
            return super().keep(folder, key, older)

        def list(self, prefix: str) -> list[str]:
            calls.append(f"list {prefix}")
            return super().list(prefix)

        def put_new(self, key: str, data: bytes) -> None:
            calls.append(f"put {key[:9]}")
            super().put_new(key, data)

    class Results:
        def write(self, line: bytes) -> None:
            calls.append("write")

        def sync(self) -> None:
            calls.append("sync")

        remote, size = False, 0

    commit(Spy(tmp_path / "trial"), tmp_path, Results())
    assert calls == ["keep", "list attempts/", "sync", "put manifests"]


def commit(store: Store, root: Path, results: Appender | None) -> None:
    """Commit a folder of one file, as the first attempt at iteration 1."""
    env = environment.read({"TRIALKEEPER_STORE": root.as_uri(), "TRIALKEEPER_ATTEMPT": "1"})
    folder = root / "made"
    folder.mkdir()
    (folder / "w").write_text("w")
    saving.commit(
        store,
        env,
        folder,
        kind="directory",
        why="periodic",
        progress=manifest.Progress(1, None, 0.0, {}, ()),
        metrics={},
        reported=0.0,
        results=results,
    )


@pytest.mark.parametrize("wrong", [b"{", OSError("nobody answers")])
def test_a_commit_whose_manifest_cannot_be_read_back_is_nobody_elses_and_keeps_its_files(
    wrong: bytes | OSError, tmp_path: Path
) -> None:
    """The answer to its manifest was lost; the second try is told that one is there, and cannot read whose it is."""

    class Silent(DirectoryStore):
        def put_new(self, key: str, data: bytes) -> None:
            super().put_new(key, data)
            raise AlreadyThere(key)

        def get(self, key: str) -> bytes:
            if isinstance(wrong, OSError):
                raise wrong
            return wrong

    with pytest.raises(OSError, match="is there, and whose it is cannot be read"):
        commit(Silent(tmp_path / "trial"), tmp_path, None)
    store = DirectoryStore(tmp_path / "trial")
    body = manifest.decode(store.get(contract.manifest_key(1, 1)))
    assert (store.fetch(body["data"], body["files"]) / "w").read_text() == "w"
