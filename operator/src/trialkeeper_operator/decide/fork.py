"""Forks and warm starts: which checkpoint an entry of `enqueue` begins from, and what must be kept for it until then.

A fork is a new trial under its own prefix. Its `spec.fork` names one checkpoint under the donor's, and that very one
is what it begins from; the donor goes on undisturbed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trialkeeper import contract
from trialkeeper_operator.api.experiment import Enqueued, EnqueuedBase, Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide import ledger


class NoBase(LookupError):
    """Raised when an entry can never become a trial: what it is to begin from is not there and will not come."""


class NotYet(LookupError):
    """Raised when what an entry is to begin from is still to come."""


@dataclass(frozen=True)
class Fork:
    """What a fork begins from: a checkpoint's key under its donor's prefix; and the donor's parameters."""

    key: str
    parameters: Mapping[str, Any]
    note: str


def queued(experiment: Experiment, trials: Sequence[Trial]) -> int:
    """How many entries of `enqueue` have had their turn: each is taken once, in its order, for ever."""
    return max([experiment.status.enqueued, *(t.spec.enqueued + 1 for t in trials if t.spec.enqueued is not None)])


def following(experiment: Experiment, trials: Sequence[Trial]) -> tuple[int, Enqueued] | None:
    """The entry whose turn it is, and its position; None if the search's turn it is."""
    position, entries = queued(experiment, trials), experiment.spec.enqueue or []
    return (position, entries[position]) if position < len(entries) else None


def prefix_of(experiment: Experiment, trial: Trial) -> str:
    """A trial's folder in the store."""
    return contract.prefix(experiment.namespace, experiment.name, experiment.uid, trial.spec.index)


def fork(experiment: Experiment, base: EnqueuedBase, donor: Trial | None, theirs: Experiment | None) -> Fork:
    """What an entry of `experiment` begins from; `theirs` is the donor's experiment.

    :raises NoBase: if it cannot be had, now or later.
    :raises NotYet: if the donor may still come to it.
    """
    if donor is None or theirs is None:
        raise NoBase(f"there is no Trial {base.trial} in namespace {experiment.namespace}")
    if theirs.spec.storage != experiment.spec.storage:
        raise NoBase(f"{base.trial} keeps its checkpoints in another store than this experiment")
    known, over = donor.status.checkpoint, donor.status.phase in ledger.FINAL
    newest = known.iteration if known else 0
    wanted = base.iteration or newest
    if newest < max(wanted, 1):
        has = f"its newest checkpoint is of iteration {newest}" if newest else "it has no checkpoint"
        if over:
            raise NoBase(f"{base.trial} is over, and {has}")
        raise NotYet(f"{base.trial}: {has}" + (f", not yet of {wanted}" if base.iteration else " yet"))
    prefix, note = prefix_of(theirs, donor), f"forked from {base.trial} at {wanted}"
    if known is None or known.iteration != wanted:
        return Fork(contract.inherited_key(prefix, 0, wanted), donor.spec.parameters, note)
    own = contract.parse_manifest_key(known.key)
    return Fork(contract.inherited_key(prefix, *own) if own else known.key, donor.spec.parameters, note)


def held(experiment: Experiment, trials: Sequence[Trial]) -> dict[str, set[int]]:
    """Iterations, by donor's name, of checkpoints that forks of an experiment will begin from and have not yet.

    From its first statement on a fork's own pin keeps what it has begun from.
    """
    entries = experiment.spec.enqueue or []
    made = {t.spec.enqueued: t for t in trials if t.spec.enqueued is not None}
    turn, found = queued(experiment, trials), dict[str, set[int]]()
    for position, entry in enumerate(entries):
        trial = made.get(position)
        if entry.base is None or (trial is None and position < turn):
            continue
        iteration = entry.base.iteration
        if trial is not None:
            if trial.status.base is not None or trial.status.phase in ledger.FINAL:
                continue
            parsed = contract.parse_inherited_key(trial.spec.fork or "")
            iteration = parsed[2] if parsed else iteration
        if iteration is not None:
            found.setdefault(entry.base.trial, set()).add(iteration)
    return found
