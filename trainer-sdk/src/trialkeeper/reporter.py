"""One trial in the process that owns it: where it begins, what a report sets off, and how it leaves.

An iteration is durable against the death of this process as soon as it is reported, against the death of the
machine as soon as a checkpoint at or after it is committed. Nothing here waits for a network.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from trialkeeper import contract, due, resuming, saving, session, settings, signals, stop
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import CheckpointRef, Message
from trialkeeper.environment import reserved
from trialkeeper.errors import StaleAttempt, TrialPreempted, TrialStopped
from trialkeeper.manifest import Entry, Progress
from trialkeeper.metrics import flatten, written
from trialkeeper.saving import Save
from trialkeeper.store import AlreadyThere, Appender, Denied, Unreachable
from trialkeeper.store.opening import open_store
from trialkeeper.tally import Tally

HOLD_LIMIT = 10.0  # seconds that a trainer waits for the drill's kill


class Reporter:
    """Counts a trial's iterations in this process, from the base on."""

    def __init__(self, current: session.Session) -> None:
        if current.owner and current.env.plain:
            current.env = reserved(current.env)
        env = current.env
        self.session, self.env = current, env
        self.store = open_store(env, current.leave_by)
        self._results: Appender = self.store.append(contract.results_key(env.attempt))
        given = settings.parse(env.settings)
        self._saves = due.Schedule(given.policy, env.mtbf)
        self._rules = given.rules
        self._objectives = [o.get("metric", "") for o in env.settings.get("objectives") or []]
        self._stop_on_non_finite = env.settings.get("onNonFinite", "Stop") == "Stop"
        self._tally = Tally(env, self._rules.plateau, since=current.opened_at)
        self._begun, self._claimed = False, False
        self._record: Mapping[str, Any] = {}
        self._base: Checkpoint | None = None
        self._older: Sequence[Entry] = ()  # files of the newest checkpoint, which need not be stored again
        self._exit: Callable[[], SystemExit] | None = None  # how this process was told to leave
        self._save: Save | None = None
        self._changed: dict[str, Any] = {}
        self._trouble: OSError | None = None  # why the store could not be written the last time it could not
        if current.owner:
            current.before_end, current.last_words = self._save_at_end, self._store_last_words
            current.refresh = self._refresh
            if env.plain:
                session.warn(
                    f"no operator: results and checkpoints go to {env.folder} "
                    f"({contract.ENV_RESUME}=1 goes on from there)"
                )

    # Where this attempt begins.

    def get_checkpoint(self) -> Checkpoint | None:
        if self._exit is not None:
            raise self._exit()
        if self._begun or not self.session.owner:
            return resuming.newest(self.store, self.env)
        self._begin(asked=True)
        return self._base

    def _begin(self, *, asked: bool) -> None:
        """Decide where this attempt begins, claim its number in the store, and say so."""
        begun = self._look(asked=asked)
        self._begun = True
        self._base, self._record = begun.base, begun.record
        if begun.base is not None:
            own = contract.parse_manifest_key(begun.reference.key if begun.reference else "") is not None
            self._older = begun.base.manifest["files"] if own else ()
            self._tally.count_on(Progress.from_json(begun.base.manifest["progress"]))
        try:
            self._claim()
        except OSError as error:
            self._cannot_write(error)
        self._saves.begin(self._tally.iteration, time.monotonic())
        if asked:
            self._tally.leave_out()  # to read a checkpoint is not to train
        self._changed["resumed"], self._changed["checkpoint"] = begun.resumed, begun.reference
        self._note()
        self._say()
        self.session.said_running()
        self.session.tell()
        if begun.base is not None:
            self._done_already(begun.base)

    def _look(self, *, asked: bool) -> resuming.Begun:
        try:
            if asked:
                return resuming.begin_patiently(self.store, self.env, self.session.await_signal)
            return resuming.begin(self.store, self.env, asked=False)
        except resuming.Superseded as why:
            self._fenced(str(why))
        except OSError as error:
            if asked:
                raise
            self._cannot_write(error)
            return resuming.begin_blindly(self.env)

    def _claim(self) -> None:
        """Put the record that fences every older attempt; where that fails, once more before the first commit."""
        try:
            resuming.claim(self.store, self.env, self._record)
        except resuming.Superseded as why:
            self._fenced(str(why))
        self._claimed = True

    def _done_already(self, base: Checkpoint) -> None:
        """A stop rule may hold already at the base: the kill came between the save and the end, or the rule is new."""
        values = {k: v for k, v in base.metrics.items() if isinstance(v, (int, float))}
        verdict = self._stopped(values)
        if verdict is not None:
            self._leave(contract.END_COMPLETE, *verdict)

    def _fenced(self, why: str) -> NoReturn:
        session.warn(f"{why}: this process leaves the trial alone")
        self.session.end(contract.END_FENCED, contract.REASON_STALE_ATTEMPT, f"{why}: this one leaves it alone")
        self._go(StaleAttempt)

    def _go(self, way: Callable[[], SystemExit]) -> NoReturn:
        """Leave, and again at the next call if the trainer has swallowed it."""
        self._exit = way
        raise way()

    def _cannot_write(self, error: OSError) -> None:
        self._trouble = error
        self.session.warn_once("store", f"the store cannot be written ({error}): training goes on without it")

    # One iteration.

    def report(self, reported: Mapping[str, Any], source: Checkpoint | Save | None, step: int | None) -> None:
        if self._exit is not None:
            raise self._exit()
        flat = flatten(reported)
        if source is not None and not isinstance(source, Checkpoint) and not callable(source):
            raise TypeError(f"checkpoint= takes a Checkpoint or a function save(folder), not {type(source).__name__}")
        if not self._begun:
            self._begin(asked=False)
        self._adopt_settings()
        if step is not None:
            self._tally.advance(step)
        self._count(flat)
        broken = stop.diverged(self._objectives, flat, self._tally.iteration) if self._stop_on_non_finite else None
        verdict = None if broken else self._stopped(flat)
        if self.env.hold == self._tally.iteration:
            self._await_the_drill()
        leaving = signals.asked_to_go(self.session)
        # Only what this report offers: an older function may have caught an older state.
        self._save = source if callable(source) else None
        why = None if broken else self._why(source, verdict is not None, leaving)
        saved = why is not None and source is not None and self._commit(source, why)
        self._tell(now=self._tally.reports == 1 or saved)
        if broken is not None:
            self._leave(contract.END_STOPPED, contract.REASON_NON_FINITE, broken)
        if verdict is not None:
            self._leave(contract.END_COMPLETE, *verdict)
        if leaving or (saved and self.session.signalled):
            self._leave_saved(saved)
        if why is not None:
            self._tally.leave_out()  # to save is not to train

    def _adopt_settings(self) -> None:
        """Judge by what the operator has sent since the last report."""
        if not self.session.new_settings:
            return
        given = self.session.new_settings.popleft()
        self._rules, self._saves.policy = given.rules, given.policy
        self._tally.judge_plateau(given.rules.plateau)

    def _count(self, flat: Mapping[str, float | int]) -> None:
        """One iteration more, in the raw results before anything else can go wrong."""
        line = self._tally.count(flat)
        try:
            self._results.write(line)
        except OSError as error:
            self._cannot_write(error)
        if self._claimed:
            self._results.nudge()
        for name in self._objectives:
            if name and name not in flat:
                self.session.warn_once(f"objective {name}", f"the objective {name!r} is not among the reported metrics")
        if self._tally.reports == 1:
            self._changed["firstReport"] = self._tally.reported_at
        self._note()
        self.session.thread, self.session.failure = threading.get_ident(), None

    def _await_the_drill(self) -> None:
        """Wait where the drill wants to hit: this iteration is reported and not saved yet."""
        self._tell(now=True)
        self.session.await_signal(HOLD_LIMIT)

    def _stopped(self, flat: Mapping[str, float | int]) -> tuple[str, str] | None:
        tally = self._tally
        return stop.judge(self._rules, flat, tally.window, iteration=tally.iteration, seconds=tally.trained)

    def _why(self, source: Checkpoint | Save | None, stopped: bool, leaving: bool) -> str | None:
        """Why a save is due now, or None."""
        if source is None or isinstance(source, Checkpoint):
            return None if source is None else "asked"
        return self._saves.why(self._tally.iteration, time.monotonic(), stopped=stopped, leaving=leaving)

    def _commit(self, source: Checkpoint | Save, why: str) -> bool:
        """Save and commit; False if the store could not be written. The trainer's own errors are its own."""
        self._say()  # a save may fail, and what was reported has been reported
        start = time.monotonic()
        reference = None
        try:
            folder, kind = saving.staged(source, self.env.scratch)
        except saving.NotStaged as error:
            self._cannot_write(error)
        else:
            reference = self._committed(folder, kind, why)
        end = time.monotonic()
        self._saves.tried(self._tally.iteration, start, end)
        if reference is None:
            return False
        interval = self._saves.saved(self._tally.iteration, end)
        self._changed["checkpoint"], self._changed["saveInterval"] = reference, interval
        return True

    def _committed(self, folder: Path, kind: str, why: str) -> CheckpointRef | None:
        try:
            if not self._claimed:
                self._claim()
            done = saving.commit(
                self.store,
                self.env,
                folder,
                kind=kind,
                why=why,
                progress=self._tally.progress(),
                metrics={k: written(v) for k, v in self._tally.values.items()},
                reported=self._tally.reported_at,
                results=self._results,
                older=self._older,
            )
            self._older = done.body["files"]
            return done.reference
        except OSError as error:
            self._cannot_write(error)
            return None
        except StaleAttempt:
            self._fenced("a later attempt of this trial has begun")

    # Words for the others.

    def _note(self) -> None:
        self._changed["iteration"], self._changed["trainedSeconds"] = self._tally.iteration, self._tally.trained

    def _refresh(self) -> None:
        if self._begun and self._changed:
            self._say()

    def _say(self) -> None:
        self.session.update(**self._changed, metrics=self._tally.told(self._objectives))
        self._changed = {}

    def _tell(self, *, now: bool) -> None:
        if now or time.monotonic() - self.session.told_at >= session.LIVE_INTERVAL:
            self._say()
            self.session.tell(urgent=now)

    def _leave(self, end: str, reason: str, text: str) -> NoReturn:
        self._say()
        self.session.end(end, reason, text)
        self._go(partial(TrialStopped, reason))

    def _leave_saved(self, saved: bool) -> NoReturn:
        kept = f"saved at iteration {self._saves.saved_iteration}" if saved else "left without a new checkpoint"
        self._say()
        self.session.end(contract.END_PREEMPTED, text=f"asked to go at iteration {self._tally.iteration}: {kept}")
        self._go(TrialPreempted)

    def _save_at_end(self) -> str:
        """At a clean end: the last state, if the last report has shown how to save it and it is not saved yet.

        What a person has to know of it, for the last words; empty if all is well.
        """
        if not self._begun:
            return ""
        unsaved = self._saves.saved_iteration < self._tally.iteration
        said = ""
        if self._saves.policy.at_end and self._save is not None and unsaved:
            try:
                if not self._commit_patiently(self._save):
                    said = f"the last checkpoint is of iteration {self._saves.saved_iteration}: {self._trouble}"
            except Exception as error:
                session.warn(f"the last state could not be saved at the end: {type(error).__name__}: {error}")
            except SystemExit:
                return ""
        self._say()
        return said

    def _commit_patiently(self, save: Save) -> bool:
        """The last save, again and again while the store does not answer: nobody will come by to save it later."""
        end = time.monotonic() + resuming.PATIENCE
        while not self._commit(save, "final"):
            gone = isinstance(self._trouble, Unreachable) and not isinstance(self._trouble, Denied)
            if not gone or time.monotonic() >= end or self.session.signalled:
                return False
            self.session.await_signal(resuming.PAUSE)
        return True

    def _store_last_words(self, message: Message) -> None:
        if not self._begun:
            return
        try:
            if message.end != contract.END_FENCED:
                self._results.sync()
            self.store.put_new(contract.ended_key(self.env.attempt), message.encode(1 << 20).encode())
        except (AlreadyThere, OSError):
            return
