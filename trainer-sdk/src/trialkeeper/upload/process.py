"""The upload process: takes saves in their order, commits each, and answers; it outlives its trainer for a moment.

It has the lowest priority, so that it takes what the trainer leaves. Signals are its trainer's business: it goes when
nobody is at the other end of its pipe any more and what is in hand is done, or the grace is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trialkeeper import contract, manifest, resuming, retention, saving, session
from trialkeeper.contract import CheckpointRef
from trialkeeper.environment import Environment
from trialkeeper.errors import CheckpointCorrupt, StaleAttempt
from trialkeeper.manifest import Entry, Progress
from trialkeeper.ranks import shards
from trialkeeper.store import Appender, Denied, Missing, Store, Unreachable
from trialkeeper.store.opening import open_store
from trialkeeper.upload import messages
from trialkeeper.upload.messages import Committed, Dropped, Failed, Fenced, Refused, Save, Synced

PAUSE, PAUSE_LIMIT = 2.0, 60.0  # seconds after a save that failed, doubled each time, and at most
UNPRUNED = 2  # saves of a trainer that saves faster than they are sent, after which retention looks nevertheless
MARGIN = 0.5  # seconds of the grace that are left to the trainer's own end
WATCH = 1.0  # seconds between two looks whether the trainer lives, if nothing is heard of it


class Process:
    """One attempt's saves. `say` sends an answer to the trainer."""

    def __init__(self, env: Environment, say: Callable[[messages.Answer], None]) -> None:
        self._env, self._say = env, say
        self._store: Store | None = None
        self._results: Appender | None = None
        self._news = threading.Condition()
        self._waiting: deque[Save] = deque()
        self._in_hand = 0
        self._sync = False
        self._alone = False  # the trainer has closed its end
        self._failures = 0
        self._not_before = 0.0
        self._claimed = False
        self._older: Sequence[Entry] | None = None  # files of the newest checkpoint, None: to be asked
        self._last: str | None = None  # the manifest of the last save that this rank has kept its part of
        self._known = retention.Known()
        self._unpruned = 0  # saves since retention looked
        self._unscored_said = False
        self.leave_by: float | None = None

    # From the trainer.

    def take(self, asked: dict[str, Any]) -> None:
        """Note what the trainer asks for."""
        with self._news:
            kind = asked.pop("is")
            if kind == "Save":
                self._enqueue(Save(**asked))
            elif kind == "sync":
                self._sync = True
            elif kind == "retry":
                self._not_before = 0.0
            elif kind == "leaveBy":
                self._hurry(asked["seconds"])
            self._news.notify()

    def _enqueue(self, save: Save) -> None:
        self._waiting.append(save)
        self._not_before = 0.0
        for other in [w for w in self._waiting if w.number == save.instead and w.number != self._in_hand]:
            self._drop(other)

    def _drop(self, save: Save) -> None:
        self._waiting.remove(save)
        saving.remove(Path(save.folder))
        self._say(Dropped(save.number))

    def _hurry(self, seconds: float) -> None:
        by = time.monotonic() + seconds
        self.leave_by = by if self.leave_by is None else min(by, self.leave_by)
        self._not_before = 0.0

    def finish(self) -> None:
        """The trainer is gone, or wants this process to go: finish what there is while the grace lasts."""
        with self._news:
            self._alone = True
            self._hurry(max(self._env.grace - MARGIN, self._env.grace / 2))
            self._news.notify()

    # What is done.

    def run(self) -> None:
        """Work until the trainer is gone and all is done."""
        while (job := self._next()) is not None:
            if isinstance(job, Save):
                self._save(job)
            else:
                self._send_results()

    def _next(self) -> Save | str | None:
        with self._news:
            self._in_hand = 0
            while True:
                now = time.monotonic()
                if self._waiting and self._failures and len(self._waiting) > 1 and self._env.rank == 0:
                    self._drop(self._waiting[0])  # a newer one is as good, and the store may be well again for it
                if self._waiting and now >= self._not_before:
                    self._in_hand = self._waiting[0].number
                    return self._waiting[0]
                if self._sync:
                    self._sync = False
                    return "sync"
                if self._alone and not self._waiting:
                    return None
                self._news.wait(self._not_before - now if self._waiting else None)

    def _opened(self) -> tuple[Store, Appender]:
        if self._store is None or self._results is None:
            self._store = open_store(self._env, lambda: self.leave_by)
            self._results = self._store.append(contract.results_key(self._env.attempt))
        return self._store, self._results

    def _save(self, save: Save) -> None:
        start = time.monotonic()
        try:
            reference, sent = self._commit(save)
        except (StaleAttempt, resuming.Superseded) as why:
            self._say(Fenced(str(why) if isinstance(why, resuming.Superseded) else ""))
            with self._news:
                for other in [*self._waiting]:
                    self._drop(other)
            return
        except ValueError as wrong:
            if self._env.rank > 0:
                self._announce_failure(save)
            self._done(save)
            self._say(Refused(save.number, str(wrong)))
            return
        except Exception as error:
            self._failed(save, error)
            return
        self._failures = 0
        self._done(save)
        self._say(Committed(save.number, reference, time.monotonic() - start, sent))
        self._prune(save)

    def _done(self, save: Save) -> None:
        with self._news:
            self._waiting.remove(save)
        saving.remove(Path(save.folder))

    def _failed(self, save: Save, error: Exception) -> None:
        missing = isinstance(error, shards.PartMissing)
        again = isinstance(error, OSError) and not missing and os.path.isdir(save.folder)
        kind = "denied" if isinstance(error, Denied) else "unreachable" if isinstance(error, Unreachable) else "failed"
        kind = "part" if missing else kind
        if not again:
            if self._env.rank > 0:
                self._announce_failure(save)
            self._done(save)
        text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        self._failures += 1
        with self._news:
            pause = min(PAUSE * 2 ** (self._failures - 1), PAUSE_LIMIT)
            self._not_before = time.monotonic() + (PAUSE if self.leave_by is not None else pause)
        self._say(Failed(save.number, kind, text, again))

    def _commit(self, save: Save) -> tuple[CheckpointRef, int]:
        """Commit a save; its reference, and how many bytes were sent."""
        store, results = self._opened()
        if self._env.rank > 0:
            return self._keep_part(store, save)
        if save.claim is not None and not self._claimed:
            resuming.claim(store, self._env, save.claim)
            self._claimed = True
        if save.again and (there := self._committed_before(store, save)) is not None:
            return there, 0
        if self._older is None:
            self._older = saving.committed_files(store)
        size = results.size
        done = saving.commit(
            store,
            self._env,
            Path(save.folder),
            kind=save.kind,
            why=save.why,
            progress=Progress.from_json(save.progress),
            metrics=save.metrics,
            reported=save.reported,
            results=results,
            older=self._older,
            nonce=save.nonce,
            resharding=save.resharding,
            leave_by=lambda: self.leave_by,
        )
        self._older = done.body["files"]
        self._say(Synced(size))
        own = f"{done.body['data']}/"
        return done.reference, sum(entry["size"] for entry in self._older if entry["key"].startswith(own))

    def _prune(self, save: Save) -> None:
        """Delete what need not be kept any more; while more is to be sent not after each save, but after some."""
        store, _ = self._opened()
        if self._env.rank > 0 or save.keep is None or self.leave_by is not None:
            return
        if len(self._waiting) > 1 and self._unpruned < UNPRUNED:
            self._unpruned += 1
            return
        self._unpruned = 0
        policy = retention.Policy(**save.keep)
        done = retention.prune(store, self._env, policy, save.base, self._known)
        if done.unscored and not self._unscored_said:
            self._unscored_said = True
            session.warn(f"checkpoints cannot be ranked by {done.unscored!r}, which is not among the reported metrics")

    def _announce_failure(self, save: Save) -> None:
        """Spare rank 0's upload process the wait."""
        data = shards.data_of(self._env, save.iteration, save.nonce)
        with contextlib.suppress(OSError):
            shards.announce(self._opened()[0], data, self._env.rank, None, resharding=False)

    def _keep_part(self, store: Store, save: Save) -> tuple[CheckpointRef, int]:
        """Make another rank's part of a save durable, and say so to rank 0's upload process."""
        env = self._env
        data, key = shards.data_of(env, save.iteration, save.nonce), contract.manifest_key(env.attempt, save.iteration)
        if self._older is None:
            self._older = saving.committed_files(store)
        if self._last is not None:
            with contextlib.suppress(Missing, CheckpointCorrupt):  # what was not committed must not be referred to
                self._older = manifest.decode(store.get(self._last))["files"]
        entries = shards.keep(store, Path(save.folder), data, env.rank, self._older)
        shards.announce(store, data, env.rank, entries, resharding=save.resharding)
        self._last = key
        reference = CheckpointRef(env.attempt, save.iteration, key, save.reported)
        return reference, sum(entry["size"] for entry in entries)

    def _committed_before(self, store: Store, save: Save) -> CheckpointRef | None:
        """What a process before this one has committed without being heard."""
        key = contract.manifest_key(self._env.attempt, save.iteration)
        with contextlib.suppress(Missing, CheckpointCorrupt):
            body = manifest.decode(store.get(key))
            if body["writer"]["podUid"] == self._env.pod_uid:
                return CheckpointRef(self._env.attempt, save.iteration, key, body["reported"])
        return None

    def _send_results(self) -> None:
        if self._env.rank > 0:
            return  # they are rank 0's
        try:
            _, results = self._opened()
            size = results.size
            results.sync()
            self._say(Synced(size))
        except OSError as error:
            self._say(Synced(0, str(error)))


