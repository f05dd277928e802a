"""`report` and `get_checkpoint`, as a trainer calls them: one at a time, in the process that owns the pod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trialkeeper import session
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.errors import NotTheOwner
from trialkeeper.reporter import Reporter
from trialkeeper.saving import Save

_reporter: Reporter | None = None


def report(metrics: Mapping[str, Any], checkpoint: Checkpoint | Save | None = None, *, step: int | None = None) -> None:
    """Report one iteration.

    `metrics`: numbers by name; nested dicts are joined by `/`. `checkpoint`: a Checkpoint, which is always
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
    with reporter.session.lock:
        reporter.report(metrics, checkpoint, step)


def get_checkpoint() -> Checkpoint | None:
    """The newest checkpoint of this trial that is whole, or None on a fresh start.

    Call it before the first `report`: what it returns is where this attempt begins.

    :raises TrialStopped: if a stop rule holds there already.
    :raises StaleAttempt: if a later attempt, or another pod of this one, has the trial.
    :raises OSError: if the store cannot be read: nobody then knows whether this would start over.
    """
    reporter = _own("trialkeeper.get_checkpoint()", readers=True)
    with reporter.session.lock:
        return reporter.get_checkpoint()


def _own(call: str, *, readers: bool = False) -> Reporter:
    global _reporter
    current = session.current()
    if not current.owner and not readers:
        raise NotTheOwner(call)
    reporter = _reporter
    if reporter is None or reporter.session is not current:
        with current.lock:
            reporter = _reporter
            if reporter is None or reporter.session is not current:
                reporter = _reporter = Reporter(current)
    return reporter
