"""The same error again and again before anything was reported: what another trial would end with, too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from trialkeeper_operator.api import names
from trialkeeper_operator.api.trial import AttemptRecord, Trial
from trialkeeper_operator.decide import endings, ledger
from trialkeeper_operator.decide.waiting import Waiting

# `type: words (at file:line function < ...)`, as the SDK writes an exception: the words may name parameters.
_EXCEPTION = re.compile(r"(?P<type>[\w.]+): .*(?P<where> \(at .*)", re.DOTALL)
_RANK = re.compile(r"\A(rank \d+: )+")


def repeated(trials: Sequence[Trial], limit: int) -> Waiting | None:
    """Why no further attempt is made, if `limit` trials ended alike and none has ever reported; 0 is no limit.

    Too little memory is left out: that depends on a trial's parameters.
    """
    if not limit or any(ledger.has_ever_reported(t.status) for t in trials):
        return None
    last = {t.name: t.status.history[-1] for t in trials if t.status.history}
    alike = {name: key for name, record in last.items() if (key := _error(record)) is not None}
    for key, count in Counter(alike.values()).most_common(1):
        if count >= limit:
            name = next(name for name, found in alike.items() if found == key)
            said = f"{count} trials ended alike before any had reported, {name} with: {last[name].message}"
            return Waiting(names.REPEATED_ERROR, said[:1024])
    return None


def _error(record: AttemptRecord) -> tuple[str, ...] | None:
    """What two endings have in common if they are of one kind; None for what is no error of the trainer's."""
    if record.class_ == endings.USER_ERROR and record.reason not in endings.MEMORY:
        return (record.reason,)
    if record.class_ != endings.FAILED or record.reason in endings.MEMORY:
        return None
    said = _RANK.sub("", record.message)
    found = _EXCEPTION.fullmatch(said)
    return (record.reason, found["type"], found["where"]) if found else (record.reason, said)
