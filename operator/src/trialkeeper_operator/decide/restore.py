"""Going on from a snapshot: what the Trials of a new experiment are, by the rows of an old one. Pure.

A snapshot is user input, so every row goes through the models again, and names no prefix but those of its own
namespace. A finished trial is taken over as it is. Any other one begins anew, with an attempt 1 under its own
prefix, from the newest checkpoint under the old one's; what it has lost and how often it has failed is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trialkeeper import contract
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment, Restored
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import BASES_LIMIT, TrialSpec, TrialStatus
from trialkeeper_operator.decide import ledger
from trialkeeper_operator.decide.trial import completed

TAKEN_OVER = "taken over from"  # how the message of a trial begins that was over before

_UID = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9]{0,63}")
_OVER = (
    "failures",
    "disruptions",
    "iteration",
    "trained_seconds",
    "running_seconds",
    "metrics",
    "lost_work",
    "start_time",
    "retried",
)


class RestoreRefused(ValueError):
    """Raised when there is nothing to go on from; the message is one sentence that says why."""


@dataclass(frozen=True)
class Donor:
    """The experiment that a snapshot is of."""

    name: str
    namespace: str
    uid: str

    def prefix(self, index: int) -> str:
        return contract.prefix(self.namespace, self.name, self.uid, index)


@dataclass(frozen=True)
class Row:
    """A trial to take over: its spec without the experiment's names, and the status to begin with."""

    spec: TrialSpec
    status: TrialStatus

    @property
    def finished(self) -> bool:
        return self.status.phase in ledger.FINAL


def donor_of(experiment: Experiment, found: Mapping[str, Any]) -> Donor:
    """Whose snapshot it is, if this experiment may go on from it.

    :raises RestoreRefused: if not.
    """
    name, namespace, uid = (found.get(field) for field in ("name", "namespace", "uid"))
    named = isinstance(name, str) and names.is_experiment_name(name) and len(name) <= names.EXPERIMENT_NAME_LIMIT
    if not named or not isinstance(uid, str) or not _UID.fullmatch(uid):
        raise RestoreRefused("the snapshot does not say of which experiment it is")
    if namespace != experiment.namespace:
        raise RestoreRefused(
            f"the snapshot is of namespace {str(namespace)[:63]}, and checkpoints are read in their own namespace "
            f"only: create the experiment there"
        )
    if uid == experiment.uid:
        raise RestoreRefused("the snapshot is this very experiment's")
    return Donor(str(name), experiment.namespace, uid)


def rows(
    experiment: Experiment, donor: Donor, found: Sequence[Mapping[str, Any]], *, source: str, now: float
) -> list[Row]:
    """The trials to take over, by index; `source` is what people call the snapshot.

    :raises RestoreRefused: if a row is not what an operator writes.
    """
    taken: dict[int, Row] = {}
    for number, raw in enumerate(found):
        try:
            row = _row(experiment, donor, raw, source, now)
        except ValidationError as wrong:
            first = wrong.errors(include_url=False)[0]
            path = ".".join(map(str, first["loc"]))
            raise RestoreRefused(f"the snapshot's trial {number} cannot be read: {path}: {first['msg']}") from wrong
        index = row.spec.index
        if index in taken or index >= names.TRIALS_LIMIT:
            why = "stands twice" if index in taken else f"is beyond {names.TRIALS_LIMIT} trials"
            raise RestoreRefused(f"the snapshot's trial {index} {why}")
        taken[index] = row
    return [taken[index] for index in sorted(taken)]


def restored(donor: Donor, taken: Sequence[Row]) -> Restored:
    """What the experiment's status says of it once all of them are there."""
    return Restored(
        experiment=donor.name, uid=donor.uid, trials=len(taken), finished=sum(row.finished for row in taken)
    )


def _row(experiment: Experiment, donor: Donor, raw: Mapping[str, Any], source: str, now: float) -> Row:
    ours = {"experiment": experiment.name, "experimentUid": experiment.uid}
    spec = TrialSpec.model_validate({**(raw.get("spec") or {}), **ours})
    old = TrialStatus.model_validate(raw.get("status") or {})
    key = _inherited(donor, spec.index, old.checkpoint.key) if old.checkpoint else None
    checkpoint = old.checkpoint.model_copy(update={"key": key}) if old.checkpoint and key else None
    if old.phase in ledger.FINAL:
        ended = {
            "closed": old.attempt,
            "message": f"{TAKEN_OVER} {source}",
            "completion_time": old.completion_time or stamp(now),
        }
        status = old.model_copy(update={**ended, "checkpoint": checkpoint})
        # One without success may be given another try: then that begins under its own prefix, too.
        bases = None if old.phase == "Succeeded" else _bases(donor, spec, old)
        spec = spec.model_copy(update={"base": bases})
    else:
        kept = {field: getattr(old, field) for field in _OVER}
        if old.retried is not None:
            kept["retried"] = old.retried.model_copy(update={"attempt": 0})  # attempts are numbered anew
        status = TrialStatus().model_copy(update={**kept, "checkpoint": checkpoint})
        spec = spec.model_copy(update={"base": _bases(donor, spec, old)})
    return Row(spec, completed(status, 1, stamp(now)))


def _inherited(donor: Donor, index: int, key: str) -> str | None:
    """A checkpoint's key with the prefix in front, None if it is no key of this namespace."""
    own = contract.parse_manifest_key(key)
    if own is not None:
        return contract.inherited_key(donor.prefix(index), *own)
    known = contract.parse_inherited_key(key) is not None
    return key if known and key.startswith(f"{donor.namespace}/") else None


def _bases(donor: Donor, spec: TrialSpec, old: TrialStatus) -> list[str]:
    """Where to look for a checkpoint: under the donor's prefix, whatever is known of it, then where it has begun."""
    own = contract.parse_manifest_key(old.checkpoint.key) if old.checkpoint else None
    nearest = contract.inherited_key(donor.prefix(spec.index), *(own or (0, 0)))
    further = [known for key in spec.base or () if (known := _inherited(donor, spec.index, key)) is not None]
    return list(dict.fromkeys([nearest, *further]))[:BASES_LIMIT]
