"""One trial in the process that owns it: where it begins, what a report sets off, and how it leaves.

An iteration is durable against the death of this process as soon as it is reported, against the death of the
machine as soon as a checkpoint at or after it is committed, which the upload process does. Nothing here waits for
a network, but where an attempt begins and where it ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from trialkeeper import contract, leaving, resuming, saving, session, settings, signals, stop
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import Message
from trialkeeper.environment import reserved
from trialkeeper.errors import CannotBegin, StaleAttempt, TrialPreempted, TrialStopped
from trialkeeper.manifest import Progress
from trialkeeper.metrics import of_report, written
from trialkeeper.ranks import shards
from trialkeeper.saves import FlushResult, Head, Saves
from trialkeeper.saving import Save
from trialkeeper.store import AlreadyThere, Appender, Denied, Unreachable, segments
from trialkeeper.store.opening import open_store
from trialkeeper.tally import Tally

HOLD_LIMIT = 300.0  # seconds that a trainer waits for the drill's kill, which also outlasts a restart of the operator
HOLD_LOOK = 0.1  # seconds between two looks at what is committed meanwhile
CLOSING = 60.0  # seconds in which the upload process sends the last results, if nobody has asked this pod to go
READY = (
    "report() is given finished checkpoints, so none can be made when it is due, at the end, or when the pod must go: "
    "pass a function save(folder) instead, or ask trialkeeper.checkpoint_due() before each"
)


class Reporter:
    """Counts a trial's iterations in this process, from the base on."""

    def __init__(self, current: session.Session) -> None:
        if current.owner and current.env.plain and current.env.world == 1:
            current.env = reserved(current.env)
        env = current.env
        self.session, self.env, self._ranks = current, env, current.leads
        self.store = open_store(env, current.leave_by)
        self._results: Appender = self.store.append(contract.results_key(env.attempt))
        given = settings.parse(env.settings)
        self._saves = Saves(current, given, self._heard)
        self._rules = given.rules
        self._objectives = [o.get("metric", "") for o in env.settings.get("objectives") or []]
        self._stop_on_non_finite = env.settings.get("onNonFinite", "Stop") == "Stop"
        self._tally = Tally(env, self._rules.plateau, since=current.opened_at)
        self._begun, self._claimed = False, False
        self._record: Mapping[str, Any] = {}
        self._base: Checkpoint | None = None
        self._exit: Callable[[], SystemExit] | None = None  # how this process was told to leave
        self._save: Save | None = None
        self._resharding = False  # whether any number of processes can load what the last report offered
        self._asked_when = False  # whether the trainer asks when to save
        self._changed: dict[str, Any] = {}
        self._trouble: OSError | None = None  # why the store could not be written the last time it could not
        self._waited = False  # whether the store has been waited for at the end
        self._sent_at = time.monotonic()  # when the raw results were sent last, where they have to be
        if current.owner:
            current.before_end, current.last_words = self._save_at_end, self._store_last_words
            current.unsaved = self._unsaved
            current.needs = self._saves.needs
            current.refresh, current.at_fork = self._refresh, self._saves.uploader.forked
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
            if self.session.owner:
                self._flush(None)
            found = resuming.newest(self.store, self.env)
            if self.session.owner:
                self._ranks.say("base", {"begin": found[1] if found else None, "leave": None})
            return found[0] if found else None
        self._begin(asked=True)
        return self._base

    def _begin(self, *, asked: bool) -> None:
        """Decide where this attempt begins, claim its number in the store, and say so."""
        begun = self._look(asked=asked)
        self._begun = True
        self._base, self._record = begun.base, begun.record
        if begun.base is not None:
            self._tally.count_on(Progress.from_json(begun.base.manifest["progress"]))
        self._saves.base = begun.record.get("base")
        try:
            self._claim()
        except OSError as error:
            self._cannot_write(error)
            self._saves.claim = self._record
        self._saves.schedule.begin(self._tally.iteration, time.monotonic())
        if asked:
            self._tally.leave_out()  # to read a checkpoint is not to train
        self._changed["resumed"], self._changed["checkpoint"] = begun.resumed, begun.reference
        self._note()
        self._say()
        self.session.said_running()
        self.session.tell()
        verdict = self._done_already(begun.base) if begun.base is not None else None
        self._ranks.say("base", {"begin": begun.record["base"], "leave": verdict[0] if verdict else None})
        if verdict is not None:
            self._leave(contract.END_COMPLETE, *verdict)

    def _look(self, *, asked: bool) -> resuming.Begun:
        try:
            if asked:
                return resuming.begin_patiently(self.store, self.env, self.session.await_signal, self._ranks.vouched)
            return resuming.begin(self.store, self.env, asked=False)
        except CannotBegin as why_not:
            self._ranks.say("base", {"error": why_not.text})
            session.warn(why_not.text)
            self.session.end(contract.END_USER_ERROR, why_not.reason, why_not.text)
            self._go(partial(type(why_not), why_not.text))
        except resuming.Superseded as why:
            self._fenced(str(why))
        except OSError as error:
            if asked:
                raise
            self._cannot_write(error)
            return resuming.begin_blindly(self.env)

    def _claim(self) -> None:
        """Put the record that fences every older attempt; where that fails, the first commit has to do it before."""
        try:
            resuming.claim(self.store, self.env, self._record)
        except resuming.Superseded as why:
            self._fenced(str(why))
        self._claimed = True

    def _done_already(self, base: Checkpoint) -> tuple[str, str] | None:
        """A stop rule may hold already at the base: the kill came between the save and the end, or the rule is new."""
        return self._stopped({k: v for k, v in base.metrics.items() if isinstance(v, (int, float))})

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
        if isinstance(error, shards.PartMissing):
            self.session.warn_once("part", f"a save is not in the store: {error}")
            return
        self.session.warn_once("store", f"the store cannot be written ({error}): training goes on without it")

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
        flat, forced = of_report(reported)
        saving.check_source(source)
        if not self._begun:
            self._begin(asked=False)
        self._adopt_settings()
        if step is not None:
            self._tally.advance(step)
        self._hear()
        self._count(flat)
        broken = stop.diverged(self._objectives, flat, self._tally.iteration) if self._stop_on_non_finite else None
        verdict = None if broken else self._stopped(flat)
        if self.env.hold == self._tally.iteration:
            self._await_the_drill()
        going = signals.asked_to_go(self.session)
        # Only what this report offers: an older function may have caught an older state.
        self._save = source if callable(source) else None
        self._resharding = resharding or (isinstance(source, Checkpoint) and source.resharding)
        why, way = None, leaving.SAVE
        if source is not None and broken is None:
            why, way = self._plan(source, stopped=verdict is not None, going=going, forced=forced)
        leave = contract.REASON_NON_FINITE if broken else verdict[0] if verdict else "" if going else None
        nonce = self._tell_ranks(why, way, leave)
        handed = source is not None and why is not None and self._hand_over(source, why, nonce, spent)
        self._tell(now=self._tally.reports == 1)
        if broken is not None:
            self._leave(contract.END_STOPPED, contract.REASON_NON_FINITE, broken)
        if verdict is not None:
            self._leave(contract.END_COMPLETE, *verdict)
        if going or (handed and self.session.signalled and self._ranks.alone):
            self._leave_saved()
        if handed:
            self._tally.leave_out()  # to save is not to train

    def _adopt_settings(self) -> None:
        """Judge by what the operator has sent since the last report."""
        if not self.session.new_settings:
            return
        given = self.session.new_settings.popleft()
        self._rules, self._saves.schedule.policy = given.rules, given.policy
        self._saves.keep = given.retention
        self._saves.schedule.mtbf = self._saves.schedule.mtbf if given.mtbf is None else given.mtbf
        self._tally.judge_plateau(given.rules.plateau)

    def _count(self, flat: Mapping[str, float | int]) -> None:
        """One iteration more, in the raw results before anything else can go wrong."""
        line = self._tally.count(flat)
        try:
            self._results.write(line)
        except OSError as error:
            self._cannot_write(error)
        if self._results.remote and self._claimed and time.monotonic() - self._sent_at >= segments.INTERVAL:
            self._sent_at = time.monotonic()
            try:
                self._saves.uploader.sync()
            except OSError as error:
                self._cannot_write(error)
        for name, who in {**stop.named(self._rules), **dict.fromkeys(self._objectives, "the objective is")}.items():
            if name and name not in flat:
                self.session.warn_once(f"metric {name}", f"{who} {name!r}, which is not among the reported metrics")
        if self._tally.reports == 1:
            self._changed["firstReport"] = self._tally.reported_at
        self._note()
        self.session.thread, self.session.failure = threading.get_ident(), None

    def _await_the_drill(self) -> None:
        """Wait where the drill wants to hit: this iteration is reported and not saved yet.

        What is committed meanwhile is told, for the drill waits for it.
        """
        self._tell(now=True)
        end = time.monotonic() + HOLD_LIMIT
        while not self.session.await_signal(HOLD_LOOK) and time.monotonic() < end:
            self._hear()

    def _stopped(self, flat: Mapping[str, float | int]) -> tuple[str, str] | None:
        tally = self._tally
        return stop.judge(self._rules, flat, tally.window, iteration=tally.iteration, seconds=tally.trained)

    def _plan(
        self, source: Checkpoint | Save, *, stopped: bool, going: bool, forced: bool
    ) -> tuple[str | None, leaving.Way]:
        """Why a save is made now, None if none is, and by which way if this pod is to go."""
        ready, way = isinstance(source, Checkpoint), leaving.SAVE
        why = self._saves.why(self._tally.iteration, stopped=stopped)
        if going:
            way = self._saves.way_out()
            why = None if way == "finish" and not ready else "preempted"
            if way == "replace":
                self._saves.give_up()
        elif why is None and (ready or forced):
            why = "asked"
        if ready and not self._asked_when:
            self.session.warn_once("ready", READY)
        return (why if why is not None and self._may_save(why) else None), way

    def _may_save(self, why: str) -> bool:
        """Whether a save can be taken now."""
        try:
            self._results.write(b"")  # what could not be written before: no checkpoint may be ahead of its results
        except OSError as error:
            self._cannot_write(error)
            return False
        return self._saves.make_way(why, self._tally.values)

    def _tell_ranks(self, why: str | None, way: leaving.Way, leave: str | None) -> str:
        """Tell the other ranks what comes of this report, before the save, which may take all of them; its nonce."""
        if self._ranks.alone:
            return ""
        nonce = shards.nonce()
        save = {"nonce": nonce, "iteration": self._tally.iteration, "why": why, "replace": way == "replace"}
        self._ranks.report({"save": save if why is not None else None, "leave": leave, "left": self._left()})
        return nonce

    def _left(self) -> float | None:
        by = self.session.leave_by()
        return None if by is None else max(by - time.monotonic(), 0.0)

    def _hand_over(self, source: Checkpoint | Save, why: str, nonce: str, spent: float = 0.0) -> bool:
        """Hand a save over; False if it cannot be taken. The trainer's own errors are its own."""
        self._say()  # a save may fail, and what was reported has been reported
        tally = self._tally
        head = Head(tally.progress(), {k: written(v) for k, v in tally.values.items()}, tally.reported_at)
        try:
            self._saves.hand_over(source, why, head, spent=spent, nonce=nonce, resharding=self._resharding)
        except saving.NotStaged as error:
            self._cannot_write(error)
            return False
        self._hear()
        return True

    # What others ask for at a safe point.

    def due(self, step: int | None) -> bool:
        """Whether the trainer should save now."""
        if self._exit is not None:
            raise self._exit()
        self._asked_when = True
        self._hear()
        said = self._ranks.ask("due", self._is_due, step=step)
        if said == "leave":
            self._leave_saved()
        return said is True

    def _is_due(self) -> bool | str:
        """Whether the trainer should save now, or `leave`."""
        if signals.asked_to_go(self.session):
            return self._saves.way_out() != "finish" or "leave"
        if self._saves.busy() and self._saves.on_busy == "Skip":
            return False
        return self._saves.why(self._tally.iteration + 1) is not None

    def folder(self, metrics: Mapping[str, Any], step: int | None, resharding: bool) -> AbstractContextManager[Path]:
        """A folder of ours; leaving it cleanly is a report."""
        if self._exit is not None:
            raise self._exit()
        self._asked_when = True
        return self._saves.folder(resharding, lambda source, spent: self.report(metrics, source, step, spent=spent))

    def preemption(self) -> leaving.Preemption | None:
        """What is left to this pod, if it was asked to go."""
        if self._exit is not None:
            raise self._exit()
        self._hear()
        said = self._ranks.ask("preemption", self._is_preempted)
        return leaving.Preemption(**said) if said else None

    def _is_preempted(self) -> dict[str, Any] | None:
        found = self._saves.preemption() if signals.asked_to_go(self.session) else None
        return None if found is None else asdict(found)

    def flush(self, timeout: float | None) -> FlushResult:
        """Wait for what is on its way."""
        found = self._flush(timeout)
        self._ranks.say("flush", asdict(found))
        return found

    def _flush(self, timeout: float | None) -> FlushResult:
        found = self._saves.flush(timeout, anew=not self._waited)
        self._hear()
        return found

    # What the upload process says.

    def _heard(self) -> None:
        """In a thread: take it in, unless the trainer is about to do so itself."""
        if self.session.lock.acquire(timeout=1.0):
            try:
                self._saves.hear()
                self._take_in()
            finally:
                self.session.lock.release()

    def _hear(self) -> None:
        """Take in what the upload process has said, and what follows from it."""
        self._saves.hear()
        self._take_in()
        if self._saves.fenced is not None:
            self._fenced(self._saves.fenced)
        if self._saves.refused is not None:
            refused, self._saves.refused = self._saves.refused, None
            raise ValueError(refused)

    def _take_in(self) -> None:
        news = self._saves.news()
        if news.trouble is not None:
            self._cannot_write(news.trouble)
        if news.checkpoint is not None:
            self._changed["checkpoint"], self._changed["saveInterval"] = news.checkpoint, news.interval
            self._claimed = True
            self._say()
            self.session.tell(urgent=True)

    # Words for the others.

    def _note(self) -> None:
        self._changed["iteration"], self._changed["trainedSeconds"] = self._tally.iteration, self._tally.trained

    def _refresh(self) -> None:
        """Before the last words: have what is on its way finished, and told."""
        with self.session.lock:
            self._saves.flush(anew=not self._waited)
            by, unsent = self.session.leave_by(), self._saves.uploader.outstanding
            self._saves.close(0.0 if unsent else CLOSING if by is None else max(by - time.monotonic(), 0.0))
            self._take_in()
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

    def _leave_saved(self) -> NoReturn:
        left = self._flush(None)
        if left.pending:
            unsent = ", ".join(map(str, left.pending))
            why = left.error or "there was no time"
            session.warn(f"what was saved at iteration {unsent} is not in the store: {why}")
        at = self._saves.schedule.saved_iteration
        saved = at == self._tally.iteration and self._tally.reports > 0
        kept = f"saved at iteration {at}" if saved else f"the newest checkpoint is of iteration {at}"
        if not at:
            kept = "left without a checkpoint"
        self._say()
        self.session.end(contract.END_PREEMPTED, text=f"asked to go at iteration {self._tally.iteration}: {kept}")
        self._go(TrialPreempted)

    def _save_at_end(self) -> None:
        """At a clean end: the last state, if the last report has shown how to save it and it is not saved yet."""
        if not self._begun:
            return
        try:
            if self._saves.schedule.policy.at_end:
                self._save_last()
        except Exception as error:
            self._save = None  # its trainer's own trouble, which another attempt would have again
            session.warn(f"the last state could not be saved at the end: {type(error).__name__}: {error}")
        except SystemExit:
            return
        self._say()

    def _save_last(self) -> None:
        """Save the last state. While nobody answers in the store, again and again: nobody will come by to save it
        later."""
        end = time.monotonic() + resuming.PATIENCE
        while True:
            self._flush(None)
            self._waited = True
            if self._saves.schedule.handed_iteration >= self._tally.iteration or self._save is None:
                return
            nonce = "" if self._ranks.alone else shards.nonce()
            if self._may_save("final"):
                self._ranks.say("end", {"nonce": nonce, "iteration": self._tally.iteration, "why": "final"})
                if self._hand_over(self._save, "final", nonce) and self._flush(None):
                    return
            if not self._ranks.alone:
                return  # the others are on their way out
            if not self._unreachable() or time.monotonic() >= end or self.session.signalled:
                return
            self.session.await_signal(resuming.PAUSE)

    def _unsaved(self) -> session.Unsaved | None:
        """What a complete end would leave behind nowhere, once it is of no use to wait any more."""
        schedule = self._saves.schedule
        wanted = self._tally.iteration if self._save is not None else schedule.handed_iteration
        if not self._begun or not schedule.policy.at_end or schedule.saved_iteration >= wanted:
            return None
        why = self._saves.refused or self._trouble
        words = f"the last checkpoint is of iteration {schedule.saved_iteration}: {why}"
        return session.Unsaved(words, self._unreachable())

    def _unreachable(self) -> bool:
        """Whether nobody has answered in the store when it was needed last."""
        return isinstance(self._trouble, Unreachable) and not isinstance(self._trouble, Denied)

    def _store_last_words(self, message: Message) -> None:
        if not self._begun or (message.reason == contract.REASON_STORE and self._unreachable()):
            return  # nobody answers there, and what was reported since the last checkpoint is run again
        try:
            if message.end != contract.END_FENCED and (
                not self._results.remote or self._saves.synced < self._results.size
            ):
                self._results.sync()
            self.store.put_new(contract.ended_key(self.env.attempt), message.encode(1 << 20).encode())
        except AlreadyThere:
            return
        except OSError as error:
            session.warn(f"the newest results and the last words are not in the store: {error}")
