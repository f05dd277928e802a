"""The Trial: one set of parameters, its attempts, and where it stands."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictInt

from trialkeeper import contract
from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import Condition
from trialkeeper_operator.api.resource import Model, Resource, StatusModel
from trialkeeper_operator.api.times import Time

BASES_LIMIT = 8  # restores of restores that are looked through for a checkpoint
SEEDS = 2**31
BaseKey = Annotated[str, Field(max_length=contract.KEY_LIMIT)]


def usual_seed(seed: int, index: int) -> int:
    """The seed that a trial's trainer gets in every attempt, from that of its experiment's search."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big") % SEEDS


class TrialSpec(Model):
    """Written by the operator; `desired` and `retries` belong to people.

    `retries` only grows: each step gives the trial, once it has failed or was stopped, one more try.

    `base`: for the first attempt of a trial that goes on where others ended, keys of checkpoints under their
    prefixes, the nearest first; the newest one under each of those prefixes is as good. `fork`: the key of the very
    checkpoint of another trial that it begins from. `enqueued`: which entry of the experiment's `enqueue` it is.
    """

    experiment: str = Field(max_length=40)
    experiment_uid: str = Field(max_length=64)
    index: int = Field(ge=0, le=1_000_000)
    name: str | None = Field(default=None, max_length=63)
    parameters: dict[str, Any] = Field(default_factory=dict, max_length=64)
    note: str | None = Field(default=None, max_length=256)
    seed: int = Field(default=0, ge=0, lt=2**53)
    base: list[BaseKey] | None = Field(default=None, max_length=BASES_LIMIT)
    enqueued: int | None = Field(default=None, ge=0, lt=1000)
    fork: BaseKey | None = None
    desired: Literal["Run", "Pause", "Stop"] = "Run"
    retries: StrictInt = Field(default=0, ge=0, le=1000)


EndingClass = Literal["Succeeded", "Preempted", "Lost", "Infrastructure", "Failed", "UserError", "Stopped"]
Uid = Annotated[str, Field(max_length=64)]


class RankEnding(StatusModel):
    """Why an attempt of several pods ends: what those that have ended come to so far."""

    rank: int = Field(ge=0)
    class_: EndingClass = Field(alias="class")
    reason: str = Field(default="", max_length=64)
    message: str = Field(default="", max_length=1024)
    exit_code: int | None = None
    node: str | None = Field(default=None, max_length=253)
    time: Time | None = Field(default=None, max_length=40)


class PodRecord(StatusModel):
    """The open attempt's pod, and what its trainer has stated so far.

    Of several pods this is rank 0's, and `others` are the uids of those after it; a uid is empty until it is known.
    `ended`: a pod has ended the attempt. From then on the others are deleted by us.
    """

    name: str = Field(max_length=63)
    uid: Uid
    others: list[Uid] | None = Field(default=None, max_length=names.NODES_LIMIT)
    start_time: Time = Field(max_length=40)
    first_report_time: Time | None = Field(default=None, max_length=40)
    from_iteration: int | None = Field(default=None, ge=0)
    ended: RankEnding | None = None

    @property
    def uids(self) -> list[str]:
        """By rank."""
        return [self.uid, *(self.others or ())]


class Intent(StatusModel):
    """What we mean to do to the open attempt's pod, recorded before it is done.

    `Restart` counts as a failure, `Reschedule` as a disruption, `Fail` ends the trial.
    """

    action: Literal["Stop", "Pause", "Restart", "Reschedule", "Fail"]
    reason: str = Field(max_length=64)
    message: str = Field(default="", max_length=1024)


class Placed(StatusModel):
    """Which of spec.placements the newest attempt has, and the disruptions that attempts have had there."""

    name: str = Field(max_length=63)
    disruptions: int = Field(default=0, ge=0)


class Retried(StatusModel):
    """The newest retry that a person asked for: budgets count from here. The rest is what had been counted by then."""

    number: int = Field(ge=1)
    attempt: int = Field(default=0, ge=0)
    failures: int = Field(default=0, ge=0)
    disruptions: int = Field(default=0, ge=0)


