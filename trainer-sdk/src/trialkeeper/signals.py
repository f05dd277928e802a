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
_heard: int | None = None


def listen(session: Session) -> None:
    """Note SIGTERM in the session, if the trainer has no handler of its own and this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    own = signal.getsignal(signal.SIGTERM)
    if own not in (signal.SIG_DFL, None) and not callable(own):
        return  # ignored: the trainer's wish

    def asked(number: int, frame: FrameType | None) -> None:
        again = session.signalled
        session.signalled = True
        if callable(own):
            own(number, frame)
        elif not session.owner or again:
            # A forked child, or somebody who asks twice: what the signal does by default.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, asked)
    _overhear()


def _overhear() -> None:
    """Have the interpreter note every signal in a pipe: the trainer may put a handler of its own over ours."""
    global _heard
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if before != -1:
        signal.set_wakeup_fd(before)  # an event loop's, which must go on hearing
        os.close(reader)
        os.close(writer)
        return
    _heard = reader


def came() -> bool:
    """Whether SIGTERM has come since the last look, whoever handled it."""
    if _heard is None:
        return False
    try:
        return signal.SIGTERM in os.read(_heard, 4096)
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
        session.signalled = came() or os.path.exists(session.env.scratch / contract.NOTIFY_FILE)
    return session.signalled
