"""What the reconcilers share: the port to write through, the cache, the queue, the newest reports.

Every object that is seen, by the watch or as the answer of an own write, goes through `seen`, which
decides whose turn it is next. So nothing waits for an event that a broken watch may never bring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from trialkeeper.contract import Message
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.decide import disruptions, evidence, fork
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.decide.waiting import Waiting
from trialkeeper_operator.reconcile.ports import Cluster, NotFound, Object
from trialkeeper_operator.reconcile.queue import KeyedQueue
from trialkeeper_operator.state.cache import Cache, Name, name_of

AWAITED = 1.0  # seconds for which it is known what forks are waiting for
RATE = 30.0  # seconds for which a rate of disruptions is good enough

Key = tuple[str, Name]  # kind (Experiment or Trial) and name


class Kept(NamedTuple):
    """The snapshot that is stored as far as is known, and when the next one is due (seconds since the epoch).

    `digest` is that of the one written last, empty if it is not ours; `rows` are the uids of its trials;
    `stored` is the ConfigMap that may be replaced, None if there was none; `refused` why it cannot be written now.
    """

    digest: str
    due: float
    rows: frozenset[str]
    stored: Object | None = None
    refused: Waiting | None = None


class Observer(Protocol):
    """Hears what has happened, to tell people and to count; it must not raise and must not wait."""

    def stored(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """A status of an Experiment or a Trial has been written: the object before and after."""

    def kept(self, uid: str, size: int) -> None:
        """An experiment's snapshot of so many bytes has been written."""


