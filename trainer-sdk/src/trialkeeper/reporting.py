"""`report` and `get_checkpoint`: one iteration of a trial, and where it goes on after a kill.

`report` never waits for a network. An iteration is durable against the death of this process as soon as it
is reported, against the death of the machine as soon as a checkpoint at or after it is committed.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from trialkeeper import contract, due, metrics, resuming, saving, session, signals, stop
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import CheckpointRef, Message
from trialkeeper.errors import NotTheOwner, StaleAttempt, TrialPreempted, TrialStopped
from trialkeeper.manifest import Progress
from trialkeeper.saving import Save
from trialkeeper.store import AlreadyThere, Appender
from trialkeeper.store.directory import DirectoryStore

HOLD_LIMIT = 10.0  # seconds that a trainer waits for the drill's kill

_reporter: Reporter | None = None
_lock = threading.RLock()


def report(
    reported: Mapping[str, Any], checkpoint: Checkpoint | Save | None = None, *, step: int | None = None
) -> None:
    """Report one iteration.

    `reported`: numbers by name; nested dicts are joined by `/`. `checkpoint`: a Checkpoint, which is always
    taken, or a function `save(folder)`, which is called only when a save is due. `step`: the trainer's own
    clock, if it has one; it must not decrease.

    :raises TrialStopped: when the trial is over; it is a SystemExit, leave it alone.
    :raises TrialPreempted: when everything is saved and the pod is to go; likewise.
    :raises StaleAttempt: when a later attempt has taken over; likewise.
    :raises TypeError: if a metric is no number, or `checkpoint` is neither kind.
    :raises ValueError: if a name is taken, `step` decreases, or `save` wrote nothing.
    :raises NotTheOwner: in a worker process.
    """
    reporter = _own("trialkeeper.report()")
    with _lock:
        reporter.report(reported, checkpoint, step)


def get_checkpoint() -> Checkpoint | None:
    """The newest checkpoint of this trial that is whole, or None on a fresh start.

    Call it before the first `report`: what it returns is where this attempt begins.
    """
    return _own("trialkeeper.get_checkpoint()", readers=True).get_checkpoint()


def _own(call: str, *, readers: bool = False) -> Reporter:
    global _reporter
    current = session.current()
    if not current.owner and not readers:
        raise NotTheOwner(call)
    with _lock:
        if _reporter is None or _reporter.session is not current:
            _reporter = Reporter(current)
    return _reporter


class Reporter:
    """Counts a trial's iterations in this process, from the base on."""

    def __init__(self, current: session.Session) -> None:
        env = current.env
        self.session, self.env = current, env
        self.store = DirectoryStore(env.folder)
        settings = env.settings
        policy = settings.get("checkpoint") or {}
        self._policy = due.Policy(policy.get("frequency"), policy.get("intervalSeconds"), policy.get("atEnd", True))
        self._rules = stop.parse(settings)
        self._objectives = [o.get("metric", "") for o in settings.get("objectives") or []]
        self._stop_on_non_finite = settings.get("onNonFinite", "Stop") == "Stop"
        self._tail = f',"trial_id":{json.dumps(env.trial)},"attempt":{env.attempt},"hostname":{json.dumps(_host())}'
        self._begun = False
        self._base: Checkpoint | None = None
        self._checkpoint: CheckpointRef | None = None
        self._at = time.monotonic()
        self._iteration, self._reports, self._trained = 0, 0, 0.0
        self._step: int | None = None
        self._summaries: dict[str, contract.MetricSummary] = {}
        self._window: list[float] = []
        self._results: Appender | None = None
        self._cost: float | None = None
        self._saved_iteration, self._saved_at = 0, time.monotonic()
        self._save: Save | None = None
        self._values: Mapping[str, float | int] = {}
        self._changed: dict[str, Any] = {}
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
        with _lock:
            if not self.session.owner:
                return resuming.newest(self.store, self.env.attempt)
            if not self._begun:
                self._begin(asked=True)
                return self._base
            return resuming.newest(self.store, self.env.attempt)

    def _begin(self, *, asked: bool) -> None:
        """Decide where this attempt begins, claim its number in the store, and say so."""
        self._begun = True
        try:
            begun = resuming.begin(self.store, self.env, asked=asked)
        except resuming.Superseded as why:
            self._fenced(str(why))
        if begun.refusal is not None:
            self._cannot_write(begun.refusal)
        self._base, self._checkpoint = begun.base, begun.reference
        if begun.base is not None:
            self._count_on(begun.base)
        self._results = self._open_results()
        self._at = self._saved_at = time.monotonic()
        self.session.update(
            resumed=begun.resumed,
            iteration=self._iteration,
            trainedSeconds=self._trained,
            checkpoint=begun.reference,
            metrics=self._told(),
        )
        self.session.said_running()
        self.session.tell()
        if begun.base is not None:
            self._done_already(begun.base)

    def _done_already(self, base: Checkpoint) -> None:
        """A stop rule may hold already at the base: the kill came between the save and the end, or the rule is new."""
        values = {k: v for k, v in base.metrics.items() if isinstance(v, (int, float))}
        verdict = self._stopped(values)
        if verdict is not None:
            self.session.end(contract.END_COMPLETE, *verdict)
            raise TrialStopped(verdict[0])

    def _count_on(self, base: Checkpoint) -> None:
        progress = Progress.from_json(base.manifest["progress"])
        self._iteration, self._step, self._trained = progress.iteration, progress.step, progress.trained_seconds
        self._summaries, self._window = dict(progress.summaries), list(progress.window)
        self._saved_iteration = progress.iteration

    def _fenced(self, why: str) -> NoReturn:
        session.warn(f"{why}: this process leaves the trial alone")
        self.session.end(contract.END_FENCED, contract.REASON_STALE_ATTEMPT, f"{why}: this one leaves it alone")
        raise StaleAttempt

    def _open_results(self) -> Appender | None:
        try:
            return self.store.append(contract.results_key(self.env.attempt))
        except OSError as error:
            self._cannot_write(error)
            return None

    def _cannot_write(self, error: OSError) -> None:
        self.session.warn_once("store", f"the store cannot be written ({error}): training goes on without it")

    # One iteration.

    def report(self, reported: Mapping[str, Any], source: Checkpoint | Save | None, step: int | None) -> None:
        flat = metrics.flatten(reported)
        if source is not None and not isinstance(source, Checkpoint) and not callable(source):
            raise TypeError(f"checkpoint= takes a Checkpoint or a function save(folder), not {type(source).__name__}")
        if not self._begun:
            self._begin(asked=False)
        if step is not None:
            if self._step is not None and step < self._step:
                raise ValueError(f"step went back from {self._step} to {step}: it may stay or grow, also over a resume")
            self._step = step
        moment, now = time.monotonic(), time.time()
        spent, self._at = moment - self._at, moment
        self._iteration += 1
        self._reports += 1
        self._trained += spent
        self._write(flat, spent, now)
        metrics.summarise(self._summaries, flat)
        self._values = flat
        self._note_objectives(flat)
        first = self._reports == 1
        self._changed |= {"iteration": self._iteration, "trainedSeconds": self._trained}
        if first:
            self._changed["firstReport"] = now
        broken = self._non_finite(flat)
        verdict = None if broken else self._stopped(flat)
        if self.env.hold == self._iteration:
            self._await_the_drill()
        leaving = signals.asked_to_go(self.session)
        why = self._why(source, verdict is not None, leaving, moment)
        if callable(source):
            self._save = source
        if why is not None:
            self._say()  # a save may fail, and what was reported has been reported
        saved = why is not None and source is not None and not broken and self._commit(source, why, flat, now)
        self._tell(now=first or saved)
        if broken:
            self._leave(contract.END_STOPPED, contract.REASON_NON_FINITE, broken)
        if verdict is not None:
            self._leave(contract.END_COMPLETE, *verdict)
        if leaving:
            kept = f"saved at iteration {self._saved_iteration}" if saved else "left without a new checkpoint"
            self._say()
            self.session.end(contract.END_PREEMPTED, text=f"asked to go at iteration {self._iteration}: {kept}")
            raise TrialPreempted
        # What saving took is not part of the next iteration.
        if saved:
            self._at = time.monotonic()

    def _await_the_drill(self) -> None:
        """Wait where the drill wants to hit: this iteration is reported and not saved yet."""
        self._tell(now=True)
        self.session.await_signal(HOLD_LIMIT)

    def _write(self, flat: Mapping[str, float | int], spent: float, now: float) -> None:
        """Append the raw result, in one write, before anything else can go wrong."""
        if self._results is None:
            return
        step = "" if self._step is None else f',"step":{self._step}'
        values = flat if all(map(math.isfinite, flat.values())) else {k: metrics.written(v) for k, v in flat.items()}
        own = json.dumps(values, separators=(",", ":"))[1:]
        line = (
            f'{{"training_iteration":{self._iteration},"time_this_iter_s":{spent:.6f},"time_total_s":{self._trained:.6f},'
            f'"timestamp":{now:.6f}{self._tail}{step}{"," if values else ""}{own}\n'
        )
        try:
            self._results.write(line.encode())
        except OSError as error:
            self._cannot_write(error)

    def _note_objectives(self, flat: Mapping[str, float | int]) -> None:
        for name in self._objectives:
            if name and name not in flat:
                self.session.warn_once(f"objective {name}", f"the objective {name!r} is not among the reported metrics")
        plateau = self._rules.plateau
        if plateau is not None and plateau.metric in flat and math.isfinite(flat[plateau.metric]):
            self._window.append(float(flat[plateau.metric]))
            del self._window[: -plateau.results]

    def _non_finite(self, flat: Mapping[str, float | int]) -> str:
        """A sentence if an objective has left the numbers and that ends the trial."""
        if not self._stop_on_non_finite:
            return ""
        for name in self._objectives:
            value = flat.get(name)
            if value is not None and not math.isfinite(value):
                return (
                    f"objective {name} was {metrics.written(value)} at iteration {self._iteration}: the trial has "
                    "diverged and is not repeated (onNonFinite: Continue lets such trials go on)"
                )
        return ""

    def _stopped(self, flat: Mapping[str, float | int]) -> tuple[str, str] | None:
        return stop.judge(self._rules, flat, self._window, iteration=self._iteration, seconds=self._trained)

    def _why(self, source: Checkpoint | Save | None, stopped: bool, leaving: bool, moment: float) -> str | None:
        """Why a save is due now, or None."""
        if isinstance(source, Checkpoint):
            return "asked"
        if source is None:
            return None
        if leaving:
            return "preempted"
        if stopped and self._policy.at_end:
            return "final"
        timely = due.due(
            self._policy,
            iterations=self._iteration - self._saved_iteration,
            seconds=moment - self._saved_at,
            cost=self._cost,
            mtbf=self.env.mtbf,
        )
        return "periodic" if timely else None

    def _commit(self, source: Checkpoint | Save, why: str, flat: Mapping[str, float | int], now: float) -> bool:
        """Save and commit; False if the store could not be written. The trainer's own errors are its own."""
        start = time.monotonic()
        folder, kind = saving.staged(source, self.env.scratch)
        progress = Progress(self._iteration, self._step, self._trained, self._summaries, tuple(self._window))
        values = {k: metrics.written(v) for k, v in flat.items()}
        try:
            self._checkpoint = saving.commit(
                self.store,
                self.env,
                folder,
                kind=kind,
                why=why,
                progress=progress,
                metrics=values,
                reported=now,
                results=self._results,
            )
        except OSError as error:
            self._cannot_write(error)
            return False
        except StaleAttempt:
            self._fenced("a later attempt of this trial has begun")
        end = time.monotonic()
        interval = end - self._saved_at
        self._cost, self._saved_iteration, self._saved_at = end - start, self._iteration, end
        self._changed |= {"checkpoint": self._checkpoint, "saveInterval": interval}
        return True

    # Words for the others.

    def _told(self) -> dict[str, contract.MetricSummary]:
        """The summaries that fit into a message: the objectives first."""
        first = {name: self._summaries[name] for name in self._objectives if name in self._summaries}
        for name, summary in self._summaries.items():
            if len(first) >= 32:
                break
            first.setdefault(name, summary)
        return first

    def _refresh(self) -> None:
        if self._begun and self._changed:
            self._say()

    def _say(self) -> None:
        self.session.update(**self._changed, metrics=self._told())
        self._changed = {}

    def _tell(self, *, now: bool) -> None:
        if now or time.monotonic() - self.session.told_at >= session.LIVE_INTERVAL:
            self._say()
            self.session.tell()

    def _leave(self, end: str, reason: str, text: str) -> None:
        self._say()
        self.session.end(end, reason, text)
        raise TrialStopped(reason)

    def _save_at_end(self) -> None:
        """At a clean end: the last state, if the trainer has shown how to save it and it is not saved yet."""
        if not self._begun:
            return
        if self._policy.at_end and self._save is not None and self._saved_iteration < self._iteration:
            try:
                self._commit(self._save, "final", self._values, time.time())
            except Exception as error:
                session.warn(f"the last state could not be saved at the end: {type(error).__name__}: {error}")
            except SystemExit:
                return
        self._say()

    def _store_last_words(self, message: Message) -> None:
        if not self._begun:
            return
        try:
            self.store.put_new(contract.ended_key(self.env.attempt), message.encode(1 << 20).encode())
        except (AlreadyThere, OSError):
            return


def _host() -> str:
    return socket.gethostname()
