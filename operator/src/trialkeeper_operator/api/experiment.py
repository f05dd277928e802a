"""The Experiment: what to train, what to vary, what to optimise, and how to treat what goes wrong."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr

from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import Condition
from trialkeeper_operator.api.parameters import Parameter, Scalar
from trialkeeper_operator.api.resource import Model, Resource, StatusModel
from trialkeeper_operator.api.times import Time
from trialkeeper_operator.api.trial import LostWork


class Objective(Model):
    """A metric to optimise. `value`: the last one reported, or the best of the visible history."""

    metric: StrictStr = Field(min_length=1, max_length=256)
    direction: Literal["Minimize", "Maximize"] = "Minimize"
    value: Literal["Last", "Best"] = "Last"
    target: float | None = None


YEARS = 10 * 365 * 86_400  # seconds: a clock can count on so far


class Search(Model):
    """Who suggests parameters. The algorithm is an open set: an unknown one is refused by name."""

    algorithm: StrictStr = Field(default="Random", min_length=1, max_length=32)
    seed: StrictInt = Field(default=0, ge=0, lt=2**53)
    settings: dict[str, Scalar] = Field(default={}, max_length=32)


class EnqueuedBase(Model):
    """A checkpoint of a Trial in the same namespace: of one iteration, or the newest when it is the entry's turn."""

    trial: StrictStr = Field(min_length=1, max_length=63, pattern=names.LABEL)
    iteration: StrictInt | None = Field(default=None, ge=1, lt=10**12)


class Enqueued(Model):
    """A trial to make before the search is asked: parameters to try, a checkpoint to begin from, or both.

    What is missing among the parameters comes from the base's trial, else from the search.
    """

    name: StrictStr | None = Field(default=None, min_length=1, max_length=63)
    parameters: dict[str, Scalar] = Field(default={}, max_length=64)
    base: EnqueuedBase | None = None


class Threshold(Model):
    """Good enough: below, or above, a number."""

    below: float | None = None
    above: float | None = None


class Plateau(Model):
    """No more movement: the last `results` values of a metric deviate by at most `tolerance` from their mean."""

    metric: StrictStr | None = Field(default=None, min_length=1, max_length=256)
    results: StrictInt = Field(default=4, ge=2, le=1000)
    tolerance: float = Field(default=0.01, ge=0)
    grace: StrictInt = Field(default=4, ge=0)


class Stop(Model):
    """When a trial is done although its trainer would go on; judged in the trainer, the first that holds."""

    max_iterations: StrictInt | None = Field(default=None, ge=1)
    metrics: dict[str, Threshold] | None = Field(default=None, max_length=16)
    timeout_seconds: float | None = Field(default=None, gt=0, le=YEARS)
    plateau: Plateau | None = None


Milestone = Annotated[StrictInt, Field(ge=1, lt=2**53)]


class CheckpointPolicy(Model):
    """When a `save` function is called: every n iterations, every s seconds; both absent is Auto, 0 is off.

    At milestones it always is. `onBusy`: what becomes of a save while two are on their way. Of each trial the best
    `numToKeep` checkpoints stay (absent: all), and of all trials together as many as fit into `budget`.
    """

    frequency: StrictInt | None = Field(default=None, ge=0)
    interval_seconds: float | None = Field(default=None, ge=0, le=YEARS)
    at_end: StrictBool = True
    milestones: list[Milestone] | None = Field(default=None, max_length=1000)
    on_busy: Literal["Latest", "Wait", "Skip"] = "Latest"
    num_to_keep: StrictInt | None = Field(default=None, ge=0, le=10_000)
    score_attribute: StrictStr | None = Field(default=None, min_length=1, max_length=256)
    score_order: Literal["Max", "Min"] | None = None
    budget: StrictStr | None = Field(default=None, max_length=32, pattern=names.QUANTITY)


class ExitCodes(Model):
    """Exit codes other than 0 of one container or init container; absent: the trainer's."""

    container_name: StrictStr | None = Field(default=None, min_length=1, max_length=63)
    operator: Literal["In", "NotIn"]
    values: list[Annotated[StrictInt, Field(ge=1, le=255)]] = Field(min_length=1, max_length=255)


class PodCondition(Model):
    """A condition that a pod may have."""

    type: StrictStr = Field(min_length=1, max_length=316)
    status: Literal["True", "False", "Unknown"] = "True"


