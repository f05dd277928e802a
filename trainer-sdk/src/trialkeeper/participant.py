"""Another rank than 0 in its own process: it does at each call what rank 0 has decided for that call.

It counts nothing and reports nothing. What it saves is its part of the save that rank 0 makes at the same report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from trialkeeper import leaving, resuming, saving, session, settings
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.errors import CannotBegin, CheckpointCorrupt, RankZeroGone, TrialPreempted, TrialStopped
from trialkeeper.manifest import Progress
from trialkeeper.metrics import of_report
from trialkeeper.ranks import shards
from trialkeeper.ranks.agreement import Gone, OutOfTime
from trialkeeper.ranks.following import Follow
from trialkeeper.reporter import CLOSING
from trialkeeper.saves import FlushResult, Head, Saves
from trialkeeper.saving import Save
from trialkeeper.store import Missing, Unreachable
from trialkeeper.store.opening import open_store

T = TypeVar("T")


class Participant:
    """A rank that follows rank 0. Whoever calls holds the session's lock."""

    def __init__(self, current: session.Session) -> None:
        assert current.follows is not None
        self.session, self.env = current, current.env
        self._rank_zero: Follow = current.follows
        self.store = open_store(self.env, current.leave_by)
        self._saves = Saves(current, settings.parse(self.env.settings), self._heard)
        self._base: Checkpoint | None = None
        self._exit: Callable[[], SystemExit] | None = None
        self._save: Save | None = None
        self._resharding = False
        current.before_end, current.refresh = self._save_at_end, self._finish
        current.at_fork = self._saves.uploader.forked

    def _decided(self, ask: Callable[[], T]) -> T:
        """What rank 0 has decided for a call; to leave, if that will never be known."""
        if self._exit is not None:
            raise self._exit()
        self._saves.hear()
        try:
            return ask()
        except OutOfTime as late:
            session.warn(f"{late}: rank {self.env.rank} leaves")
            self._go(TrialPreempted)
        except Gone as gone:
            if gone.complete:
                self._go(partial(TrialStopped, "Completed"))
            session.warn(f"{gone}: rank {self.env.rank} leaves")
            self._go(TrialPreempted if self.session.signalled else RankZeroGone)

    def _go(self, way: Callable[[], SystemExit]) -> NoReturn:
        self._exit = way
        raise way()

    def _leave(self, way: Callable[[], SystemExit]) -> NoReturn:
        """Finish what is on its way, and go after rank 0: a launcher takes the first that goes for a failure."""
        self._saves.flush()
        end = time.monotonic() + CLOSING

        def by() -> float:
            leave = self.session.leave_by()
            return end if leave is None else min(end, leave)

        self._rank_zero.await_end(by)
        self._go(way)

    # Where this attempt begins.

    def get_checkpoint(self) -> Checkpoint | None:
        self._saves.flush()
        while True:
            said = self._decided(lambda: self._rank_zero.hear("base")) or {"begin": None}
            if "try" in said:
                self._rank_zero.vouch(said["try"], self._is_whole(said["try"]))
            elif "error" in said:
                self._go(partial(CannotBegin, said["error"]))
            else:
                break
        name = said["begin"]
        self._base = resuming.named(self.store, self.env, name) if name else None
        if said.get("leave") is not None:
            self._leave(partial(TrialStopped, said["leave"]))
        return self._base

    def _is_whole(self, name: str) -> bool:
        try:
            resuming.named(self.store, self.env, name)
        except Unreachable:
            raise
        except (CheckpointCorrupt, Missing, OSError) as broken:
            session.warn(f"rank {self.env.rank}: checkpoint {name} is passed over, an older one is tried: {broken}")
            return False
        return True

    # One iteration.

    def report(
        self,
        reported: Mapping[str, Any],
        source: Checkpoint | Save | None,
        step: int | None,
        *,
        resharding: bool = False,
        spent: float = 0.0,
    ) -> None:
        if self._exit is not None:
            raise self._exit()
        of_report(reported)
        saving.check_source(source)
        self._save = source if callable(source) else None
        self._resharding = resharding or (isinstance(source, Checkpoint) and source.resharding)
        said = self._decided(self._rank_zero.report)
        if said["left"] is not None:
            self.session.asked(said["left"], "rank 0")
        if said["save"] is not None:
            self._hand_over(source, said["save"], spent)
        elif isinstance(source, Checkpoint):
            source.discard()
        leave = said["leave"]
        if leave is not None:
            self._leave(partial(TrialStopped, leave) if leave else TrialPreempted)

    def _hand_over(self, source: Checkpoint | Save | None, asked: Mapping[str, Any], spent: float = 0.0) -> None:
        """Save this rank's part. The trainer's own errors are its own."""
        nonce = asked["nonce"]
        if asked.get("replace"):
            self._saves.give_up()
        if source is None:
            self._rank_zero.part(nonce, shards.EMPTY)
            return
        self._saves.make_way("final", {})
        head = Head(Progress(asked["iteration"], None, 0.0, {}, ()), {}, time.time())
        try:
            sent = self._saves.hand_over(
                source, asked["why"], head, spent=spent, nonce=nonce, resharding=self._resharding
            )
        except saving.NotStaged as error:
            self._rank_zero.part(nonce, shards.FAILED)
            self.session.warn_once("store", f"rank {self.env.rank} cannot save ({error}): training goes on without it")
            return
        except BaseException:
            self._rank_zero.part(nonce, shards.FAILED)
            raise
        if not sent:
            self._rank_zero.part(nonce, shards.EMPTY)

    def folder(self, metrics: Mapping[str, Any], step: int | None, resharding: bool) -> AbstractContextManager[Path]:
        if self._exit is not None:
            raise self._exit()
        return self._saves.folder(resharding, lambda source, spent: self.report(metrics, source, step, spent=spent))

    # What rank 0 decides besides.

    def due(self, step: int | None) -> bool:
        said = self._decided(lambda: self._rank_zero.ask("due", step=step))
        if said == "leave":
            self._leave(TrialPreempted)
        return said is True

    def preemption(self) -> leaving.Preemption | None:
        said = self._decided(lambda: self._rank_zero.ask("preemption"))
        return leaving.Preemption(**said) if said else None

    def flush(self, timeout: float | None) -> FlushResult:
        found = self._saves.flush(timeout)
        said = self._decided(lambda: self._rank_zero.hear("flush"))
        return found if said is None else FlushResult(said["committed"], tuple(said["pending"]), said["error"])

    # What the upload process says.

    def _heard(self) -> None:
        if self.session.lock.acquire(timeout=1.0):
            try:
                self._saves.hear()
                news = self._saves.news()
                if news.trouble is not None:
                    self.session.warn_once(
                        "store", f"rank {self.env.rank}: the store cannot be written: {news.trouble}"
                    )
            finally:
                self.session.lock.release()

    # The end.

    def _save_at_end(self) -> None:
        """At a clean end: this rank's part of the last state, if rank 0 saves it."""
        if self._exit is not None:
            return
        try:
            said = self._decided(lambda: self._rank_zero.hear("end"))
            if said is not None:
                self._hand_over(self._save, said)
        except Exception as error:
            session.warn(f"the last state could not be saved at the end: {type(error).__name__}: {error}")
        except SystemExit:
            pass

    def _finish(self) -> None:
        """Have what is on its way finished."""
        with self.session.lock:
            self._saves.flush()
            self._saves.close(0.0)
