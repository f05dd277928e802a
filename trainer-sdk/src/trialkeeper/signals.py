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


def listen(session: Session) -> None:
    """Note SIGTERM in the session, if the trainer has no handler of its own and this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def asked(number: int, _frame: FrameType | None) -> None:
        if not session.owner or session.signalled:
            # A forked child, or somebody who asks twice: what the signal does by default.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        session.signalled = True

    signal.signal(signal.SIGTERM, asked)


def asked_to_go(session: Session) -> bool:
    """Whether this pod has been asked to go."""
    global _looked_at
    if session.signalled:
        return True
    now = time.monotonic()
    if now - _looked_at >= POLL_INTERVAL:
        _looked_at = now
        session.signalled = os.path.exists(session.env.scratch / contract.NOTIFY_FILE)
    return session.signalled
