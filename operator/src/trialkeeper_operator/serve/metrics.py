"""Prometheus metrics. No label carries a name of an experiment or a trial: there may be ten thousand."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0)
_REPLACED = (0.1, 0.3, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0)


class Metrics:
    """All metrics of one process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.reconciles = Histogram(
            "trialkeeper_reconcile_seconds", "Time of one pass.", ["kind"], buckets=_SECONDS, registry=r
        )
        self.failed = Counter("trialkeeper_reconcile_failures", "Passes that failed.", ["kind"], registry=r)
        self.depth = Gauge("trialkeeper_queue_depth", "Keys that wait for a pass.", registry=r)
        self.age = Gauge("trialkeeper_queue_oldest_seconds", "How long the oldest key has waited.", registry=r)
        self.requests = Counter(
            "trialkeeper_api_requests", "Requests to the API server.", ["verb", "kind", "code"], registry=r
        )
        self.attempts = Counter("trialkeeper_attempts", "Attempts that have ended.", ["class"], registry=r)
        self.replaced = Histogram(
            "trialkeeper_disruption_to_pod_seconds",
            "From a disruption's end to the next attempt's pod.",
            buckets=_REPLACED,
            registry=r,
        )
        self.work_seconds = Counter(
            "trialkeeper_work_seconds", "Training, what was done again later included.", registry=r
        )
        self.lost_seconds = Counter("trialkeeper_lost_work_seconds", "Training done again.", registry=r)
        self.lost_iterations = Counter("trialkeeper_lost_work_iterations", "Iterations done again.", registry=r)
        self.restart_seconds = Counter(
            "trialkeeper_restart_seconds", "From ends of attempts to the next new iterations.", registry=r
        )
        self.snapshot_bytes = Gauge("trialkeeper_snapshot_bytes", "The largest snapshot's size.", registry=r)
        self.snapshot_time = Gauge(
            "trialkeeper_snapshot_time_seconds", "When a snapshot was written last, since the epoch.", registry=r
        )
        self.sweeps = Counter(
            "trialkeeper_sweeps", "Passes over the store, whole, in part, or with trouble.", ["result"], registry=r
        )
        self.swept_objects = Counter("trialkeeper_swept_objects", "Objects that sweeps have deleted.", registry=r)
        self.swept_bytes = Counter("trialkeeper_swept_bytes", "Bytes of these objects.", registry=r)
        self.stored_bytes = Gauge("trialkeeper_store_checkpoint_bytes", "Checkpoints after the last pass.", registry=r)
        self.over_budget = Gauge(
            "trialkeeper_store_over_budget_bytes", "What is beyond checkpoint.budget and may not go.", registry=r
        )
        self.reports = Counter("trialkeeper_reports", "Requests of pods.", ["path", "code"], registry=r)
        self.leader = Gauge("trialkeeper_leader", "1 in the replica that leads.", registry=r)
        self.stale = Gauge("trialkeeper_watch_stale", "1 if the watch has missed a change for a minute.", registry=r)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
