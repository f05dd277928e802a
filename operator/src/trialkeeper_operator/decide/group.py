"""The pods of one attempt, one for each rank: all of them, or none.

A training over several pods stands still when one of them is missing, so the first that ends ends the attempt, and the
others are deleted. What the attempt's end was is judged over all of them, and not by who was first: when a node is
lost, the others' trainers fail of broken connections long before anybody knows of the node. With one pod all of this
comes to that pod's own ending.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trialkeeper import contract
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.api.trial import PodRecord, RankEnding
from trialkeeper_operator.decide import evidence
from trialkeeper_operator.decide.endings import (
    DISRUPTED,
    FAILED,
    INFRASTRUCTURE,
    LOST,
    PREEMPTED,
    STOPPED,
    SUCCEEDED,
    USER_ERROR,
    Ending,
)

Pod = Mapping[str, Any]


@dataclass(frozen=True)
class Rank:
    """The pod of one rank. `uid`: as recorded, empty before; `pod`: as it is, None if it is not there.

    `last`: the last that was seen of it. `silent`: why nobody will end it, in one sentence.
    """

    number: int
    name: str
    uid: str
    pod: Pod | None
    last: Pod | None = None
    silent: str = ""

    @property
    def gone(self) -> bool:
        """Whether it was there and is not any more, as far as is known."""
        return bool(self.uid) and self.pod is None

    @property
    def unmade(self) -> bool:
        """Whether it has not been there, as far as is known."""
        return not self.uid and self.pod is None

    @property
    def leaving(self) -> bool:
        return self.pod is not None and bool(self.pod["metadata"].get("deletionTimestamp"))

    def over(self, container: str) -> bool:
        """Whether its part is over: it has ended, is gone, or will never be ended by anybody."""
        return self.gone or bool(self.silent) or (self.pod is not None and evidence.ended(self.pod, container))


def ranks(
    names: Sequence[str],
    record: PodRecord,
    pods: Mapping[str, Pod],
    last: Mapping[str, Pod],
    silence: Callable[[Pod], str],
) -> list[Rank]:
    """The pods of an attempt by rank: what is recorded of them, and what is there under their names."""
    found = []
    for number, (name, uid) in enumerate(zip(names, record.uids, strict=False)):
        there = pods.get(name)
        pod = there if there is not None and there["metadata"]["uid"] == uid else None
        found.append(Rank(number, name, uid, pod, last.get(name), silence(pod) if pod is not None else ""))
    return found


Judge = Callable[[Rank, Pod | None], Ending]  # why the pod of a rank has ended, by its last known state


def verdict(found: Sequence[Rank], ended: RankEnding | None, container: str, judge: Judge) -> Ending | None:
    """What an attempt's end comes to by what has ended of it, None as long as that is no reason for it to end.

    `ended` is what has been recorded of it before: since then we have deleted what was left.
    """
    judged = [(rank, judge(rank, _state(rank, ended))) for rank in found if rank.over(container)]
    if len(found) == 1:
        return judged[0][1] if judged else None
    said = next((ending.said for rank, ending in judged if rank.number == 0), None)
    if ended is not None and ended.class_ == SUCCEEDED:
        return replace(_recorded(ended), said=said)
    # Another rank that is through with its work waits for rank 0, whose last save may take longer.
    ways = [(rank, e) for rank, e in judged if rank.number == 0 or e.class_ != SUCCEEDED]
    if ended is not None:
        ways = [(rank, e) for rank, e in ways if not _deleted(rank) or not _follows(e)]
    elif ways:
        # What somebody has deleted by now was disrupted; later on it could not be told from what we delete.
        ways += [(rank, judge(rank, rank.pod)) for rank in found if rank.leaving and not rank.over(container)]
    known = [*([_recorded(ended)] if ended is not None else []), *(_of_rank(rank, ending) for rank, ending in ways)]
    return replace(min(known, key=_place), said=said) if known else None


SETTLING = 5.0  # seconds for the others' own ends to be seen before they are deleted


def settling(ending: Ending, now: float) -> float:
    """Seconds for which others are left alone after a pod's end: what that was may be known only by theirs.

    A trainer that misses another fails at once, while the end of the other's pod has yet to be told; and who is through
    need not be deleted. A disruption needs no other reason. A time that is ahead is another clock's.
    """
    known = ending.class_ in DISRUPTED and ending.reason != "Rescheduled"
    ended_at = None if known else _moment(ending)
    left = ended_at + SETTLING - now if ended_at is not None else 0.0
    return left if 0 < left <= SETTLING else 0.0


def _moment(ending: Ending) -> float | None:
    """When it was, None if nobody says, or what is said is no time."""
    try:
        return seconds((ending.time or "")[:40])
    except (ValueError, OverflowError):
        return None


def record(ending: Ending) -> RankEnding:
    """An ending as a status keeps it until all pods have ended."""
    return RankEnding(
        rank=ending.rank or 0,
        class_=ending.class_,
        reason=ending.reason,
        message=ending.message,
        exit_code=ending.exit_code,
        node=ending.node,
        time=ending.time if _moment(ending) is not None else None,
    )


def _recorded(ended: RankEnding) -> Ending:
    where = {"exit_code": ended.exit_code, "time": ended.time, "node": ended.node, "rank": ended.rank}
    return Ending(ended.class_, ended.reason, ended.message, **where)  # type: ignore[arg-type]


def _state(rank: Rank, ended: RankEnding | None) -> Pod | None:
    """The last known state of a pod, as if it had not been deleted if that was our doing."""
    state = rank.last if rank.gone else rank.pod
    if state is None or ended is None:
        return state
    return {**state, "metadata": {k: v for k, v in state["metadata"].items() if k != "deletionTimestamp"}}


def _deleted(rank: Rank) -> bool:
    return rank.gone or rank.leaving


_VAGUE = frozenset({"Killed", "PodGone", "Unknown"})  # which others' trouble may come to as well
_PLAIN = frozenset({"ExitCode", "Signal", "Incomplete"})
_FOLLOWING = _VAGUE | _PLAIN | {"Rescheduled", "CannotStart", "NoObjective", "Completed"}


def _follows(ending: Ending) -> bool:
    """Whether an ending is what a deletion comes to; what evidence or the trainer says besides is none."""
    return ending.reason in _FOLLOWING and not _complete(ending)


def _complete(ending: Ending) -> bool:
    return ending.said is not None and ending.said.end == contract.END_COMPLETE


# Of several endings the first that one of these holds for is the attempt's; of equals the one that was known first,
# then the lowest rank's. A node that does not answer comes first: what may still run there must not be waited for.
_ORDER: tuple[Callable[[Ending], bool], ...] = (
    _complete,
    lambda e: e.class_ == STOPPED,
    lambda e: e.class_ == LOST and e.reason == "NodeLost",
    lambda e: e.class_ in (PREEMPTED, LOST) and e.reason not in _VAGUE | {"Rescheduled"},
    lambda e: e.class_ == INFRASTRUCTURE and e.reason not in _VAGUE,
    lambda e: e.class_ in DISRUPTED and e.reason in _VAGUE,
    lambda e: e.class_ == USER_ERROR,
    lambda e: e.class_ == FAILED and e.reason not in _PLAIN,
    lambda e: e.class_ == FAILED,
    lambda e: e.class_ != SUCCEEDED,  # it has saved and left: perhaps since another has failed
    lambda e: True,
)


def _place(ending: Ending) -> int:
    return next(place for place, holds in enumerate(_ORDER) if holds(ending))


def _of_rank(rank: Rank, ending: Ending) -> Ending:
    if ending.class_ in (SUCCEEDED, STOPPED):
        return replace(ending, rank=rank.number)
    return replace(ending, rank=rank.number, message=f"rank {rank.number}: {ending.message}"[:1024])
