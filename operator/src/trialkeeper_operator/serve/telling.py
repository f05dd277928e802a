"""Telling people and metrics what has happened: Events for milestones, counts for everything.

Events are posted beside the reconcilers, never by them, and are dropped when the API server is too slow: they are
for people's eyes, and nothing depends on one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.api.trial import Trial, TrialStatus
from trialkeeper_operator.decide import endings, milestones
from trialkeeper_operator.decide.milestones import Milestone
from trialkeeper_operator.reconcile.ports import AlreadyExists, Cluster, ClusterError, Object
from trialkeeper_operator.serve.metrics import Metrics

if TYPE_CHECKING:
    from trialkeeper_operator.reconcile.world import Observer

log = logging.getLogger(__name__)

WAITING = 1000  # Events that may wait to be posted


class Telling:
    """Hears every stored status. `run` posts what is to be posted."""

    def __init__(self, cluster: Cluster, metrics: Metrics, now: Callable[[], float]) -> None:
        self._cluster, self._metrics, self._now = cluster, metrics, now
        self._events: asyncio.Queue[Object] = asyncio.Queue(WAITING)

    async def run(self) -> None:
        """Post Events until cancelled."""
        while True:
            event = await self._events.get()
            try:
                await self._cluster.create(event)
            except AlreadyExists:
                pass  # told by somebody with the same eyes, or what an attempt tells once
            except ClusterError as error:
                log.debug("an Event was not posted: %s", error)

    def stored(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        try:
            told = self._trial(old, new) if new["kind"] == names.TRIAL else self._experiment(old, new)
        except ValueError:
            return  # somebody else's status, in which there is nothing to read
        for milestone in told:
            self._tell(new, milestone)

    def kept(self, uid: str, size: int) -> None:
        self._metrics.snapshot_bytes.set(size)
        self._metrics.snapshot_time.set(self._now())

    def _trial(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Milestone]:
        before, after = Trial.from_object(old).status, Trial.from_object(new).status
        if old.get("status"):  # what a trial was taken over with has been counted elsewhere
            self._count(before, after)
        return milestones.of_trial(before, after)

    def _experiment(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Milestone]:
        return milestones.of_experiment(Experiment.from_object(old).status, Experiment.from_object(new).status)

    def _count(self, old: TrialStatus, new: TrialStatus) -> None:
        metrics = self._metrics
        if new.closed > old.closed and new.history:
            metrics.attempts.labels(new.history[-1].class_).inc()
        if new.pod is not None and (old.pod is None or old.pod.uid != new.pod.uid) and new.history:
            last = new.history[-1]
            if last.class_ in endings.DISRUPTED:
                metrics.replaced.observe(max(0.0, seconds(new.pod.start_time) - seconds(last.end_time)))
        metrics.work_seconds.inc(max(0.0, new.trained_seconds - old.trained_seconds))
        metrics.lost_iterations.inc(max(0, new.lost_work.iterations - old.lost_work.iterations))
        metrics.lost_seconds.inc(max(0.0, new.lost_work.seconds - old.lost_work.seconds))
        metrics.restart_seconds.inc(max(0.0, new.lost_work.restart_seconds - old.lost_work.restart_seconds))

    def _tell(self, about: Mapping[str, Any], milestone: Milestone) -> None:
        if self._events.full():
            return
        self._events.put_nowait(_event(about, milestone, stamp(self._now())))


def _event(about: Mapping[str, Any], milestone: Milestone, time: str) -> Object:
    """A v1 Event. Its name is made of what is told once: a part of an attempt's story, or else the very words.

    So the API server refuses a second one, whoever posts it: an operator that begins anew, or another leader.
    """
    meta, attempt = about["metadata"], milestone.attempt
    once = f"{attempt}/{milestone.part}" if attempt else f"{milestone.reason}\n{milestone.message}"
    digest = hashlib.sha256(f"{meta['uid']}\n{once}".encode()).hexdigest()[:16]
    labels = {"labels": {names.LABEL_ATTEMPT: str(attempt)}} if attempt else {}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name']}.{digest}", "namespace": meta["namespace"]} | labels,
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": about["kind"],
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
            "resourceVersion": meta.get("resourceVersion", ""),
        },
        "type": milestone.type,
        "reason": milestone.reason[:128],
        "message": milestone.message[:1024],
        "source": {"component": names.MANAGED_BY},
        "reportingComponent": f"{names.GROUP}/operator",
        "reportingInstance": "",
        "firstTimestamp": time.split(".")[0].rstrip("Z") + "Z",
        "lastTimestamp": time.split(".")[0].rstrip("Z") + "Z",
        "count": 1,
    }


if TYPE_CHECKING:

    def _observer(telling: Telling) -> Observer:
        return telling