class FailureRule(Model):
    """What an ending is to be, whatever the evidence says; the shape is that of a Job's podFailurePolicy.

    `onPodConditions` holds if any of them does.
    """

    action: Literal["Ignore", "Count", "FailTrial", "FailExperiment"]
    on_exit_codes: ExitCodes | None = None
    on_pod_conditions: list[PodCondition] | None = Field(default=None, min_length=1, max_length=20)


class FailurePolicy(Model):
    """Budgets of a trial, each for a class of endings, and of the experiment; the first rule that holds decides.

    `maxRepeatedErrors`: when so many trials ended alike and none has ever reported, the rest is not tried; 0 is off.
    """

    max_failures: StrictInt = Field(default=3, ge=0, le=100)
    max_disruptions: StrictInt = Field(default=1000, ge=0, le=10_000)
    max_without_progress: StrictInt = Field(default=6, ge=1, le=100)
    max_repeated_errors: StrictInt = Field(default=3, ge=0, le=10_000)
    max_failed_trials: StrictInt | None = Field(default=None, ge=0, le=10_000)
    backoff_seconds: float = Field(default=10.0, ge=0, le=600)
    rules: list[FailureRule] | None = Field(default=None, max_length=20)


class Timeouts(Model):
    """Watchdogs in seconds, 0 is off; and the grace between SIGTERM and SIGKILL.

    `schedulingSeconds`: so long a pod may find no node before the next placement has its turn.
    """

    scheduling_seconds: float = Field(default=0.0, ge=0, le=YEARS)
    start_seconds: float = Field(default=600.0, ge=0, le=YEARS)
    first_report_seconds: float = Field(default=0.0, ge=0, le=YEARS)
    progress_seconds: float = Field(default=0.0, ge=0, le=YEARS)
    node_lost_seconds: float = Field(default=60.0, ge=0, le=YEARS)
    grace_seconds: StrictInt = Field(default=30, ge=1, le=3600)


class Placement(Model):
    """Where attempts run until it is the next one's turn: after so many disruptions, or for want of room."""

    name: StrictStr = Field(min_length=1, max_length=63, pattern=names.LABEL)
    max_disruptions: StrictInt | None = Field(default=None, ge=1, le=10_000)
    node_selector: dict[str, StrictStr] | None = Field(default=None, max_length=16)
    tolerations: list[dict[str, Any]] | None = Field(default=None, max_length=16)


class RestoreFrom(Model):
    """The snapshot to go on from: its ConfigMap in the same namespace."""

    config_map: StrictStr = Field(min_length=1, max_length=names.OBJECT_NAME_LIMIT, pattern=names.OBJECT_NAME)


class S3Storage(Model):
    """A bucket of one's own. The Secret has access-key and secret-key, the ConfigMap ca.crt; both in the namespace."""

    bucket: StrictStr = Field(min_length=3, max_length=63, pattern=names.BUCKET)
    endpoint: StrictStr | None = Field(default=None, max_length=512, pattern=names.ENDPOINT)
    region: StrictStr = Field(default="us-east-1", min_length=1, max_length=64)
    secret_name: StrictStr | None = Field(
        default=None, min_length=1, max_length=names.OBJECT_NAME_LIMIT, pattern=names.OBJECT_NAME
    )
    ca_config_map: StrictStr | None = Field(
        default=None, min_length=1, max_length=names.OBJECT_NAME_LIMIT, pattern=names.OBJECT_NAME
    )


class VolumeStorage(Model):
    """A volume that every pod mounts at `path`: its claim must let several nodes write if there are several."""

    claim_name: StrictStr = Field(min_length=1, max_length=names.OBJECT_NAME_LIMIT, pattern=names.OBJECT_NAME)
    path: StrictStr = Field(default="/checkpoints", min_length=2, max_length=512, pattern=names.FOLDER)


class Storage(Model):
    """Where checkpoints and results go, instead of the installation's store: exactly one of the two."""

    s3: S3Storage | None = None
    volume: VolumeStorage | None = None


class DeletionPolicy(Model):
    """What becomes of things when the Experiment is deleted."""

    checkpoints: Literal["Keep", "Delete"] = "Keep"
    snapshot: Literal["Keep", "Delete"] = "Keep"


class Variable(Model):
    """A variable of a container; `valueFrom` is passed on as it is."""

    model_config = ConfigDict(extra="allow")

    name: StrictStr = Field(min_length=1, max_length=256)
    value: StrictStr | None = None