class Nobody:
    """Hears nothing."""

    def stored(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        return None

    def kept(self, uid: str, size: int) -> None:
        return None


@dataclass
class World:
    """One operator's knowledge. `now` gives seconds since the epoch; intervals are seconds."""

    cluster: Cluster
    now: Callable[[], float]
    queue: KeyedQueue[Key]
    status_interval: float = 30.0  # between two writes of a trial's live values
    site: Site | None = None  # the cluster that pods are for; None: this machine
    observer: Observer = field(default_factory=Nobody)
    hardened: set[str] = field(default_factory=set)  # uids of experiments whose namespace asks for restricted pods
    started: set[str] = field(default_factory=set)  # uids of experiments of which a pod has been started
    deleted: set[str] = field(default_factory=set)  # uids of pods whose deletion is granted, and not told yet
    nodes_closed: bool = False  # whether nodes may not be read
    cache: Cache = field(default_factory=Cache)
    reports: dict[Name, tuple[Message, float]] = field(default_factory=dict)
    live_writes: dict[Name, float] = field(default_factory=dict)
    held: dict[str, Waiting] = field(default_factory=dict)  # by experiment uid: why its next trial is not made
    counted: dict[str, float] = field(default_factory=dict)  # by experiment uid: when its status was stored last
    accepted: dict[str, int] = field(default_factory=dict)  # generation by experiment uid, of what keeps the rules
    snapshots: dict[str, Kept] = field(default_factory=dict)  # by experiment uid
    services: dict[str, dict[str, str]] = field(default_factory=dict)  # by experiment uid: uids by their trial's
    services_listed: set[str] = field(default_factory=set)  # uids of experiments whose services are all known
    searches: dict[str, Any] = field(default_factory=dict)  # by experiment uid: what the search keeps, a cache only
    began: float = field(init=False)
    _signatures: dict[str, object] = field(default_factory=dict)
    _awaited: dict[str, tuple[float, dict[str, set[int]]]] = field(default_factory=dict)  # by namespace
    _rates: dict[str, tuple[float, float]] = field(default_factory=dict)  # by experiment uid: when, and mtbf

    def __post_init__(self) -> None:
        self.began = self.now()

    def seen(self, kind: str, obj: Object, *, live: bool = False) -> None:
        """Take in a version of an object, and queue whom it concerns if it is news; `live`: it has just been read."""
        known = self.cache.raw(kind, name_of(obj))
        if not self.cache.apply(kind, obj, live=live):
            return
        if known is not None and known["metadata"]["uid"] != obj["metadata"]["uid"]:
            self._forget(kind, known)
        if kind in (names.TRIAL, names.EXPERIMENT):
            self.queue.add((kind, name_of(obj)))
        self._queue_parent(kind, obj)
        if kind == names.EXPERIMENT:
            self._trials_if_changed(obj)

    def _queue_parent(self, kind: str, obj: Object) -> None:
        """A pod's trial and a trial's experiment look again, whatever has happened to it."""
        if kind == names.POD:
            parent, name = names.TRIAL, (obj["metadata"].get("labels") or {}).get(names.LABEL_TRIAL)
        elif kind == names.TRIAL:
            parent, name = names.EXPERIMENT, (obj.get("spec") or {}).get("experiment")
        else:
            return
        if isinstance(name, str):
            self.queue.add((parent, (obj["metadata"].get("namespace", ""), name)))

    def _trials_if_changed(self, obj: Object) -> None:
        """An experiment's trials look again when its spec or its verdict changed, not for each new count."""
        verdicts = sorted((str(c.get("type")), str(c.get("reason"))) for c in evidence.conditions_of(obj))
        restored = bool(evidence.status_of(obj).get("restored"))
        signature = (obj["metadata"].get("generation"), verdicts, restored)
        uid = obj["metadata"]["uid"]
        if self._signatures.get(uid) == signature:
            return
        self._signatures[uid] = signature
        experiment = self.cache.experiment(name_of(obj))
        for trial in self.cache.trials_of(experiment) if experiment else ():
            self.queue.add((names.TRIAL, (trial.namespace, trial.name)))

    def vanished(self, kind: str, obj: Object) -> None:
        """Take in that an object was deleted."""
        self.cache.remove(kind, obj)
        self._forget(kind, obj)
        self._queue_parent(kind, obj)

    def _forget(self, kind: str, obj: Object | Mapping[str, Any]) -> None:
        """What was kept of an object that is gone."""
        if kind == names.POD:
            self.deleted.discard(obj["metadata"]["uid"])
        elif kind == names.TRIAL:
            self.reports.pop(name_of(obj), None)
            self.live_writes.pop(name_of(obj), None)
        elif kind == names.EXPERIMENT:
            self.hardened.discard(obj["metadata"]["uid"])
            self.started.discard(obj["metadata"]["uid"])
            self.services_listed.discard(obj["metadata"]["uid"])
            for kept in (
                self.services,
                self.searches,
                self.snapshots,
                self.accepted,
                self.counted,
                self._signatures,
                self._rates,
            ):
                kept.pop(obj["metadata"]["uid"], None)
            self.held.pop(obj["metadata"]["uid"], None)

    def mtbf(self, experiment: Experiment) -> float:
        """Mean seconds between disruptions of a pod of this experiment, looked at once in a while."""
        now = self.now()
        known = self._rates.get(experiment.uid)
        if known is None or not 0 <= now - known[0] < RATE:
            trials = (trial.status for trial in self.cache.trials_of(experiment))
            known = self._rates[experiment.uid] = (now, disruptions.mtbf(trials, now))
        return known[1]

    def awaited(self, experiment: Experiment, trial: str) -> list[int]:
        """Iterations of a trial's checkpoints that forks will begin from and have not yet; known for a second."""
        now = self.now()
        known = self._awaited.get(experiment.namespace)
        if known is None or not 0 <= now - known[0] < AWAITED:
            found: dict[str, set[int]] = {}
            for name in self.cache.names(names.EXPERIMENT):
                other = self.cache.experiment(name) if name[0] == experiment.namespace else None
                if other is not None and any(entry.base for entry in other.spec.enqueue or ()):
                    for donor, iterations in fork.held(other, self.cache.trials_of(other)).items():
                        found.setdefault(donor, set()).update(iterations)
            known = self._awaited[experiment.namespace] = (now, found)
        return sorted(known[1].get(trial, ()))

    async def look(self, kind: str, name: Name) -> Object | None:
        """Read an object live, and let the cache know what was found."""
        found = await self.cluster.get(kind, *name)
        known = self.cache.raw(kind, name)
        if found is None:
            if known is not None:
                self.vanished(kind, dict(known))
        else:
            self.seen(kind, found, live=True)
        return found

    async def put_status(self, raw: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Store a status under the version it was made from.

        :raises Conflict: if the object has changed since; the caller looks again.
        """
        body = {**raw, "status": dict(status)}
        try:
            stored = await self.cluster.put_status(body)
            self.seen(raw["kind"], stored)
            self.observer.stored(raw, stored)
        except NotFound:
            self.vanished(raw["kind"], dict(raw))


def remaining(since: float, wait: float, now: float) -> float:
    """Seconds left of a wait that began at `since`; 0.0 also if that is yet to come, because a clock was set back."""
    return max(0.0, since + wait - now) if since <= now else 0.0


Outcome = float | None  # seconds until the next look, None: whenever something happens
