"""The saves of one attempt in the trainer's process: when, what if two are on their way, and what became of them.

The trainer waits for a save only if the newest state would else be lost, or its scratch folder has no room, or it
was told to (`checkpoint.onBusy: Wait`); each wait is counted.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trialkeeper import due, leaving, resuming, retention, saving, session, signals
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import CheckpointRef
from trialkeeper.manifest import Progress
from trialkeeper.ranks import shards
from trialkeeper.saving import Save
from trialkeeper.settings import Settings
from trialkeeper.store import Denied, Unreachable
from trialkeeper.upload.messages import Answer, Committed, Dropped, Failed, Fenced, Refused, Synced
from trialkeeper.upload.uploader import Uploader

ON_ITS_WAY = 2  # saves at most: one in hand, one waiting
LISTEN = 0.2  # seconds for which answers are awaited at once, so that a signal is noticed
REPLACEABLE = frozenset({"periodic", "asked"})


@dataclass
class Counts:
    """What became of saves; seconds that the trainer waited for others."""

    committed: int = 0
    dropped: int = 0
    skipped: int = 0
    failed: int = 0
    waited: float = 0.0


@dataclass(frozen=True)
class FlushResult:
    """True if every save is in the store.

    `committed`: the iteration of this attempt's newest one that is, 0 for none; `pending`: those of saves that are
    not, nor is a newer one; `error`: why, as far as it is known.
    """

    committed: int
    pending: tuple[int, ...]
    error: str = ""

    def __bool__(self) -> bool:
        return not self.pending and not self.error


@dataclass(frozen=True)
class Head:
    """Of what a save is: the trial's progress, its last metrics, and when they were reported."""

    progress: Progress
    metrics: Mapping[str, Any]
    reported: float


@dataclass
class News:
    """What has been heard since the last look."""

    checkpoint: CheckpointRef | None = None
    interval: float = 0.0
    trouble: OSError | None = None


@dataclass
class _Sent:
    iteration: int
    at: float  # when it was handed over


