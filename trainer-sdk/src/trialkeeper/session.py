"""The session of this process with its trial: who owns the pod's last words, and what they are.

The first process of a pod that uses the SDK owns them, by a lock in the scratch folder that is not inherited
by forks. Every other process is a reader: it may ask for parameters, and its end says nothing. The owner's
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
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trialkeeper import contract, environment
from trialkeeper.contract import Message

if TYPE_CHECKING:
    from types import TracebackType

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
                session = Session(environment.read(os.environ))
                session.open()
                _current = session
    return _current


def _forked() -> None:
    """A forked child is a reader, whatever its parent was."""
    if _current is not None:
        _current.owner = False


class Session:
    """One process's session. `message` is what the owner would leave behind now."""

    def __init__(self, env: environment.Environment) -> None:
        self.env = env
        self.owner = False
        self.signalled = False
        self.message = Message(attempt=env.attempt, podUid=env.pod_uid, started=time.time(), time=time.time())
        self.refresh: Callable[[], None] | None = None  # brings `message` up to the last report
        self.before_end: Callable[[], None] | None = None  # what reporting wants done before a complete end
        self.last_words: Callable[[Message], None] | None = None  # what reporting does with the final message
        self._lock_file: int | None = None
        self._ended = False
        self._failure: tuple[type[BaseException], BaseException, TracebackType | None] | None = None
        self.told_at = 0.0
        self._warned: set[str] = set()

    def warn_once(self, about: str, sentence: str) -> None:
        """Say something on stderr the first time."""
        if about not in self._warned:
            self._warned.add(about)
            warn(sentence)

    def open(self) -> None:
        """Become the owner if nobody is, say `running`, and listen to how this process ends."""
        os.register_at_fork(after_in_child=_forked)
        self.owner = not _is_worker() and self._lock()
        if not self.owner:
            return
        from trialkeeper import signals

        self._write_termination()
        atexit.register(self._at_exit)
        previous = sys.excepthook

        def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            self._failure = (kind, error, trace)
            previous(kind, error, trace)

        sys.excepthook = hook
        signals.listen(self)

    def _lock(self) -> bool:
        """Take the pod's lock; a record lock, since it is not inherited over a fork and dies with its process."""
        if self.env.plain:
            return True
        import fcntl

        try:
            self.env.scratch.mkdir(parents=True, exist_ok=True)
            self._lock_file = os.open(self.env.scratch / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            self.warn_once("lock", f"the scratch folder cannot be used ({error}): is it writable?")
        return True

    def update(self, **changes: Any) -> None:
        """Change what the last words would be."""
        self.message = replace(self.message, time=time.time(), **changes)

    def tell(self) -> None:
        """Replace the live report."""
        file, self.told_at = self.env.report_file, time.monotonic()
        if file is None:
            return
        temporary = f"{file}.new"
        try:
            with open(temporary, "w", encoding="ascii") as out:
                out.write(self.message.encode())
            os.replace(temporary, file)
        except OSError:
            return  # nothing is lost without it

    def _write_termination(self) -> None:
        log = self.env.termination_log
        if log is None:
            return
        try:
            # In place: the kubelet has mounted this very file.
            with open(log, "w", encoding="ascii") as out:
                out.write(self.message.encode())
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
        if self.refresh is not None:
            self.refresh()
        self.update(end=end, reason=reason, text=text)
        self._write_termination()
        if self.last_words is not None:
            self.last_words(self.message)
        self.tell()

    def await_signal(self, seconds: float) -> None:
        """Wait until this process is asked to go, or so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.signalled and time.monotonic() < deadline:
            threading.Event().wait(0.01)

    def _at_exit(self) -> None:
        if not self.owner or self._ended:
            return
        from trialkeeper import signals

        if self._failure is not None:
            from trialkeeper.failures import describe

            self.end(*describe(*self._failure))
        elif self.signalled or signals.came():
            self.end(contract.END_PREEMPTED, text="the trainer left after SIGTERM")
        else:
            if self.before_end is not None:
                self.before_end()
            self.end(contract.END_COMPLETE)


def _is_worker() -> bool:
    """Whether this process is a child of multiprocessing, which imports the trainer's script once more."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    parent = getattr(multiprocessing, "parent_process", None)
    return parent is not None and parent() is not None