class Container(Model):
    """The part of a container that we look at; the rest is passed on as it is."""

    model_config = ConfigDict(extra="allow")

    name: StrictStr = Field(min_length=1, max_length=63, pattern=names.LABEL)
    image: StrictStr = Field(min_length=1, max_length=512)
    command: list[StrictStr] | None = Field(default=None, max_length=1000)
    args: list[StrictStr] | None = Field(default=None, max_length=1000)
    env: list[Variable] | None = Field(default=None, max_length=1000)
    working_dir: StrictStr | None = Field(default=None, max_length=4096)


class PodSpec(Model):
    """The part of a pod's spec that we look at; the rest is passed on as it is."""

    model_config = ConfigDict(extra="allow")

    containers: list[Container] = Field(min_length=1, max_length=16)
    restart_policy: Literal["Never"] = "Never"
    termination_grace_period_seconds: StrictInt | None = Field(default=None, ge=0, le=YEARS)
    active_deadline_seconds: StrictInt | None = Field(default=None, ge=1, le=YEARS)


class TemplateMetadata(Model):
    """Labels and annotations of each pod."""

    labels: dict[str, StrictStr] | None = Field(default=None, max_length=64)
    annotations: dict[str, StrictStr] | None = Field(default=None, max_length=64)


class PodTemplate(Model):
    """The pod of an attempt, before we add our variables and labels."""

    metadata: TemplateMetadata | None = None
    spec: PodSpec


class ExperimentSpec(Model):
    """What people write. `nodes`: the pods of each attempt, which come and go together."""

    objectives: list[Objective] = Field(min_length=1, max_length=4)
    parameters: list[Parameter] = Field(min_length=1, max_length=64)
    search: Search = Search()
    enqueue: list[Enqueued] | None = Field(default=None, max_length=1000)
    max_trials: StrictInt | None = Field(default=None, ge=1, le=10_000)
    parallelism: StrictInt = Field(default=1, ge=0, le=3000)
    suspend: StrictBool = False
    stop: Stop | None = None
    on_non_finite: Literal["Stop", "Continue"] = "Stop"
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    failure_policy: FailurePolicy = FailurePolicy()
    timeouts: Timeouts = Timeouts()
    placements: list[Placement] | None = Field(default=None, min_length=1, max_length=4)
    storage: Storage | None = None
    restore_from: RestoreFrom | None = None
    deletion_policy: DeletionPolicy = DeletionPolicy()
    trainer_container: StrictStr | None = Field(default=None, min_length=1, max_length=63)
    nodes: StrictInt = Field(default=1, ge=1, le=names.NODES_LIMIT)
    template: PodTemplate

    @property
    def container_name(self) -> str:
        """The container that is the trainer."""
        return self.trainer_container or self.template.spec.containers[0].name


class Best(StatusModel):
    """The trial with the best first objective so far."""

    trial: str = Field(max_length=63)
    parameters: dict[str, Any] = Field(default_factory=dict)
    value: float
    values: list[float] | None = Field(default=None, max_length=4)
    iteration: int = 0
    checkpoint: str | None = Field(default=None, max_length=256)


class Restored(StatusModel):
    """Whose trials were taken over from a snapshot, how many, and how many of them were over already."""

    experiment: str = Field(max_length=40)
    uid: str = Field(max_length=64)
    trials: int = Field(ge=0)
    finished: int = Field(ge=0)


class ExperimentStatus(StatusModel):
    """Written by the operator alone: counts and sums over the trials, never lists of names.

    `enqueued`: entries of spec.enqueue that have had their turn; `passed_over`: those that could not become trials.
    """

    observed_generation: int | None = None
    phase: str | None = Field(default=None, max_length=32)
    template_hash: str | None = Field(default=None, max_length=64)
    restored: Restored | None = None
    trials: int = 0
    enqueued: int = Field(default=0, ge=0)
    passed_over: int = Field(default=0, ge=0)
    active: int = 0
    finished: int = 0
    counts: dict[str, int] = Field(default_factory=dict, max_length=16)
    best: Best | None = None
    disruptions: int = 0
    failures: int = 0
    lost_work: LostWork = LostWork()
    goodput: float | None = None
    start_time: Time | None = Field(default=None, max_length=40)
    completion_time: Time | None = Field(default=None, max_length=40)
    conditions: list[Condition] = Field(default_factory=list, max_length=16)


class Experiment(Resource):
    """An experiment of checkpointed trials."""

    kind_name: ClassVar[str] = names.EXPERIMENT

    spec: ExperimentSpec
    status: ExperimentStatus = ExperimentStatus()
