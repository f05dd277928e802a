"""The Trial: one set of parameters, its attempts, and where it stands."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trialkeeper import contract
from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import Condition
from trialkeeper_operator.api.resource import Model, Resource, StatusModel
from trialkeeper_operator.api.times import Time

BASES_LIMIT = 8  # restores of restores that are looked through for a checkpoint
BaseKey = Annotated[str, Field(max_length=contract.KEY_LIMIT)]


class TrialSpec(Model):
    """Written by the operator; `desired` belongs to people.

    `base`: for the first attempt of a trial that goes on where others ended, keys of checkpoints under their
    prefixes, the nearest first; the newest one under each of those prefixes is as good.
    """

    experiment: str = Field(max_length=40)
    experiment_uid: str = Field(max_length=64)
    index: int = Field(ge=0, le=1_000_000)
    name: str | None = Field(default=None, max_length=63)
    parameters: dict[str, Any] = Field(default_factory=dict, max_length=64)
    note: str | None = Field(default=None, max_length=256)
    seed: int = Field(default=0, ge=0, lt=2**53)
    base: list[BaseKey] | None = Field(default=None, max_length=BASES_LIMIT)
    desired: Literal["Run", "Pause", "Stop"] = "Run"


class PodRecord(StatusModel):
    """The open attempt's pod, and what its trainer has stated so far."""

    name: str = Field(max_length=63)
    uid: str = Field(max_length=64)
    start_time: Time = Field(max_length=40)
    first_report_time: Time | None = Field(default=None, max_length=40)
    from_iteration: int | None = Field(default=None, ge=0)


class Intent(StatusModel):
    """What we mean to do to the open attempt's pod, recorded before it is done."""

    action: Literal["Stop", "Pause", "Restart"]
    reason: str = Field(max_length=64)
    message: str = Field(default="", max_length=1024)


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
    """A closed attempt, for people."""

    attempt: int = Field(ge=1)
    class_: Literal["Succeeded", "Preempted", "Lost", "Infrastructure", "Failed", "UserError", "Stopped"] = Field(
        alias="class"
    )
    reason: str = Field(default="", max_length=64)
    message: str = Field(default="", max_length=1024)
    exit_code: int | None = None
    node: str | None = Field(default=None, max_length=253)
    start_time: Time = Field(max_length=40)
    end_time: Time = Field(max_length=40)
    first_report_time: Time | None = Field(default=None, max_length=40)
    from_iteration: int | None = Field(default=None, ge=0)
    to_iteration: int = Field(default=0, ge=0)
    lost_iterations: int = Field(default=0, ge=0)


Phase = Literal["Pending", "Running", "Waiting", "Paused", "Succeeded", "Failed", "Stopped"]


class TrialStatus(StatusModel):
    """Written by the operator alone. `attempt` is the newest opened one, `closed` the newest whose ending is here.

    `running_seconds` are those of all closed attempts, each from its first report to its end, lost work included.
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
    history: list[AttemptRecord] = Field(default_factory=list, max_length=10)
    start_time: Time | None = Field(default=None, max_length=40)
    completion_time: Time | None = Field(default=None, max_length=40)
    conditions: list[Condition] = Field(default_factory=list, max_length=16)


class Trial(Resource):
    """One set of parameters of an Experiment."""

    kind_name: ClassVar[str] = names.TRIAL

    spec: TrialSpec
    status: TrialStatus = TrialStatus()