class Saves:
    """The saves of one attempt. Whoever calls holds the session's lock."""

    def __init__(self, current: session.Session, given: Settings, news: Callable[[], None]) -> None:
        self._session, self._env = current, current.env
        self.schedule = due.Schedule(given.policy, current.env.mtbf)
        self.keep = given.retention
        self.counts = Counts()
        self.uploader = Uploader(current.env, news)
        self.base: str | None = None
        self.claim: Mapping[str, Any] | None = None  # what must be in the store before the first commit
        self._best: float | None = None
        self._best_saves: set[int] = set()  # numbers of saves that were the best when they were made
        self._sent: dict[int, _Sent] = {}
        self._committed = 0
        self._lost: dict[int, str] = {}  # iterations of saves that were given up, and why, until a newer one is there
        self._size = 0  # bytes of the largest save so far
        self.synced = 0  # bytes of raw results that are in the store
        self._news = News()
        self.fenced: str | None = None  # why nothing of this attempt counts any more
        self.refused: str | None = None  # why the store can never hold a save, for the trainer to hear
        self._patient_from: float | None = None  # since when a failing store is waited for

    # What is heard.

    def hear(self, timeout: float = 0.0) -> None:
        """Take in what the upload process has answered."""
        for answer in self.uploader.hear(timeout):
            self._take_in(answer)

    def _take_in(self, answer: Answer) -> None:
        if isinstance(answer, Synced):
            self.synced = max(self.synced, answer.size)
            if answer.error:
                self._news.trouble = Unreachable(answer.error)
        elif isinstance(answer, Fenced):
            self.fenced = answer.text or "a later attempt of this trial has begun"
        elif isinstance(answer, Committed):
            sent = self._sent.pop(answer.number)
            self.counts.committed += 1
            self._patient_from = None
            self._committed, self.claim = max(self._committed, sent.iteration), None
            self._lost = {lost: why for lost, why in self._lost.items() if lost > sent.iteration}
            self._news.interval = self.schedule.saved(sent.iteration, sent.at, answer.seconds)
            self._news.checkpoint = answer.reference
        elif isinstance(answer, Dropped):
            self._sent.pop(answer.number, None)
            self.counts.dropped += 1
        elif isinstance(answer, Refused):
            self.refused = answer.text
            if answer.number in self._sent:
                self.schedule.lost(self._sent.pop(answer.number).iteration)
        else:
            self._fail(answer)

    def _fail(self, answer: Failed) -> None:
        kinds = {"denied": Denied, "unreachable": Unreachable, "part": shards.PartMissing}
        self._news.trouble = kinds.get(answer.kind, OSError)(answer.text)
        if not answer.again:
            self.counts.failed += 1
            sent = self._sent.pop(answer.number, None)
            if sent is not None:
                self.schedule.lost(sent.iteration)
                self._lost[sent.iteration] = answer.text

    def news(self) -> News:
        """What has been heard since the last call."""
        found, self._news = self._news, News()
        return found

    # When.

    def busy(self) -> bool:
        """Whether as many saves are on their way as may be."""
        self.hear()
        return len(self.uploader.outstanding) >= ON_ITS_WAY

    def why(self, iteration: int, *, stopped: bool = False) -> str | None:
        """Why a save is due at an iteration, None if it is not."""
        return self.schedule.why(iteration, time.monotonic(), stopped=stopped)

    def preemption(self) -> leaving.Preemption | None:
        """What is left to a pod that was asked to go, None if it was not."""
        by = self._session.leave_by()
        if by is None:
            return None
        left = max(by - time.monotonic(), 0.0)
        self.uploader.hurry(left)
        return leaving.Preemption(self._session.source, left, self.way_out() != "finish")

    def needs(self) -> float:
        """Seconds that a fresh save takes until it is through, as saves went until now."""
        return 2 * ((self.schedule.cost or 0.0) + 2 * (self.schedule.upload or 0.0))

    def way_out(self) -> leaving.Way:
        """How to use the last seconds; without a measurement, by saving."""
        by = self._session.leave_by()
        stall, upload = self.schedule.cost, self.schedule.upload
        if by is None or stall is None:
            return "save"
        now, sending = time.monotonic(), 0.0
        if self.uploader.outstanding:
            per_save = upload or 0.0
            sending = max(per_save - (now - self.uploader.begun_at), 0.0)
            sending += per_save * (len(self.uploader.outstanding) - 1)
        return leaving.way_out(by - now, leaving.InHand(sending, stall + (upload or 0.0)))

    def give_up(self) -> None:
        """Forget what is on its way, for the sake of what comes now."""
        for number, save in self.uploader.outstanding.items():
            self.counts.dropped += 1
            self._sent.pop(number, None)
            self.schedule.lost(save.iteration)
        self.uploader.give_up()

    # How.

    @contextmanager
    def folder(self, resharding: bool, report: Callable[[Checkpoint, float], None]) -> Iterator[Path]:
        """A folder of ours to save into; leaving it cleanly reports it, with the seconds that were spent on it.

        It is gone afterwards: taken, or dropped.
        """
        start = time.monotonic()
        with self._session.lock:
            self.make_room()
        made = saving.new_folder(self._env.scratch)
        try:
            yield made
            with self._session.lock:
                report(Checkpoint(made, ours=True, resharding=resharding), time.monotonic() - start)
        finally:
            saving.remove(made)

    def hand_over(
        self,
        source: Checkpoint | Save,
        why: str,
        head: Head,
        *,
        spent: float = 0.0,
        nonce: str = "",
        resharding: bool = False,
    ) -> bool:
        """Take a save from the trainer, once there is way for it; False if it is another rank's empty part.

        `spent`: seconds that the trainer has spent on it already. `nonce`: what all ranks know it by.

        :raises ValueError: if the folder cannot be a checkpoint; whatever a save function raises.
        :raises OSError: if the scratch folder cannot be written.
        """
        iteration = head.progress.iteration
        start = time.monotonic()
        try:
            staged = self._staged(source, part=bool(nonce))
        except saving.NotStaged as error:
            self._lost[iteration] = str(error)
            raise
        finally:
            end = time.monotonic()
            self.schedule.tried(iteration, start - spent, end)
        self._size = max(self._size, staged.size)
        if self._env.rank > 0 and not shards.has_files(staged.folder):
            saving.remove(staged.folder)
            return False
        try:
            number = self._send(staged, why, head, nonce=nonce, resharding=resharding)
        except OSError as error:
            saving.remove(staged.folder)
            self._lost[iteration] = str(error)
            raise saving.NotStaged(*error.args) from error
        self._sent[number] = _Sent(iteration, end)
        self.schedule.handed(iteration)
        if self._beats(head.metrics):
            self._best = retention.score(head.metrics, self.keep)
            self._best_saves.add(number)
        return True

    def _send(self, staged: saving.Staged, why: str, head: Head, *, nonce: str, resharding: bool) -> int:
        return self.uploader.save(
            folder=os.fspath(staged.folder),
            kind=staged.kind,
            why=why,
            progress=head.progress.to_json(),
            metrics=dict(head.metrics),
            reported=head.reported,
            instead=self._replaceable(head.metrics),
            claim=self.claim,
            keep=asdict(self.keep),
            base=self.base,
            nonce=nonce,
            resharding=resharding,
        )

    def _beats(self, metrics: Mapping[str, Any]) -> bool:
        """Whether these are better than those of all saves before."""
        score = retention.score(metrics, self.keep) if self.keep.score_attribute is not None else None
        return score is not None and (self._best is None or score > self._best)

    def _replaceable(self, metrics: Mapping[str, Any]) -> int:
        """The number of the waiting save that one with these metrics may take the place of, 0 if there is none.

        The best so far is not to be replaced by a worse one.
        """
        if len(self.uploader.outstanding) != ON_ITS_WAY or self.on_busy == "Wait":
            return 0
        if self._env.world > 1:
            return 0  # the others may have begun to send their parts of it
        number, waiting = [*self.uploader.outstanding.items()][-1]
        replaceable = waiting.why in REPLACEABLE and (number not in self._best_saves or self._beats(metrics))
        return number if replaceable else 0

    @property
    def on_busy(self) -> str:
        """`checkpoint.onBusy`; of several ranks, none can take back what the others may have sent already."""
        asked = self.schedule.policy.on_busy
        return "Skip" if self._env.world > 1 and asked == "Latest" else asked

    def make_way(self, why: str, metrics: Mapping[str, Any]) -> bool:
        """See to it that there is room for one more on its way, with these metrics; False if it is to be skipped."""
        if not self.busy():
            return True
        # What was to be replaced is told at once, or the process is not well.
        answers = self.wait(lambda: len(self.uploader.outstanding) <= ON_ITS_WAY, by=time.monotonic() + LISTEN)
        stuck = self.uploader.failing is not None or not answers
        if self.on_busy == "Skip" and why in REPLACEABLE:
            self.counts.skipped += 1
            return False
        if (self.on_busy == "Latest" or stuck) and self._replaceable(metrics):
            return True
        if stuck and why in REPLACEABLE:
            self.counts.skipped += 1
            return False  # training goes on without the store, which has the newer ones before it already
        self.wait(lambda: len(self.uploader.outstanding) < ON_ITS_WAY)
        return True

    def _staged(self, source: Checkpoint | Save, *, part: bool) -> saving.Staged:
        """The trainer's files in a folder of ours; if scratch is full, once more when what is on its way is gone."""
        if callable(source) or not source.moves(self._env.scratch):
            self.make_room()
        try:
            return saving.staged(source, self._env.scratch, part=part)
        except OSError as error:
            moved = isinstance(source, Checkpoint) and not source.path.is_dir()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.uploader.outstanding or moved:
                raise
            self._wait_for_room()
            return saving.staged(source, self._env.scratch, part=part)

    def make_room(self) -> None:
        """Before a save is written: see to it that the scratch folder can take one as large as the largest so far."""
        if self._size and not saving.room(self._env.scratch, self._size, self._env.scratch_bytes):
            self._wait_for_room()

    def _wait_for_room(self) -> None:
        wanted = f"{(3 * self._size >> 20) + 1} MiB" if self._size else "three times the size of a save"
        self._session.warn_once(
            "room",
            f"the scratch folder {self._env.scratch} has no room for a save while one is sent, so report() waits: "
            f"give the pod {wanted} of it (ephemeral-storage, or sizeLimit of its emptyDir)",
        )
        self.wait(lambda: not self.uploader.outstanding)

    def wait(self, enough: Callable[[], bool], by: float | None = None) -> bool:
        """Wait until there is `enough` room; whether there is.

        Gives up some time after the store has begun to fail, at `by` (monotonic), and when the pod must go.
        """
        start = time.monotonic()
        while not enough():
            now = time.monotonic()
            leave = self._session.leave_by() if signals.asked_to_go(self._session) else None
            if leave is not None:
                self.uploader.hurry(leave - now)
            ends = [end for end in (leave, by, self._give_up(now)) if end is not None]
            if ends and now >= min(ends):
                break
            self.hear(min([LISTEN, *(end - now for end in ends)]))
        self.counts.waited += time.monotonic() - start
        return enough()

    def _give_up(self, now: float) -> float | None:
        """When to wait no longer for a store that fails; None while it does not."""
        failing = self.uploader.failing
        if failing is None:
            return None
        self._patient_from = self._patient_from or now
        return self._patient_from + (resuming.PATIENCE if failing.kind == "unreachable" else 0.0)

    # The end.

    def flush(self, timeout: float | None = None, *, anew: bool = True) -> FlushResult:
        """Wait until every save is in the store, or it is of no use to wait.

        A store that fails is waited for `anew`, or what is left of the patience that there was before.
        """
        self._patient_from = None if anew else self._patient_from
        by = None if timeout is None else time.monotonic() + timeout
        self.hear()
        self.uploader.retry()
        self.wait(lambda: not self.uploader.outstanding, by=by)
        pending = (*self._lost, *(save.iteration for save in self.uploader.outstanding.values()))
        failing = self.uploader.failing
        why = failing.text if failing else next(reversed(self._lost.values()), "")
        return FlushResult(self._committed, pending, why)

    def close(self, seconds: float) -> None:
        """End the upload process, with the raw results sent if that can be."""
        for answer in self.uploader.close(seconds):
            self._take_in(answer)
