"""The two ports between the reconcilers and the world: Cluster answers, Source tells.

Objects are raw dicts as the Kubernetes API has them (`kind`, `metadata`, `spec`, `status`), so that
nothing a newer API adds is lost on the way. Whatever comes out of a port is the caller's to keep and
must not be changed by it afterwards; whatever goes in is copied. `cluster/memory.py` and
`cluster/kube.py` stand behind these Protocols; one contract suite runs on both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

Object = dict[str, Any]
Kind = Literal["Experiment", "Trial", "Pod", "ConfigMap", "Service"]


class Event(NamedTuple):
    """One change that a Source has seen; DELETED carries the object's last state."""

    kind: str
    type: Literal["ADDED", "MODIFIED", "DELETED"]
    object: Object


class ClusterError(Exception):
    """Base of everything a Cluster raises; the message is one sentence."""


class NotFound(ClusterError):
    """Raised when the object to write or delete does not exist."""


class AlreadyExists(ClusterError):
    """Raised by `create` when the name is taken."""


class Conflict(ClusterError):
    """Raised when resourceVersion or the uid precondition is not the stored one."""


class Invalid(ClusterError):
    """Raised when admission refuses the object; the message says what to change."""


class QuotaExceeded(ClusterError):
    """Raised by `create` when the namespace's quota has no room now: the same object may be let in later."""


class Expired(ClusterError):
    """Raised by `list` when it takes so long that its beginning is forgotten, again and again."""


class Unavailable(ClusterError):
    """Raised when the answer is unknown: a deadline passed, 429, 5xx. The write may have been applied."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Forbidden(Unavailable):
    """Raised when the operator itself lacks the right; only whoever installed it can help."""


class Cluster(Protocol):
    """Reads and writes of objects. Any call may raise `Unavailable`."""

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object as it is now, or None if there is none."""
        ...

    def list(
        self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Object]:
        """Every object of a kind, page by page; of one namespace or of all; with these labels."""
        ...

    async def create(self, body: Object, *, dry_run: bool = False) -> Object:
        """Store a new object and return it with uid, resourceVersion, generation and defaults.

        With `dry_run` nothing is stored and the answer is the same.

        :raises AlreadyExists: if the name is taken in that namespace and kind.
        :raises Invalid: if admission refuses the object.
        :raises QuotaExceeded: if there is no room for it now.
        """
        ...

    async def put(self, body: Object) -> Object:
        """Replace everything but status; raises `generation` if spec changed.

        :raises NotFound: if there is no such object (or its uid is another).
        :raises Conflict: if metadata.resourceVersion is given and is not the stored one.
        :raises Invalid: if admission refuses the change.
        """
        ...

    async def put_status(self, body: Object) -> Object:
        """Replace status alone; the same errors as `put`."""
        ...

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
        """Delete an object. A pod that runs gets deletionTimestamp and its grace; grace 0 removes it at once.

        Deleting what is being deleted already changes nothing, unless the grace becomes shorter.

        :raises NotFound: if there is no such object.
        :raises Conflict: if the uid is another object's, or the resourceVersion is not `version`.
        """
        ...


class Source(Protocol):
    """Changes of all objects of the kinds served."""

    def events(self) -> AsyncIterator[Event]:
        """First ADDED for each object that exists, then every change, in order per object, until cancelled."""
        ...
