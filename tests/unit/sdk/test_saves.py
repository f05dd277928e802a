"""`saves`: what becomes of a save when two are on their way, and what is said when scratch is full."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stores import environment_of
from trialkeeper import due, leaving, retention, saving, session, signals
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import CheckpointRef, manifest_key
from trialkeeper.leaving import InHand
from trialkeeper.manifest import Progress
from trialkeeper.saves import Head, Saves
from trialkeeper.settings import Settings
from trialkeeper.stop import Rules
from trialkeeper.upload.messages import Answer, Committed, Dropped, Failed, Save


class StandIn:
    """An upload process that does what `answer` says, and else nothing."""

    def __init__(self) -> None:
        self.outstanding: dict[int, Save] = {}
        self.failing: Failed | None = None
        self.begun_at = 0.0
        self.answers: list[Answer] = []
        self.idle: Callable[[], object] = lambda: None  # when the trainer waits
        self.hurried: list[float] = []
        self.given_up = 0

    def save(self, **described: Any) -> int:
        number = max(self.outstanding, default=self.given_up) + 1
        self.outstanding[number] = asked = Save(number=number, **described)
        if asked.instead:
            self.answers.append(Dropped(asked.instead))
        return number

    def commit(self) -> None:
        number, save = next(iter(self.outstanding.items()))
        reference = CheckpointRef(1, save.iteration, manifest_key(1, save.iteration), save.reported)
        self.answers.append(Committed(number, reference, 1.0, 10))

    def hear(self, timeout: float = 0.0) -> list[Answer]:
        if not self.answers and timeout:
            self.idle()
            time.sleep(min(timeout, 0.01))
        found, self.answers = self.answers, []
        for answer in found:
            if isinstance(answer, Failed) and answer.again:
                self.failing = answer
            elif isinstance(answer, (Committed, Dropped, Failed)):
                self.outstanding.pop(answer.number)
        return found

    def retry(self) -> None:
        self.failing = None

    def hurry(self, seconds: float) -> None:
        self.hurried.append(seconds)

    def give_up(self) -> None:
        self.outstanding.clear()


class Trainer:
    """The trainer's side of an attempt, whose saves go to a stand-in."""

    def __init__(self, folder: Path, on_busy: str, **more: str) -> None:
        env = environment_of((folder / "store").as_uri(), folder, **more)
        self.session = session.Session(env)
        policy = due.Policy(frequency=1, on_busy=on_busy)
        kept = retention.Policy(score_attribute="loss", score_order="min")
        self.saves = Saves(self.session, Settings(Rules(), policy, kept), lambda: None)
        self.process = StandIn()
        self.saves.uploader = self.process  # type: ignore[assignment]
        self.iteration = 0

    def save(self, why: str = "periodic", loss: float = 9.0, size: int = 1) -> bool:
        """One save, as a reporter makes it; whether it was made."""
        self.iteration += 1
        if not self.saves.make_way(why, {"loss": loss}):
            return False
        head = Head(Progress(self.iteration, None, 0.0, {}, ()), {"loss": loss}, time.time())

        def write(folder: Path) -> None:
            (folder / "w").write_bytes(b"w" * size)

        self.saves.hand_over(write, why, head)
        self.saves.hear()
        return True

    @property
    def on_its_way(self) -> list[int]:
        return [save.iteration for save in self.process.outstanding.values()]


def filled(folder: Path, on_busy: str, why: str = "periodic", loss: float = 9.0) -> Trainer:
    """A trainer with one save in hand and one that waits."""
    trainer = Trainer(folder, on_busy)
    trainer.save(loss=5.0)
    trainer.save(why, loss)
    return trainer


def test_latest_takes_the_place_of_the_one_that_waits(tmp_path: Path) -> None:
    trainer = filled(tmp_path, "Latest")
    assert trainer.save()
    assert trainer.on_its_way == [1, 3]
    assert (trainer.saves.counts.dropped, trainer.saves.counts.skipped) == (1, 0)


def test_skip_leaves_the_one_that_waits_where_it_is(tmp_path: Path) -> None:
    trainer = filled(tmp_path, "Skip")
    assert not trainer.save()
    assert trainer.on_its_way == [1, 2]
    assert (trainer.saves.counts.dropped, trainer.saves.counts.skipped) == (0, 1)


