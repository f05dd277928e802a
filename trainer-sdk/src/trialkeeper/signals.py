"""Being asked to go: SIGTERM, or the notify file that says the same where signals do not arrive."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from trialkeeper import contract

if TYPE_CHECKING:
    from types import FrameType

    from trialkeeper.session import Session

POLL_INTERVAL = 0.2  # seconds between two looks for the notify file

_looked_at = 0.0
_pipe: tuple[int, int] | None = None  # into which the interpreter notes every signal


def listen(session: Session) -> None:
    """Note SIGTERM in the session, beside a handler that the trainer may have, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    own = signal.getsignal(signal.SIGTERM)
    if own not in (signal.SIG_DFL, None) and not callable(own):
        return  # ignored: the trainer's wish
    times = 0
    # A launcher passes the signal on, and sends one of its own when a rank has gone.
    enough = 2 if session.env.world == 1 else 3

    def asked(number: int, frame: FrameType | None) -> None:
        nonlocal times
        times += 1
        session.signalled = True
        if callable(own):
            own(number, frame)
        elif not (session.owner or session.follower) or times >= enough:
            # A forked child, or somebody who asks twice: what the signal does by default. The notify file does
            # not count, since the signal follows it as a rule, and may then come in the middle of the save.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, asked)
    _overhear()


def _overhear() -> None:
    """Have the interpreter note every signal in a pipe: the trainer may put a handler of its own over ours."""
    global _pipe
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if before != -1:
        signal.set_wakeup_fd(before)  # an event loop's, which must go on hearing
        os.close(reader)
        os.close(writer)
        return
    _pipe = (reader, writer)


def forked() -> None:
    """In a forked child: let go of the pipe, which is the parent's. Signals to workers are not meant for it."""
    global _pipe
    if _pipe is None:
        return
    before = signal.set_wakeup_fd(-1)
    if before not in (-1, _pipe[1]):
        signal.set_wakeup_fd(before)
    for end in _pipe:
        os.close(end)
    _pipe = None


def came() -> bool:
    """Whether SIGTERM has come since the last look, whoever handled it."""
    if _pipe is None:
        return False
    try:
        return signal.SIGTERM in os.read(_pipe[0], 4096)
    except OSError:
        return False


def asked_to_go(session: Session) -> bool:
    """Whether this pod has been asked to go."""
    global _looked_at
    if session.signalled:
        return True
    now = time.monotonic()
    if now - _looked_at >= POLL_INTERVAL:
        _looked_at = now
        if came():
            session.signalled = True
        elif os.path.exists(session.env.scratch / contract.NOTIFY_FILE):
            session.source, session.signalled = session.source or "notify file", True
    return session.signalled
