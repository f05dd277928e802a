"""Where trainers' reports arrive: the report Service selects the leader's pod by a label, while that pod is Ready.

A leader whose pod is not Ready hears nothing. That happens when its node's kubelet is gone and its containers live on:
they go on renewing the Lease, and no other replica would ever be asked. So a leader yields to a replica whose pod is
Ready while its own is not, and does not stand again before that has changed. Where no pod is Ready, all stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.reconcile.ports import ClusterError, Object

log = logging.getLogger(__name__)

LABEL_LEADER = f"{names.GROUP}/leader"
INTERVAL = 5.0  # seconds between two looks at the replicas' pods
LOOKS = 2  # so many in a row must show a better replica: one probe that was late is no reason
_ALIKE = tuple(f"app.kubernetes.io/{part}" for part in ("name", "instance", "component"))  # labels of all replicas


class Outdone(Exception):
    """Raised when this replica leads and its pod is not Ready, while another one's is."""


def ready(pod: Mapping[str, Any]) -> bool:
    """Whether a Service may send to a pod, as the API server knows it."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return not pod["metadata"].get("deletionTimestamp") and any(
        c.get("type") == "Ready" and c.get("status") == "True" for c in conditions
    )


def better(pods: Sequence[Mapping[str, Any]], own: str) -> str | None:
    """The pod whose replica should lead rather than that of the pod `own`, or None."""
    mine = next((pod for pod in pods if pod["metadata"]["name"] == own), None)
    if mine is None or ready(mine):
        return None
    return next((str(pod["metadata"]["name"]) for pod in pods if ready(pod)), None)


class Endpoint:
    """The label of one replica's pod, and of the others'."""

    def __init__(self, kube: Kube, namespace: str, pod: str) -> None:
        self._kube, self._namespace, self._pod = kube, namespace, pod
        self._alike: dict[str, str] = {LABEL_LEADER: "true"}

    async def leave(self) -> None:
        """This replica does not lead (any more)."""
        try:
            labels = (await self._set(self._pod, None))["metadata"].get("labels") or {}
            self._alike = {name: labels[name] for name in _ALIKE if name in labels} or self._alike
        except ClusterError as error:
            _not_set(error)

    async def wait(self) -> None:
        """Return once no other replica should lead rather than this one."""
        while True:
            try:
                found = better(await self._pods(), self._pod)
            except ClusterError as error:
                log.warning("the replicas' pods could not be listed: %s", error)
                return  # the Lease decides
            if found is None:
                return
            log.warning("standing back for %s: this pod is not Ready, so trainers' reports would not arrive", found)
            await asyncio.sleep(INTERVAL)

    async def stay(self) -> None:
        """See to it that reports arrive here, for ever and whatever becomes of the label.

        :raises Outdone: if they cannot, and would arrive at another replica.
        """
        looks = 0
        while True:
            found = await self._take()
            looks = looks + 1 if found else 0
            if looks == LOOKS:
                raise Outdone(f"this pod is not Ready, so trainers' reports do not arrive: {found} may lead")
            await asyncio.sleep(INTERVAL)

    async def _take(self) -> str | None:
        """Have the label, alone; whoever should have it instead."""
        try:
            pods = await self._pods()
            labelled = [p["metadata"]["name"] for p in pods if LABEL_LEADER in (p["metadata"].get("labels") or {})]
            for name in labelled:
                if name != self._pod:
                    await self._set(name, None)
            if self._pod not in labelled:
                await self._set(self._pod, "true")
        except ClusterError as error:
            _not_set(error)
            return None
        return better(pods, self._pod)

    async def _pods(self) -> list[Object]:
        return [pod async for pod in self._kube.list(names.POD, self._namespace, self._alike)]

    async def _set(self, pod: str, leader: str | None) -> Object:
        change: Object = {"metadata": {"labels": {LABEL_LEADER: leader}}}
        return await self._kube.patch(names.POD, self._namespace, pod, change)


def _not_set(error: ClusterError) -> None:
    log.warning("the leader's label could not be set, so pods' reports may not arrive: %s", error)