def test_wait_waits_for_the_one_in_hand_and_counts_it(tmp_path: Path) -> None:
    trainer = filled(tmp_path, "Wait")
    trainer.process.idle = trainer.process.commit
    assert trainer.save()
    assert trainer.on_its_way == [2, 3]
    counts = trainer.saves.counts
    assert (counts.committed, counts.dropped, counts.skipped) == (1, 0, 0)
    assert counts.waited > 0


@pytest.mark.parametrize("on_busy", ["Latest", "Skip", "Wait"])
@pytest.mark.parametrize(("why", "loss"), [("periodic", 1.0), ("milestone", 9.0), ("final", 9.0), ("preempted", 9.0)])
def test_what_matters_is_never_dropped(why: str, loss: float, on_busy: str, tmp_path: Path) -> None:
    trainer = filled(tmp_path, on_busy, why, loss)
    trainer.process.idle = trainer.process.commit
    trainer.save()
    trainer.save()
    assert trainer.saves.counts.dropped == (on_busy == "Latest")  # the fourth takes the third's place
    assert 2 in [trainer.saves._committed, *trainer.on_its_way]


@pytest.mark.parametrize("why", ["milestone", "final", "preempted"])
def test_what_matters_is_made_whatever_waits(why: str, tmp_path: Path) -> None:
    trainer = filled(tmp_path, "Skip")
    trainer.process.idle = trainer.process.commit
    assert trainer.save(why)
    assert trainer.on_its_way == [2, 3]


def test_a_better_one_may_take_the_place_of_the_best(tmp_path: Path) -> None:
    """Else nothing could be replaced in a training that gets better and better."""
    trainer = filled(tmp_path, "Latest", loss=4.0)
    assert trainer.save(loss=3.0)
    assert trainer.on_its_way == [1, 3]
    assert trainer.saves.counts.waited < 0.01


def test_a_process_that_says_nothing_gets_nothing_more_to_do(tmp_path: Path) -> None:
    trainer = filled(tmp_path, "Latest")
    process = trainer.process
    assert trainer.save()
    process.answers.clear()
    process.outstanding[2] = process.outstanding[1]  # the replaced one was not answered for
    assert [trainer.save() for _ in range(3)] == [False] * 3
    assert len(process.outstanding) == 3
    assert trainer.saves.counts.skipped == 3


def test_a_store_that_refuses_holds_up_nobody(tmp_path: Path) -> None:
    trainer = filled(tmp_path, "Wait")
    trainer.process.answers = [Failed(1, "denied", "no", True)]
    assert not trainer.save(), "training goes on without the store"
    assert trainer.save("final"), "what matters is tried all the same"
    assert trainer.saves.counts.waited < 1
    assert (trainer.on_its_way, trainer.saves.counts.skipped) == ([1, 2, 4], 1)
    found = trainer.saves.flush(0.05)
    assert (bool(found), found.pending) == (False, (1, 2, 4))


def test_flush_says_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    trainer = filled(tmp_path, "Latest")
    found = trainer.saves.flush(0.01)
    assert (bool(found), found.committed, found.pending, found.error) == (False, 0, (1, 2), "")
    trainer.process.idle = trainer.process.commit
    found = trainer.saves.flush()
    assert (bool(found), found.committed, found.pending) == (True, 2, ())


def test_a_wait_ends_when_the_pod_must_go(tmp_path: Path) -> None:
    trainer = filled(tmp_path, "Wait")
    trainer.session.asked(0.2, "rank 0")
    start = time.monotonic()
    assert trainer.saves.flush().pending == (1, 2)
    assert time.monotonic() - start < 5
    assert trainer.process.hurried


# Scratch.


def test_a_full_disk_is_waited_for_and_the_size_to_ask_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(tmp_path, "Latest")
    trainer.save(size=10 << 20)
    full = True

    class Disk:
        f_frsize = 4096

        @property
        def f_bavail(self) -> int:
            return 0 if full else 1 << 30

    def commit() -> None:
        nonlocal full
        full = False
        trainer.process.commit()

    monkeypatch.setattr(os, "statvfs", lambda _: Disk())
    trainer.process.idle = commit
    assert trainer.save()
    assert trainer.on_its_way == [2]
    assert trainer.saves.counts.waited > 0
    assert "has no room for a save while one is sent, so report() waits: give the pod 31 MiB" in capsys.readouterr().err


