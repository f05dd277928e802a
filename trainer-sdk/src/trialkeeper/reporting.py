"""What a trainer calls, one call at a time, in the process that owns the pod."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trialkeeper import session
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.errors import NotTheOwner
from trialkeeper.leaving import Preemption
from trialkeeper.reporter import Reporter
from trialkeeper.saves import FlushResult
from trialkeeper.saving import Save

if TYPE_CHECKING:
    from trialkeeper.participant import Participant

_reporter: Reporter | Participant | None = None


def report(
    metrics: Mapping[str, Any],
    checkpoint: Checkpoint | Save | None = None,
    *,
    step: int | None = None,
    resharding: bool = False,
) -> None:
    """Report one iteration.

    `metrics`: numbers by name; nested dicts are joined by `/`. `checkpoint`: a Checkpoint, which is always
    taken, or a function `save(folder)`, which is called only when a save is due, or when `should_checkpoint` among
    the metrics is true. Its files are sent in the background. `step`: the trainer's own clock, if it has one; it
    must not decrease.

    Of several processes (torchrun) all must report: rank 0's metrics count, and each saves its own files, or none.
    `resharding`: what is saved can be loaded by any number of processes, from one folder with the files of all.

    :raises TrialStopped: when the trial is over; it is a SystemExit, leave it alone.
    :raises TrialPreempted: when everything is saved and the pod is to go; likewise.
    :raises StaleAttempt: when a later attempt has taken over; likewise.
    :raises TypeError: if a metric is no number, or `checkpoint` is neither kind.
    :raises ValueError: if a name is taken, `step` decreases, or `save` wrote nothing.
    :raises NotTheOwner: in a worker process.
    """
    reporter = _own("trialkeeper.report()")
    with reporter.session.lock:
        reporter.report(metrics, checkpoint, step, resharding=resharding)


def get_checkpoint() -> Checkpoint | None:
    """The newest checkpoint of this trial that is whole, or None on a fresh start.

    Call it before the first `report`: what it returns is where this attempt begins.

    :raises TrialStopped: if a stop rule holds there already.
    :raises StaleAttempt: if a later attempt, or another pod of this one, has the trial.
    :raises WorldSizeChanged: if another number of processes has saved it, without `resharding`.
    :raises OSError: if the store cannot be read: nobody then knows whether this would start over.
    """
    reporter = _own("trialkeeper.get_checkpoint()", readers=True)
    with reporter.session.lock:
        return reporter.get_checkpoint()


def checkpoint_due(step: int | None = None) -> bool:
    """Whether to save now: the schedule says so, or this pod is to go and a save still fits. Cheap: ask every step.

    `step`: the trainer's own clock, if it has one.

    :raises TrialPreempted: when this pod is to go and nothing more can be saved; and what `report` raises.
    """
    reporter = _own("trialkeeper.checkpoint_due()")
    with reporter.session.lock:
        return reporter.due(step)


@contextmanager
def checkpoint_dir(
    metrics: Mapping[str, Any] | None = None, *, step: int | None = None, resharding: bool = False
) -> Iterator[Path]:
    """An empty folder to save into. Leaving the block is a `report` of these metrics with it; nothing is copied.

    If the block raises, the folder is dropped and nothing is reported. What `report` raises is raised at its end.
    """
    with _own("trialkeeper.checkpoint_dir()").folder(metrics or {}, step, resharding) as folder:
        yield folder


def preemption() -> Preemption | None:
    """What is left to this pod if it was asked to go, None if it was not: leave soon, or save by `report` first."""
    reporter = _own("trialkeeper.preemption()")
    with reporter.session.lock:
        return reporter.preemption()


def flush(timeout: float | None = None) -> FlushResult:
    """Wait until every save is in the store: `timeout` seconds, or for as long as it is of use."""
    reporter = _own("trialkeeper.flush()")
    with reporter.session.lock:
        return reporter.flush(timeout)


def _own(call: str, *, readers: bool = False) -> Reporter | Participant:
    global _reporter
    current = session.current()
    if not (current.owner or current.follower or readers):
        raise NotTheOwner(call)
    reporter = _reporter
    if reporter is None or reporter.session is not current:
        with current.lock:
            reporter = _reporter
            if reporter is None or reporter.session is not current:
                reporter = _reporter = _made(current)
    return reporter


def _made(current: session.Session) -> Reporter | Participant:
    if not current.follower:
        return Reporter(current)
    from trialkeeper.participant import Participant

    return Participant(current)
