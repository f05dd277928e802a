"""The cache of objects: what the watch has told and what our own writes have answered.

It is a memory of the past and never proof of absence. An older version never replaces a newer one, nor does an
object that has gone its namesake, so that the answer of a write and the event of an earlier one may come in any
order. Experiments
and Trials are kept parsed, since each is read far more often than it changes; one that cannot be parsed is
kept raw and answers None, and stops nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial

Object = Mapping[str, Any]
Name = tuple[str, str]  # namespace, name

GONE = 4096  # uids of deleted objects that are remembered, so that a late answer does not revive them


def name_of(obj: Object) -> Name:
    """(namespace, name) of an object."""
    meta = obj["metadata"]
    return meta.get("namespace", ""), meta["name"]


def owner_uid(obj: Object) -> str | None:
    """The uid of the controller that owns an object."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner.get("uid"))
    return None


def version_of(obj: Object) -> int:
    """An object's resourceVersion, 0 for none; they compare as integers (KEP-5504)."""
    text = str(obj["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0


def _older(new: Object, old: Object) -> bool:
    """Whether `new` was there before `old`: an earlier version, or one that had the name before."""
    return 0 < version_of(new) < version_of(old)


M = TypeVar("M", Experiment, Trial)


class Parsed(Generic[M]):
    """Models of raw objects, parsed once a version."""

    def __init__(self, model: type[M]) -> None:
        self._model: type[M] = model
        self._models: dict[str, tuple[str, M | None]] = {}

    def of(self, raw: Object | None) -> M | None:
        """The model, or None if there is no object or it does not fit the model."""
        if raw is None:
            return None
        uid, version = raw["metadata"].get("uid", ""), raw["metadata"].get("resourceVersion", "")
        known = self._models.get(uid)
        if known is None or known[0] != version:
            try:
                model: M | None = self._model.from_object(raw)
            except ValueError:
                model = None
            known = self._models[uid] = (version, model)
        return known[1]

    def forget(self, raw: Object) -> None:
        self._models.pop(raw["metadata"].get("uid", ""), None)


class Cache:
    """Objects by kind and name, with the two look-ups that reconciling needs: trials of, pods of."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Name, Object]] = {}
        self._children: dict[tuple[str, str], dict[Name, Object]] = {}  # (kind, owner's uid)
        self._gone: dict[str, int] = {}  # by uid: the version under which it went
        self._last: dict[Name, Object] = {}
        self._experiments = Parsed(Experiment)
        self._trials = Parsed(Trial)

    def apply(self, kind: str, obj: Object, *, live: bool = False) -> bool:
        """Take a version in; False if it was known already, or older than what is known.

        `live`: it has just been read. What is there after it was told to be gone has left a watch and not the cluster:
        somebody took the label away by which it is watched.
        """
        uid = obj["metadata"].get("uid", "")
        name = name_of(obj)
        known = self._objects.setdefault(kind, {}).get(name)
        gone = self._gone.get(uid)
        if gone is not None and not (live and version_of(obj) >= gone):
            return False
        if known is not None and _older(obj, known):
            return False
        self._gone.pop(uid, None)
        if known is not None and known["metadata"].get("uid") != uid:
            self.remove(kind, known)
        self._objects[kind][name] = obj
        owner = owner_uid(obj)
        if owner is not None:
            self._children.setdefault((kind, owner), {})[name] = obj
        return known is None or known["metadata"].get("resourceVersion") != obj["metadata"].get("resourceVersion")

    def remove(self, kind: str, obj: Object) -> None:
        """Take an object out for good; a pod's last state is kept until its trial forgets it."""
        uid, name = obj["metadata"].get("uid", ""), name_of(obj)
        known = self._objects.get(kind, {}).get(name)
        ours = known is not None and known["metadata"].get("uid") == uid
        # It went under a version of its own, later than any that was read of it.
        least = version_of(known) + 1 if known is not None and ours else 0
        self._gone[uid] = max(self._gone.get(uid, 0), version_of(obj), least)
        while len(self._gone) > GONE:
            del self._gone[next(iter(self._gone))]
        if ours:
            del self._objects[kind][name]
        owner = owner_uid(obj)
        siblings = self._children.get((kind, owner or ""), {})
        if name in siblings and siblings[name]["metadata"].get("uid") == uid:
            del siblings[name]
        self._children.pop((kind, uid), None)
        if kind == names.POD:
            self._last[name] = obj
        elif kind == names.TRIAL:
            self._children.pop((names.POD, uid), None)
            self._trials.forget(obj)
        elif kind == names.EXPERIMENT:
            self._children.pop((names.TRIAL, uid), None)
            self._experiments.forget(obj)

    def prune(self, kind: str, listed: Iterable[Object], known_before: Mapping[Name, str]) -> list[Object]:
        """Remove what a list taken meanwhile does not contain; `known_before` are names and uids before it.

        Returns what was removed: deletions that the watch never told.
        """
        alive = {obj["metadata"]["uid"] for obj in listed}
        missed = [
            obj
            for name, uid in known_before.items()
            if uid not in alive and (obj := self.raw(kind, name)) is not None and obj["metadata"].get("uid") == uid
        ]
        for obj in missed:
            self.remove(kind, obj)
        return missed

    def uids(self, kind: str) -> dict[Name, str]:
        """Names and uids of every object of a kind."""
        return {name: obj["metadata"]["uid"] for name, obj in self._objects.get(kind, {}).items()}

    def raw(self, kind: str, name: Name) -> Object | None:
        return self._objects.get(kind, {}).get(name)

    def last_pod(self, name: Name) -> Object | None:
        """The last state of the newest deleted pod of a name, if its deletion was watched."""
        return self._last.get(name)

    def forget_pod(self, name: Name) -> None:
        self._last.pop(name, None)

    def experiment(self, name: Name) -> Experiment | None:
        return self._experiments.of(self.raw(names.EXPERIMENT, name))

    def trial(self, name: Name) -> Trial | None:
        return self._trials.of(self.raw(names.TRIAL, name))

    def trials_of(self, experiment: Experiment) -> list[Trial]:
        """The experiment's trials by index; one that is not called after its index was not made by us."""
        children = self._children.get((names.TRIAL, experiment.uid), {})
        parsed = (self._trials.of(raw) for raw in children.values())
        ours = (t for t in parsed if t is not None and t.name == names.trial_name(experiment.name, t.spec.index))
        return sorted(ours, key=lambda t: t.spec.index)

    def raw_children(self, kind: str, owner: str) -> list[Object]:
        """Objects of a kind by their controller's uid, as they were seen."""
        return list(self._children.get((kind, owner), {}).values())

    def pods_of(self, trial: Trial) -> dict[str, Object]:
        """The pods whose controller is this very Trial, by name."""
        return {name[1]: pod for name, pod in self._children.get((names.POD, trial.uid), {}).items()}

    def names(self, kind: str) -> Iterator[Name]:
        yield from list(self._objects.get(kind, {}))