def test_what_the_operator_allows_counts_as_the_disk_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(tmp_path, "Latest", TRIALKEEPER_SCRATCH_BYTES=str(5 << 20))
    trainer.save(size=2 << 20)
    trainer.save(size=2 << 20)
    assert trainer.on_its_way == [1, 2]
    trainer.process.idle = trainer.process.commit
    assert trainer.save(size=2 << 20)
    assert trainer.on_its_way == [3]
    assert "give the pod 7 MiB of it (ephemeral-storage, or sizeLimit of its emptyDir)" in capsys.readouterr().err


def test_a_file_with_two_names_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (1 << 20))
    os.link(tmp_path / "a", tmp_path / "b")
    assert saving.room(tmp_path, 1 << 20, (2 << 20) + (64 << 10))
    assert not saving.room(tmp_path, 1 << 20, 2 << 20 - 1)
    assert saving.room(tmp_path / "none", 1 << 60, 1)


def test_a_save_that_runs_out_of_disk_is_made_again_when_what_is_on_its_way_is_gone(tmp_path: Path) -> None:
    trainer = filled(tmp_path, "Latest")
    trainer.process.idle = trainer.process.commit
    calls: list[Path] = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "w").write_text("x")
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    head = Head(Progress(3, None, 0.0, {}, ()), {}, time.time())
    trainer.saves.hand_over(write, "periodic", head)
    assert len(calls) == 2
    assert not calls[0].exists(), "what the first try left is removed"
    assert trainer.on_its_way == [3]


def test_files_that_are_moved_need_no_room(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, "Latest", TRIALKEEPER_SCRATCH_BYTES="1")
    trainer.save(size=1 << 20)
    trainer.process.idle = lambda: pytest.fail("it waits")
    made = saving.new_folder(trainer.session.env.scratch)
    (made / "w").write_bytes(b"w" * (1 << 20))
    inode = (made / "w").stat().st_ino
    head = Head(Progress(2, None, 0.0, {}, ()), {}, time.time())
    trainer.saves.hand_over(Checkpoint(made, ours=True), "asked", head)
    assert (Path(trainer.process.outstanding[2].folder) / "w").stat().st_ino == inode


# The last seconds.


@pytest.mark.parametrize(
    ("left", "sending", "fresh", "way"),
    [
        (100.0, 10.0, 10.0, "save"),
        (25.0, 10.0, 10.0, "save"),
        (24.9, 10.0, 10.0, "replace"),
        (12.5, 10.0, 10.0, "replace"),
        (12.4, 10.0, 10.0, "finish"),
        (12.4, 0.0, 10.0, "finish"),
        (0.0, 0.0, 0.0, "save"),
        (-1.0, 0.0, 0.0, "finish"),
    ],
)
def test_the_way_out_keeps_most(left: float, sending: float, fresh: float, way: str) -> None:
    assert leaving.way_out(left, InHand(sending, fresh)) == way


def test_whether_a_fresh_save_fits_is_what_was_measured(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, "Latest")
    assert trainer.saves.preemption() is None
    trainer.session.asked(20.0, "rank 0")
    found = trainer.saves.preemption()
    assert found is not None
    assert (found.source, found.fits) == ("rank 0", True), "without a measurement, try"
    assert found.deadline == pytest.approx(20.0, abs=1.5)
    trainer.saves.schedule.cost, trainer.saves.schedule.upload = 1.0, 10.0
    assert trainer.saves.preemption().fits  # type: ignore[union-attr]
    trainer.saves.schedule.upload = 60.0
    assert not trainer.saves.preemption().fits  # type: ignore[union-attr]


@pytest.mark.parametrize(("age", "left"), [(None, 28.5), (10.0, 18.5), (-50.0, 28.5), (500.0, -1.5)])
def test_the_grace_runs_from_the_notice(
    age: float | None, left: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook of the pod writes its file before the signal comes, and a long step notices either late."""
    monkeypatch.setattr(signals, "_looked_at", 0.0)
    env = environment_of("file:///none", tmp_path)
    env.scratch.mkdir()
    asked = session.Session(env)
    if age is not None:
        notice = env.scratch / "preempted"
        notice.touch()
        os.utime(notice, (time.time() - age,) * 2)
    assert signals.asked_to_go(asked) is (age is not None)
    asked.signalled = True
    by = asked.leave_by()
    assert by is not None
    assert by - time.monotonic() == pytest.approx(left, abs=1.0)
    assert asked.source == ("SIGTERM" if age is None else "notify file")
