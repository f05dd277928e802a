"""The API server's rules in a dict: what stands behind both ports in local mode and in simulation.

It knows what a real API server would answer to the calls of the two ports and nothing of what the objects
mean; admission is handed in. Stored objects are never changed, only replaced: what goes in is copied, what
comes out is shared and must be left alone. Everything happens on one event loop, so each call is atomic.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Literal

from trialkeeper_operator.api import names
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.reconcile.ports import AlreadyExists, Conflict, Event, Invalid, NotFound, Object

Key = tuple[str, str, str]  # kind, namespace, name
Admit = Callable[[Object | None, Object], Object]  # (old or None, new) -> defaulted new; raises Invalid
Committed = Callable[[Literal["PUT", "DELETE"], Object], None]

KINDS = frozenset({names.EXPERIMENT, names.TRIAL, names.POD, names.CONFIG_MAP})
_SERVER_FIELDS = ("uid", "creationTimestamp", "generation", "resourceVersion", "deletionTimestamp")


def copy(value: Any) -> Any:
    """A deep copy of what JSON can express; several times as fast as the general one."""
    if isinstance(value, Mapping):
        return {key: copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copy(item) for item in value]
    return value


def _unchecked(_old: Object | None, new: Object) -> Object:
    return new


class Memory:
    """Both ports over one dict.

    `now` gives seconds since the epoch, `ids` the uids; `admit` is asked per kind before a write; `committed`
    is told each write after it has happened, before anybody is told of it.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        ids: Callable[[], str] = lambda: str(uuid.uuid4()),
        admit: Mapping[str, Admit] | None = None,
        committed: Committed | None = None,
    ) -> None:
        self._now, self._ids, self._admit, self._committed = now, ids, admit or {}, committed
        self._objects: dict[Key, Object] = {}
        self._children: dict[str, set[Key]] = {}  # by the owner's uid
        self._version = 0
        self._watchers: list[asyncio.Queue[Event]] = []

    # Reading.

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return self._objects.get((kind, namespace, name))

    async def list(
        self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Object]:
        for key, obj in list(self._objects.items()):
            if key[0] == kind and namespace in (None, key[1]) and _matches(obj, labels):
                yield obj

    async def events(self) -> AsyncIterator[Event]:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        for (kind, _, _), obj in self._objects.items():
            queue.put_nowait(Event(kind, "ADDED", obj))
        self._watchers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)

    def objects(self) -> Iterable[Object]:
        """Everything that is stored, for the journal's compaction."""
        return self._objects.values()

    @property
    def version(self) -> int:
        """The newest resourceVersion."""
        return self._version

    # Writing.

    async def create(self, body: Object) -> Object:
        new = copy(body)
        key = _key(new)
        if key in self._objects:
            raise AlreadyExists(f"{key[0]} {key[1]}/{key[2]} exists already")
        meta = {k: v for k, v in new["metadata"].items() if k not in _SERVER_FIELDS}
        new.pop("status", None)
        new["metadata"] = meta | {"uid": self._ids(), "creationTimestamp": stamp(self._now())}
        if "spec" in new:
            new["metadata"]["generation"] = 1
        new = self._admitted(None, new)
        if key[0] == names.POD:
            new["status"] = {"phase": "Pending"}
        stored = self._store(key, new, "ADDED")
        if self._orphaned(stored):
            await self.delete(*key)
        return stored

    async def put(self, body: Object) -> Object:
        old, new = self._expected(body)
        new.pop("status", None)
        new |= {"status": old["status"]} if "status" in old else {}
        new["metadata"] |= {k: old["metadata"][k] for k in _SERVER_FIELDS if k in old["metadata"]}
        new = self._admitted(old, new)
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        return old if new == old else self._store(_key(new), new, "MODIFIED")

    async def put_status(self, body: Object) -> Object:
        old, new = self._expected(body)
        new = self._admitted(old, {**old, "status": new.get("status", {})})
        return old if new == old else self._store(_key(new), new, "MODIFIED")

    async def bind(self, namespace: str, name: str, node: str) -> Object:
        """What a scheduler does: the pod belongs to a node from now on, and deleting it takes its grace.

        :raises NotFound: if there is no such pod.
        """
        old = self._objects.get((names.POD, namespace, name))
        if old is None:
            raise NotFound(f"Pod {namespace}/{name} does not exist")
        return self._store((names.POD, namespace, name), {**old, "spec": {**old["spec"], "nodeName": node}}, "MODIFIED")

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> None:
        key = (kind, namespace, name)
        old = self._objects.get(key)
        if old is None:
            raise NotFound(f"{kind} {namespace}/{name} does not exist")
        if uid is not None and old["metadata"]["uid"] != uid:
            raise Conflict(f"{kind} {namespace}/{name} has another uid than {uid}")
        if kind == names.POD and (grace := self._grace(old, grace_seconds)) > 0:
            self._terminate(key, old, grace)
            return
        self._remove(key, old)

    def _grace(self, pod: Object, asked: int | None) -> int:
        """Seconds that a pod has: none if no node has it."""
        if not pod["spec"].get("nodeName"):
            return 0
        return int(pod["spec"].get("terminationGracePeriodSeconds", 30)) if asked is None else max(0, asked)

    def _terminate(self, key: Key, pod: Object, grace: int) -> None:
        meta = pod["metadata"]
        if meta.get("deletionTimestamp") and meta.get("deletionGracePeriodSeconds", 0) <= grace:
            return
        ending = {"deletionTimestamp": stamp(self._now() + grace), "deletionGracePeriodSeconds": grace}
        self._store(key, {**pod, "metadata": {**meta, **ending}}, "MODIFIED")

    def _remove(self, key: Key, old: Object) -> None:
        self._version += 1
        meta = {**old["metadata"], "resourceVersion": str(self._version)}
        if not meta.get("deletionTimestamp"):
            meta |= {"deletionTimestamp": stamp(self._now()), "deletionGracePeriodSeconds": 0}
        gone = {**old, "metadata": meta}
        del self._objects[key]
        for owner in _owners(old):
            self._children.get(owner, set()).discard(key)
        self._tell("DELETE", "DELETED", gone)
        self._collect(str(meta["uid"]))

    def _collect(self, owner: str) -> None:
        """Background collection: an object goes when the last of its owners has gone."""
        for key in sorted(self._children.pop(owner, ())):
            child = self._objects.get(key)
            if child is not None and self._orphaned(child):
                if key[0] == names.POD and (grace := self._grace(child, None)) > 0:
                    self._terminate(key, child, grace)
                else:
                    self._remove(key, child)

    def _orphaned(self, obj: Object) -> bool:
        owners = _owners(obj)
        return bool(owners) and not any(o["metadata"]["uid"] in owners for o in self._owners_of(obj))

    def _owners_of(self, obj: Object) -> Iterable[Object]:
        namespace = obj["metadata"].get("namespace", "")
        for reference in obj["metadata"].get("ownerReferences") or ():
            owner = self._objects.get((reference["kind"], namespace, reference["name"]))
            if owner is not None:
                yield owner

    def _expected(self, body: Object) -> tuple[Object, Object]:
        """(stored object, copy of the new one), if the write is made from what is stored."""
        new = copy(body)
        key = _key(new)
        old = self._objects.get(key)
        if old is None:
            raise NotFound(f"{key[0]} {key[1]}/{key[2]} does not exist")
        meta, stored = new["metadata"], old["metadata"]
        if meta.get("uid") not in (None, stored["uid"]):
            raise Conflict(f"{key[0]} {key[1]}/{key[2]} has another uid than {meta['uid']}")
        if meta.get("resourceVersion") not in (None, stored["resourceVersion"]):
            raise Conflict(f"{key[0]} {key[1]}/{key[2]} has been changed since it was read")
        return old, new

    def _admitted(self, old: Object | None, new: Object) -> Object:
        if new["metadata"].get("finalizers"):
            raise Invalid("metadata.finalizers: finalizers are not supported here")
        return self._admit.get(new["kind"], _unchecked)(old, new)

    def _store(self, key: Key, new: Object, type_: Literal["ADDED", "MODIFIED"]) -> Object:
        self._version += 1
        stored = {**new, "metadata": {**new["metadata"], "resourceVersion": str(self._version)}}
        self._objects[key] = stored
        if type_ == "ADDED":
            self._adopt(key, stored)
        self._tell("PUT", type_, stored)
        return stored

    def _adopt(self, key: Key, obj: Object) -> None:
        for owner in _owners(obj):
            self._children.setdefault(owner, set()).add(key)

    def _tell(self, op: Literal["PUT", "DELETE"], type_: Literal["ADDED", "MODIFIED", "DELETED"], obj: Object) -> None:
        if self._committed is not None:
            self._committed(op, obj)
        event = Event(obj["kind"], type_, obj)
        for queue in self._watchers:
            queue.put_nowait(event)

    def restore(self, objects: Iterable[Object], version: int) -> None:
        """Fill an empty memory from a journal, without telling anybody."""
        for obj in objects:
            key = _key(obj)
            self._objects[key] = obj
            self._adopt(key, obj)
        self._version = version


def _key(obj: Object) -> Key:
    kind, meta = obj.get("kind"), obj.get("metadata")
    if kind not in KINDS or not isinstance(meta, dict) or not isinstance(meta.get("name"), str):
        raise Invalid(f"kind and metadata.name are needed, kind is one of {', '.join(sorted(KINDS))}")
    return kind, str(meta.get("namespace", "")), meta["name"]


def _owners(obj: Object) -> list[str]:
    return [str(reference["uid"]) for reference in obj["metadata"].get("ownerReferences") or ()]


def _matches(obj: Object, labels: Mapping[str, str] | None) -> bool:
    found = obj["metadata"].get("labels") or {}
    return all(found.get(name) == value for name, value in (labels or {}).items())
