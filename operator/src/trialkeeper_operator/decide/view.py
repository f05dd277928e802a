"""What is known about one trial, and what can be done about it: the words of a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from trialkeeper.contract import PRIOR_MTBF_SECONDS, Message
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial, TrialStatus
from trialkeeper_operator.decide.pods import Site

Object = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """What is known about one trial.

    `pods` are those whose controller is this very Trial, by name. `last` is the last state seen of the
    open attempt's pods whose deletion has been watched. `gone`: a live read has just said of the open
    attempt's pods that are not there that they do not exist. `report`: the newest live report and when it was received;
    `watched`: since when reports have been received at all. `silent`: pods whose node does not
    answer, or is gone; those are asked about that are being deleted, or that we are about to end.
    """

    experiment: Experiment
    trial: Trial
    pods: Mapping[str, Object]
    report: Message | None = None
    report_time: float | None = None
    watched: float = 0.0
    last: Mapping[str, Object] = field(default_factory=dict)
    gone: bool = False
    site: Site | None = None  # the cluster that pods are for, None: this machine
    mtbf: float = PRIOR_MTBF_SECONDS  # seconds between disruptions of a pod of this experiment
    started: bool = False  # whether a pod of this experiment is known to have been started
    held: Collection[int] = ()  # iterations that forks of this trial are about to begin from
    silent: Collection[str] = ()

    @property
    def container(self) -> str:
        """The trainer's."""
        return self.experiment.spec.container_name


@dataclass(frozen=True)
class CreatePod:
    """Create a pod of the open attempt; that its name is taken by ours is as good."""

    body: dict[str, Any]


@dataclass(frozen=True)
class CreateService:
    """Create the Service by which the pods of an attempt find each other; that ours is there is as good."""

    body: dict[str, Any]


@dataclass(frozen=True)
class DeleteService:
    """Delete the trial's Service, if there is one."""


@dataclass(frozen=True)
class DeletePod:
    """Delete this very pod (uid); `grace` None leaves it the grace that it has.

    `version`: the pod as it was judged by. One that has changed since may have ended by itself, and its last words
    would go with it; None where they are not wanted any more.
    """

    name: str
    uid: str
    grace: int | None = None
    version: str | None = None


@dataclass(frozen=True)
class ConfirmAbsence:
    """Read the pod live: the cache's silence proves nothing."""

    name: str


Action = CreatePod | CreateService | DeletePod | DeleteService | ConfirmAbsence


@dataclass(frozen=True)
class Plan:
    """`status` to store first (None: it stands), then `actions` in order; look again after `after` seconds."""

    status: TrialStatus | None = None
    actions: tuple[Action, ...] = ()
    after: float | None = None
