"""The session of this process with its trial: who owns the pod's last words, and what they are.

The first process of a pod that uses the SDK owns them, by a lock in the scratch folder that is not inherited
by forks; of several ranks it is rank 0, and the others follow it. Every other process is a reader: it may ask for
parameters, and its end says nothing. The owner's
termination message is `running` from the first call on, so that an end that nobody announces is not taken for
success, and is replaced once: complete, or whatever else it was.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from trialkeeper import contract, environment
from trialkeeper.contract import Message
from trialkeeper.ranks import Alone
from trialkeeper.store.address import path_of

if TYPE_CHECKING:
    from types import TracebackType

    from trialkeeper.live import Live
    from trialkeeper.ranks.following import Follow
    from trialkeeper.settings import Settings

LAST_WORDS = 1.5  # seconds of the grace, for the last words and the interpreter's own end on a busy machine
END_TIMEOUT = 2.0  # seconds for the last live report
LIVE_INTERVAL = 0.2  # seconds between two live reports, at least

_current: Session | None = None
_opening = threading.RLock()


def warn(sentence: str) -> None:
    """One line on stderr."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"trialkeeper: {sentence}\n")


def current() -> Session:
    """This process's session, opened at the first call."""
    global _current
    if _current is None:
        with _opening:
            if _current is None:
                session = Session(environment.read(os.environ, worker=is_worker()))
                session.open()
                _current = session
    return _current


def _forked() -> None:
    """A forked child is a reader, whatever its parent was; what another thread held there is not held here."""
    global _opening
    _opening = threading.RLock()
    if _current is None:
        return
    _current.owner = _current.follower = False
    _current.lock = threading.RLock()
    _current.leads.forked()
    if _current.follows is not None:
        _current.follows.forked()
    if _current.at_fork is not None:
        _current.at_fork()
    signals = sys.modules.get("trialkeeper.signals")
    if signals is not None:
        signals.forked()


class Unsaved(NamedTuple):
    """A last state that is not in the store: words for people, and whether only since nobody answers there."""

    words: str
    unreachable: bool