class MetricStatus(StatusModel):
    """One metric over the visible history."""

    last: float
    min: float
    max: float


class CheckpointStatus(StatusModel):
    """The newest committed checkpoint that has been heard of."""

    attempt: int = Field(ge=0)
    iteration: int = Field(ge=0)
    key: str = Field(max_length=256)
    time: Time = Field(max_length=40)


class Base(StatusModel):
    """The checkpoint that the newest attempt began from; iteration 0 is none."""

    attempt: int = Field(ge=0)
    iteration: int = Field(ge=0)


class LostWork(StatusModel):
    """What disruptions and failures cost: iterations and seconds run again, and seconds until work went on."""

    iterations: int = 0
    seconds: float = 0.0
    restart_seconds: float = 0.0


class AttemptRecord(StatusModel):
    """A closed attempt, for people. What its end cost is booked when a later one has begun: see `LostWork`.

    `rank`: of several pods the one that `exitCode` and `node` are of, whose ending was the attempt's.
    """

    attempt: int = Field(ge=1)
    class_: EndingClass = Field(alias="class")
    reason: str = Field(default="", max_length=64)
    message: str = Field(default="", max_length=1024)
    rank: int | None = Field(default=None, ge=0)
    exit_code: int | None = None
    node: str | None = Field(default=None, max_length=253)
    start_time: Time = Field(max_length=40)
    end_time: Time = Field(max_length=40)
    first_report_time: Time | None = Field(default=None, max_length=40)
    from_iteration: int | None = Field(default=None, ge=0)
    to_iteration: int = Field(default=0, ge=0)
    lost_iterations: int = Field(default=0, ge=0)
    lost_seconds: float = Field(default=0.0, ge=0)
    restart_seconds: float = Field(default=0.0, ge=0)


Phase = Literal["Pending", "Running", "Waiting", "Paused", "Succeeded", "Failed", "Stopped"]


class TrialStatus(StatusModel):
    """Written by the operator alone. `attempt` is the newest opened one, `closed` the newest whose ending is here.

    `running_seconds` are those of all closed attempts, each from its first report to its end, lost work included.
    `goodput`: which part of the time was progress, of 1; the rest was done again, or spent on restarts.
    `resumed_time`: when it went on after a rest that somebody wanted; no time before that is lost.
    """

    observed_generation: int | None = None
    phase: Phase = "Pending"
    reason: str = Field(default="", max_length=64)
    message: str = Field(default="", max_length=2048)
    attempt: int = Field(default=0, ge=0)
    closed: int = Field(default=0, ge=0)
    pod: PodRecord | None = None
    intent: Intent | None = None
    next_attempt_time: Time | None = Field(default=None, max_length=40)
    failures: int = Field(default=0, ge=0)
    disruptions: int = Field(default=0, ge=0)
    placement: Placed | None = None
    retried: Retried | None = None
    resumed_time: Time | None = Field(default=None, max_length=40)
    without_progress: int = Field(default=0, ge=0)
    short_attempts: int = Field(default=0, ge=0)
    save_interval: float | None = Field(default=None, ge=0)
    iteration: int = Field(default=0, ge=0)
    trained_seconds: float = 0.0
    running_seconds: float = Field(default=0.0, ge=0)
    metrics: dict[str, MetricStatus] = Field(default_factory=dict, max_length=64)
    checkpoint: CheckpointStatus | None = None
    base: Base | None = None
    lost_work: LostWork = LostWork()
    goodput: float | None = None
    history: list[AttemptRecord] = Field(default_factory=list, max_length=10)
    start_time: Time | None = Field(default=None, max_length=40)
    completion_time: Time | None = Field(default=None, max_length=40)
    conditions: list[Condition] = Field(default_factory=list, max_length=16)


class Trial(Resource):
    """One set of parameters of an Experiment."""

    kind_name: ClassVar[str] = names.TRIAL

    spec: TrialSpec
    status: TrialStatus = TrialStatus()