def main() -> None:
    """Serve the trainer at the other end of standard input and output; its process id is the argument."""
    trainer = int(sys.argv[1])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(19)
    # Whatever is printed here by accident must not get between the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    lines = messages.Lines(0)
    first: list[bytes] = []
    while not first and not lines.ended:
        first = [*lines.read()]
    if not first:
        return
    lock = threading.Lock()

    def say(words: messages.Answer) -> None:
        with lock, contextlib.suppress(OSError):  # a trainer that is gone needs no answer
            data = messages.written(words)
            while data:
                data = data[os.write(answers, data) :]

    process = Process(messages.unpacked(first[0]), say)

    def listen() -> None:
        for line in first[1:]:
            process.take(messages.asked(line))
        # A child that the trainer has forked in a moment of its own may hold the pipe open.
        while not lines.ended and os.getppid() == trainer:
            if lines.wait(WATCH):
                for line in lines.read():
                    process.take(messages.asked(line))
        process.finish()
        by = process.leave_by
        time.sleep(max(by - time.monotonic(), 0.0) if by is not None else 0.0)
        os._exit(1)

    threading.Thread(target=listen, name="trialkeeper-asked", daemon=True).start()
    process.run()
    sys.stderr.flush()
    os._exit(0)  # threads of a transfer that was given up must not hold this process
