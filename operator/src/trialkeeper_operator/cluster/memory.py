"""The API server's rules in a dict: what stands behind both ports in local mode and in simulation.

It knows what a real API server would answer to the calls of the two ports and nothing of what the objects
mean; admission is handed in. Stored objects are never changed, only replaced: what goes in is copied, what
comes out is shared and must be left alone. Everything happens on one event loop, so each call is atomic.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Literal

from trialkeeper_operator.api import names
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.cluster import deletion
from trialkeeper_operator.cluster.body import SERVER_FIELDS, Key, check, copy, key_of, matches, owners
from trialkeeper_operator.reconcile.ports import AlreadyExists, Conflict, Event, Invalid, NotFound, Object

Admit = Callable[[Object | None, Object], Object]  # (old or None, new) -> defaulted new; raises Invalid
Committed = Callable[[Literal["PUT", "DELETE"], Object], None]

_CONDITIONAL = frozenset({names.EXPERIMENT, names.TRIAL})  # custom resources are not replaced unseen


def _unchecked(_old: Object | None, new: Object) -> Object:
    return new


class Memory:
    """Both ports over one dict.

    `now` gives seconds since the epoch, `ids` the uids; `admit` is asked per kind before a write; `commit` is
    told each write before anybody can see it, and by raising it keeps the write from happening.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        ids: Callable[[], str] = lambda: str(uuid.uuid4()),
        admit: Mapping[str, Admit] | None = None,
        commit: Committed | None = None,
    ) -> None:
        self._now, self._ids, self._admit, self._commit = now, ids, admit or {}, commit
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
            if key[0] == kind and namespace in (None, key[1]) and matches(obj, labels):
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

    async def create(self, body: Object, *, dry_run: bool = False) -> Object:
        new = copy(body)
        key = key_of(new)
        if new["metadata"].get("resourceVersion"):
            raise Invalid(f"{key[0]} {key[2]}: metadata.resourceVersion: a new object has none: leave it out")
        check(new)
        new.pop("status", None)
        new["metadata"] = _without(new["metadata"]) | {"uid": self._ids(), "creationTimestamp": stamp(self._now())}
        if "spec" in new:
            new["metadata"]["generation"] = 1
        new = self._admitted(None, new)
        if key in self._objects:
            raise AlreadyExists(f"{key[0]} {key[1]}/{key[2]} exists already")
        if key[0] == names.POD:
            new["status"] = {"phase": "Pending"}
        if dry_run:
            rehearsed: Object = copy(new)
            return rehearsed
        stored = self._store(key, new)
        self._collect_one(key)
        return stored

    async def put(self, body: Object) -> Object:
        key, old, new = self._expected(body)
        check(new)
        new.pop("status", None)
        new |= {"status": old["status"]} if "status" in old else {}
        kept = {field: old["metadata"][field] for field in SERVER_FIELDS if field in old["metadata"]}
        new["metadata"] = _without(new["metadata"]) | kept
        new = self._admitted(old, new)
        if new.get("spec") != old.get("spec"):
            new["metadata"] = {**new["metadata"], "generation": kept.get("generation", 0) + 1}
        if new == old:
            return old
        stored = self._store(key, new)
        self._collect_one(key)
        return stored

    async def put_status(self, body: Object) -> Object:
        key, old, new = self._expected(body)
        if key[0] == names.CONFIG_MAP:
            raise NotFound(f"ConfigMap {key[1]}/{key[2]} has no status")
        status = {"status": new["status"]} if new.get("status") is not None else {}
        new = self._admitted(old, {k: v for k, v in old.items() if k != "status"} | status)
        return old if new == old else self._store(key, new)

    async def bind(self, namespace: str, name: str, node: str) -> Object:
        """What a scheduler does: the pod belongs to a node from now on, and deleting it takes its grace.

        :raises NotFound: if there is no such pod.
        :raises Conflict: if a node has it already, as every pod has that is being deleted.
        """
        key = (names.POD, namespace, name)
        old = self._existing(key)
        if old["spec"].get("nodeName"):
            raise Conflict(f"Pod {namespace}/{name} is bound to {old['spec']['nodeName']} already")
        return self._store(key, {**old, "spec": {**old["spec"], "nodeName": node}})

    async def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        version: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        key = (kind, namespace, name)
        old = self._existing(key)
        if uid is not None and old["metadata"]["uid"] != uid:
            raise Conflict(f"{kind} {namespace}/{name} has another uid than {uid}")
        if version not in (None, old["metadata"]["resourceVersion"]):
            raise Conflict(f"{kind} {namespace}/{name} has been changed since it was read")
        self._delete(key, old, grace_seconds)

    def _existing(self, key: Key) -> Object:
        old = self._objects.get(key)
        if old is None:
            raise NotFound(f"{key[0]} {key[1]}/{key[2]} does not exist")
        return old

    def _expected(self, body: Object) -> tuple[Key, Object, Object]:
        """(key, stored object, copy of the new one), if the write is made from what is stored."""
        new = copy(body)
        key = key_of(new)
        old = self._existing(key)
        meta, stored = new["metadata"], old["metadata"]
        if meta.get("uid") not in (None, "", stored["uid"]):
            raise Conflict(f"{key[0]} {key[1]}/{key[2]} has another uid than {meta['uid']}")
        version = meta.get("resourceVersion") or None
        if version is None and key[0] in _CONDITIONAL:
            raise Invalid(f"{key[0]} {key[2]}: metadata.resourceVersion: an update must say what it was made from")
        if version not in (None, stored["resourceVersion"]):
            raise Conflict(f"{key[0]} {key[1]}/{key[2]} has been changed since it was read")
        return key, old, new

    def _admitted(self, old: Object | None, new: Object) -> Object:
        return self._admit.get(new["kind"], _unchecked)(old, new)

    # Committing: the journal first, then the dict, then the watchers.

    def _store(self, key: Key, new: Object) -> Object:
        version = self._version + 1
        stored = {**new, "metadata": {**new["metadata"], "resourceVersion": str(version)}}
        if self._commit is not None:
            self._commit("PUT", stored)
        old = self._objects.get(key)
        self._objects[key], self._version = stored, version
        self._adopt(key, old, stored)
        self._tell("MODIFIED" if old else "ADDED", stored)
        return stored

    def _delete(self, key: Key, old: Object, asked: int | None) -> None:
        if key[0] != names.POD:
            self._remove(key, old)
            return
        ended = deletion.ending(old, asked, self._now())
        if deletion.is_over(ended):
            self._remove(key, ended)
        elif ended is not old:
            self._store(key, ended)

    def _remove(self, key: Key, last: Object) -> None:
        # A pod is first seen as one that has no grace left, under a version of its own.
        states = [last, last] if key[0] == names.POD else [last]
        states = [_at(obj, self._version + 1 + n) for n, obj in enumerate(states)]
        if self._commit is not None:
            self._commit("DELETE", states[-1])
        self._version += len(states)
        self._adopt(key, self._objects.pop(key), None)
        for state in states[:-1]:
            self._tell("MODIFIED", state)
        self._tell("DELETED", states[-1])
        for child in sorted(self._children.get(last["metadata"]["uid"], ())):
            self._collect_one(child)

    def _tell(self, type_: Literal["ADDED", "MODIFIED", "DELETED"], obj: Object) -> None:
        event = Event(obj["kind"], type_, obj)
        for queue in self._watchers:
            queue.put_nowait(event)

    # Collecting: an object goes when the last of its owners has gone.

    def _adopt(self, key: Key, old: Object | None, new: Object | None) -> None:
        if old and new and old["metadata"].get("ownerReferences") == new["metadata"].get("ownerReferences"):
            return
        before, after = owners(old) if old else frozenset(), owners(new) if new else frozenset()
        for uid in before - after:
            self._children[uid].discard(key)
            if not self._children[uid]:
                del self._children[uid]
        for uid in after - before:
            self._children.setdefault(uid, set()).add(key)

    def _collect_one(self, key: Key) -> None:
        obj = self._objects.get(key)
        if obj is not None and self._orphaned(obj):
            self._delete(key, obj, None)

    def _orphaned(self, obj: Object) -> bool:
        references, namespace = obj["metadata"].get("ownerReferences") or (), obj["metadata"]["namespace"]
        found = (self._objects.get((r["kind"], namespace, r["name"])) for r in references)
        uids = owners(obj)
        return bool(uids) and not any(o is not None and o["metadata"]["uid"] in uids for o in found)

    def collect(self) -> None:
        """Delete whatever has no owner left, as a collector does when it comes up."""
        for key in list(self._objects):
            self._collect_one(key)

    def restore(self, objects: Iterable[Object], version: int) -> None:
        """Fill an empty memory from a journal, without telling anybody."""
        for obj in objects:
            key = key_of(obj)
            self._objects[key] = obj
            self._adopt(key, None, obj)
        self._version = version


def _without(meta: Mapping[str, object]) -> dict[str, object]:
    return {field: value for field, value in meta.items() if field not in SERVER_FIELDS}


def _at(obj: Object, version: int) -> Object:
    return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(version)}}
