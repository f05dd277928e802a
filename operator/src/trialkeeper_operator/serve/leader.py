"""The Lease: one replica works, the others wait. Names and conditional writes keep a second leader harmless;
the Lease keeps it from being wasteful.

Whether others' claim has run out is judged by this process's own clock, from when it saw the claim change; how
long our own claim holds is counted from before the renewal was sent. So no two clocks are ever compared.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.reconcile.ports import AlreadyExists, ClusterError, Conflict, NotFound, Object

log = logging.getLogger(__name__)


class Terms(NamedTuple):
    """Seconds: how long a claim holds, until when it must be renewed, and between two tries."""

    duration: float = 15.0
    deadline: float = 10.0
    retry: float = 2.0


USUAL = Terms()


LAST_HOLDER = f"{names.GROUP}/last-holder"  # an annotation: who has given a Lease back


def last_holder(lease: Object) -> str:
    """Whoever has a Lease, or had it last."""
    holder = (lease.get("spec") or {}).get("holderIdentity")
    return str(holder or (lease["metadata"].get("annotations") or {}).get(LAST_HOLDER) or "")


class LeaseLost(Exception):
    """Raised when the claim could not be renewed in time: whatever is in flight must end with this process."""


class Elector:
    """Claims one Lease for `identity`."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        identity: str,
        terms: Terms = USUAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._namespace, self._name = kube, namespace, name
        self.identity, self._terms, self._clock = identity, terms, clock
        self._seen: tuple[str, float] | None = None  # the version of somebody's claim, and when it was first seen
        self._held: Object | None = None
        self._until = 0.0
        self.foreign = False  # whether somebody else had it when it was looked at last
        self.holder = ""  # whoever had it when it was looked at last

    async def acquire(self) -> None:
        """Return once the Lease is ours."""
        ours = await self.claim_once()
        while not ours:
            await asyncio.sleep(self._terms.retry * random.uniform(0.8, 1.2))
            ours = await self.claim_once()
        log.info("leading", extra={"lease": self._name, "identity": self.identity})

    async def hold(self) -> None:
        """Renew for ever.

        :raises LeaseLost: when somebody has taken it, or no renewal has come through in time.
        """
        while True:
            await asyncio.sleep(self._terms.retry)
            if not await self.claim_once() and (self.foreign or self._clock() >= self._until):
                raise LeaseLost(f"the Lease {self._namespace}/{self._name} is not {self.identity}'s any more")

    async def release(self) -> None:
        """Let the next replica have it at once."""
        held, self._held = self._held, None
        if held is None:
            return
        try:
            async with asyncio.timeout(3):
                try:
                    await self._give_back(held)
                except Conflict:
                    # A renewal was under way when we were stopped: it has arrived, and we never heard of it.
                    found = await self._kube.get("Lease", self._namespace, self._name)
                    if found is not None and (found.get("spec") or {}).get("holderIdentity") == self.identity:
                        await self._give_back(found)
        except (ClusterError, TimeoutError) as error:
            log.warning("the Lease could not be released: %s", error)

    async def _give_back(self, held: Object) -> None:
        meta = held["metadata"]
        kept = {**meta, "annotations": {**(meta.get("annotations") or {}), LAST_HOLDER: self.identity}}
        spec = {**held["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        await self._kube.put({**held, "metadata": kept, "spec": spec})

    async def claim_once(self) -> bool:
        """One attempt to claim or to renew; True if the claim is ours now."""
        sent = self._clock()
        left = self._until - sent if self._until > sent else self._terms.deadline
        try:
            async with asyncio.timeout(max(0.1, min(5.0, left))):
                claimed = await self._claim()
        except (Conflict, AlreadyExists, NotFound):
            self._held = None  # somebody was faster, or an answer of ours was lost; the next try looks
            return False
        except (ClusterError, TimeoutError) as error:
            log.warning("the Lease could not be reached: %s", error)
            return False
        if claimed is None:
            return False
        self._held, self._until = claimed, sent + self._terms.deadline
        return True

    async def _claim(self) -> Object | None:
        found = self._held or await self._kube.get("Lease", self._namespace, self._name)
        if found is None:
            return await self._kube.create(self._lease(None))
        spec = found.get("spec") or {}
        holder = self.holder = str(spec.get("holderIdentity") or "")
        self.foreign = holder not in ("", self.identity) and not self._expired(found)
        if self.foreign:
            return None
        return await self._kube.put(self._lease(found))

    def _expired(self, found: Object) -> bool:
        version = str(found["metadata"]["resourceVersion"])
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
        duration = (found.get("spec") or {}).get("leaseDurationSeconds") or self._terms.duration
        return self._clock() - self._seen[1] > float(duration)

    def _lease(self, found: Object | None) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old: Object = (found or {}).get("spec") or {}
        ours = old.get("holderIdentity") == self.identity
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self._terms.duration),
            "renewTime": now,
            "acquireTime": old.get("acquireTime") if ours else now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if ours or found is None else 1),
        }
        meta = {"name": self._name, "namespace": self._namespace}
        base: Object = found or {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta}
        return {**base, "spec": spec}