class Session:
    """One process's session. `message` is what the owner would leave behind now."""

    def __init__(self, env: environment.Environment) -> None:
        self.env = env
        self.owner = False
        self.follower = False  # whether this is another rank than 0, which does what rank 0 decides
        self.leads = Alone()  # how rank 0 tells the others, if there are any
        self.follows: Follow | None = None  # how another rank hears of it
        self.failed_rank: tuple[int, str, str, str] | None = None  # (rank, end, reason, text) of one that failed
        self._signalled_at: float | None = None
        self.source = ""  # what asked this pod to go
        self.lock = threading.RLock()  # held while this process reports
        self.opened_at = time.monotonic()
        self.thread: int | None = None  # the one that reported last
        self.failure: tuple[type[BaseException], BaseException, TracebackType | None] | None = None
        self.message = Message(attempt=env.attempt, podUid=env.pod_uid, started=time.time(), time=time.time())
        self.refresh: Callable[[], None] | None = None  # has what is on its way finished, and `message` up to date
        self.needs: Callable[[], float] = lambda: 0.0  # seconds that a fresh save takes to be through
        self.at_fork: Callable[[], None] | None = None
        self.before_end: Callable[[], None] | None = None  # what reporting wants done at a complete end
        self.unsaved: Callable[[], Unsaved | None] = lambda: None  # what a complete end would leave behind nowhere
        self.last_words: Callable[[Message], None] | None = None  # what reporting does with the final message
        self.new_settings: deque[Settings] = deque(maxlen=1)  # from an answer, for the next report
        self._live: Live | None = None
        self._lock_file: int | None = None
        self._ended = False
        self.told_at = 0.0
        self._warned: set[str] = set()

    @property
    def signalled(self) -> bool:
        """Whether this pod was asked to go."""
        return self._signalled_at is not None

    @signalled.setter
    def signalled(self, asked: bool) -> None:
        if asked and self._signalled_at is None:
            self._signalled_at = time.monotonic() - self._noticed_late()
            self.source = self.source or "SIGTERM"

    def _noticed_late(self) -> float:
        """Seconds since the notify file was made, which is before the signal; 0 if there is none."""
        try:
            made = os.stat(self.env.scratch / contract.NOTIFY_FILE).st_mtime
        except OSError:
            return 0.0
        return min(max(time.time() - made, 0.0), self.env.grace)

    def asked(self, left: float, source: str) -> None:
        """Another rank was asked to go, and has so many seconds left: the earliest counts for all."""
        at = time.monotonic() + left - self._grace
        self._signalled_at = at if self._signalled_at is None else min(at, self._signalled_at)
        self.source = self.source or source

    @property
    def _grace(self) -> float:
        """Seconds that may be used of the grace."""
        return max(self.env.grace - LAST_WORDS, self.env.grace / 2)

    def leave_by(self) -> float | None:
        """The moment (monotonic) by which everything must be done, None while nobody has asked this pod to go."""
        asked = self._signalled_at
        return None if asked is None else asked + self._grace

    def warn_once(self, about: str, sentence: str) -> None:
        """Say something on stderr the first time."""
        if about not in self._warned:
            self._warned.add(about)
            warn(sentence)

    def open(self) -> None:
        """Become the owner if nobody is, say `running`, and listen to how this process ends."""
        os.register_at_fork(after_in_child=_forked)
        first = not is_worker() and self._lock()
        self.owner, self.follower = first and self.env.rank == 0, first and self.env.rank > 0
        if not first:
            return
        from trialkeeper import signals

        if self.owner:
            self._write_termination()
        if self.env.world > 1:
            self._meet()
        atexit.register(self._at_exit if self.owner else self._at_followers_exit)
        self._watch_for_exceptions()
        signals.listen(self)
        self._listen_to_the_cloud()

    def _listen_to_the_cloud(self) -> None:
        name = os.environ.get(contract.ENV_SPOT_NOTICE, "")
        if not name:
            return
        from trialkeeper import notices

        cloud = notices.CLOUDS.get(name)
        if cloud is None:
            raise ValueError(f"{contract.ENV_SPOT_NOTICE} is {name[:40]!r}: it is one of {', '.join(notices.CLOUDS)}")
        notices.listen(self, cloud._replace(address=os.environ.get(contract.ENV_SPOT_NOTICE_URL) or cloud.address))

    def _meet(self) -> None:
        """Come together with the other ranks."""
        if self.owner:
            from trialkeeper.ranks.leading import Lead

            if self.env.plain:
                self.env = environment.reserved(self.env)
            self.leads = Lead(self)
        else:
            from trialkeeper.ranks.following import Follow

            if self.env.plain:
                environment.tell_workers(self.env)
            self.follows = Follow(self)

    def _watch_for_exceptions(self) -> None:
        """Note what ends the main thread, or the thread that reports: its death is the trainer's."""
        previous, previous_in_threads = sys.excepthook, threading.excepthook

        def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            self.failure = (kind, error, trace)
            previous(kind, error, trace)

        def hook_in_threads(args: threading.ExceptHookArgs) -> None:
            reporting = args.thread is not None and args.thread.ident == self.thread
            if reporting and args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
                self.failure = (args.exc_type, args.exc_value, args.exc_traceback)
            previous_in_threads(args)

        sys.excepthook, threading.excepthook = hook, hook_in_threads

    def _lock(self) -> bool:
        """Take the pod's lock; a record lock, since it is not inherited over a fork and dies with its process."""
        if self.env.plain:
            return True
        import fcntl

        name = f"rank-{self.env.rank:05d}.lock" if self.env.rank else "owner.lock"
        try:
            self.env.scratch.mkdir(parents=True, exist_ok=True)
            self._lock_file = os.open(self.env.scratch / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            self.warn_once("lock", f"the scratch folder cannot be used ({error}): is it writable?")
        return True

    def update(self, **changes: Any) -> None:
        """Change what the last words would be."""
        self.message = replace(self.message, time=time.time(), **changes)

    def tell(self, *, urgent: bool = False, last: bool = False) -> None:
        """Replace the live report; over a network in the background, and the `last` one by a single bounded try."""
        self.told_at = time.monotonic()
        if self.env.report.startswith("https://"):
            self._tell_service(urgent, last)
            return
        if not self.env.report:
            return
        file = path_of(self.env.report)
        temporary = f"{file}.new"
        try:
            with open(temporary, "w", encoding="ascii") as out:
                out.write(self.message.encode())
            os.replace(temporary, file)
        except OSError:
            return  # nothing is lost without it

    def _tell_service(self, urgent: bool, last: bool) -> None:
        if self._live is None:
            from trialkeeper.live import Live
            from trialkeeper.service import Service

            env = self.env
            self._live = Live(Service(env.report, env.report_ca, env.token_file), self._received, self.warn_once)
        if not last:
            self._live.tell(self.message, urgent=urgent)
            return
        by = self.leave_by()
        self._live.end(self.message, END_TIMEOUT if by is None else min(END_TIMEOUT, by - time.monotonic()))

    def _received(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings of an answer for the thread that reports.

        :raises ValueError: if they cannot be used.
        """
        from trialkeeper.settings import parse

        self.new_settings.append(parse(settings))

    def _write_termination(self) -> None:
        log = self.env.termination_log
        if log is None:
            return
        try:
            # In place, since the kubelet has mounted this very file, and in one write, so that a kill never
            # leaves it empty or cut: spaces cover what was there before.
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                before = min(os.fstat(descriptor).st_size, contract.MESSAGE_LIMIT)
                words = self.message.encode().ljust(before).encode()
                os.ftruncate(descriptor, os.pwrite(descriptor, words, 0))
            finally:
                os.close(descriptor)
        except OSError as error:
            self.warn_once("termination", f"the termination message cannot be written to {log}: {error}")

    def said_running(self) -> None:
        """Rewrite the running marker, after something that a hard kill should leave behind."""
        self._write_termination()

    def end(self, end: str, reason: str = "", text: str = "") -> None:
        """Replace the marker for good; only the first end counts."""
        if self._ended or not self.owner:
            return
        self._ended = True
        if end == contract.END_PREEMPTED and self.failed_rank is not None:
            # A launcher ends all ranks when one fails, as if the pod were to go.
            rank, end, reason, text = self.failed_rank
            text = f"rank {rank}: {text}"
        if self.refresh is not None and end != contract.END_FENCED:
            self.refresh()
        if end == contract.END_COMPLETE:
            end, reason, text = self._completed(reason, text)
        self.update(end=end, reason=reason, text=text)
        self._write_termination()
        if self.last_words is not None:
            self.last_words(self.message)
        self.tell(last=True)
        self.leads.close(complete=end == contract.END_COMPLETE)

    def _completed(self, reason: str, text: str) -> tuple[str, str, str]:
        """What a complete end comes to now that nothing more can be saved.

        Where only the store, or the time, was missing for the last state, the next attempt does the rest again.
        """
        unsaved = self.unsaved()
        if unsaved is None:
            return contract.END_COMPLETE, reason, text
        if self._asked():
            return contract.END_PREEMPTED, "", f"asked to go before the end was saved: {unsaved.words}"
        if unsaved.unreachable:
            return contract.END_ERROR, contract.REASON_STORE, f"at its end, {unsaved.words}"
        return contract.END_COMPLETE, reason, text or unsaved.words

    def _asked(self) -> bool:
        """Whether this process was asked to go, by a signal that has just come, too."""
        from trialkeeper import signals

        return self.signalled or signals.came()

    def await_signal(self, seconds: float) -> bool:
        """Wait until this process is asked to go, or so many seconds; whether it was asked."""
        deadline = time.monotonic() + seconds
        while not self.signalled and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        return self.signalled

    def _at_exit(self) -> None:
        if not self.owner or self._ended:
            return
        asked = self._asked()
        if self.failure is not None:
            from trialkeeper.failures import describe

            end, reason, text = describe(*self.failure)
            if asked and reason not in (contract.REASON_OOM, contract.REASON_DEVICE):
                # Workers and sockets die under a trainer that is asked to go: that is not its fault.
                end, reason, text = contract.END_PREEMPTED, "", f"asked to go, and then {text}"
            self.end(end, reason, text)
        elif asked:
            self.end(contract.END_PREEMPTED, text="the trainer left after SIGTERM")
        else:
            if self.before_end is not None:
                self.before_end()
            self.end(contract.END_COMPLETE)

    def _at_followers_exit(self) -> None:
        """Another rank's end: its part of what is on its way is finished, and rank 0 hears of a failure."""
        if not self.follower or self.follows is None:
            return
        asked = self._asked()
        if self.failure is not None and not asked:
            from trialkeeper.failures import describe

            self.follows.tell("failure", list(describe(*self.failure)))
        elif self.before_end is not None and not asked:
            self.before_end()
        if self.refresh is not None:
            self.refresh()
        self.follows.close()


def is_worker() -> bool:
    """Whether this process is a child of multiprocessing, which imports the trainer's script once more."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    parent = getattr(multiprocessing, "parent_process", None)
    return parent is not None and parent() is not None
