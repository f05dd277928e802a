"""Whose a namespace is: of two installations that could serve it, the second stands back and says so.

The claim is a Lease in the namespace itself, since that is the one place both can see; a claim that nobody has
renewed for a while is free. An installation for every namespace claims only where it has seen an Experiment. That it
is there all the same, one with a list of namespaces learns from its own rights: the chart lets every service account
get an object that there is not, named like the installation, and everybody may ask what their own rights are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.reconcile.ports import ClusterError, Object
from trialkeeper_operator.serve.leader import Elector, Terms, last_holder

log = logging.getLogger(__name__)

LEASE = "trialkeeper-serves"
TERMS = Terms(duration=180.0, deadline=120.0, retry=45.0)
SIGN = "installations"  # the resource of which every service account may get what is named like an installation
_RIGHTS = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
_LOOK_AGAIN = 30.0  # seconds until a namespace that is somebody else's is asked for again


class Claims:
    """The namespaces that this installation (`identity`: its namespace and release) serves.

    `listed`: it has a list of them, and so no right to see an installation for every namespace.
    """

    def __init__(
        self, kube: Kube, identity: str, *, listed: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kube, self._identity, self._clock = kube, identity, clock
        self._listed = listed
        self._claims: dict[str, Elector] = {}
        self._checked: dict[str, tuple[float, bool]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def serves(self, namespace: str) -> bool:
        """Whether a namespace is ours; claimed at the first question."""
        async with self._locks.setdefault(namespace, asyncio.Lock()):
            checked = self._checked.get(namespace)
            age = self._clock() - checked[0] if checked else float("inf")
            if checked is not None and age < (TERMS.deadline if checked[1] else _LOOK_AGAIN):
                return checked[1]
            ours = await self._claim(namespace)
            self._checked[namespace] = (self._clock(), ours)
            return ours

    async def _claim(self, namespace: str) -> bool:
        if self._listed and namespace not in self._claims:
            everywhere = await self._everywhere(namespace)
            if everywhere:
                self._stand_back(namespace, f"{everywhere}, for every namespace")
                return False
        claim = self._claims.setdefault(
            namespace, Elector(self._kube, namespace, LEASE, self._identity, TERMS, self._clock)
        )
        if await claim.claim_once():
            return True
        if claim.foreign:
            self._stand_back(namespace, claim.holder)
            return False
        return True  # the Lease cannot be reached; conditional writes keep even two of us harmless

    def _stand_back(self, namespace: str, other: str) -> None:
        log.error(
            "namespace %s is served by another installation (%s): its Experiments are left alone. "
            "Uninstall one of them, or give each its own watchNamespaces.",
            namespace,
            other,
        )

    async def _everywhere(self, namespace: str) -> str:
        """The installation for every namespace that was here before us; empty if there is none, or nobody can tell."""
        try:
            lease = await self._kube.get("Lease", namespace, LEASE)
            if lease is not None and last_holder(lease) == self._identity:
                return ""
            question: Object = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectRulesReview",
                "spec": {"namespace": namespace},
            }
            answer = await self._kube.call("POST", _RIGHTS, question, kind=question["kind"])
        except ClusterError as error:
            log.warning("whether another installation serves namespace %s cannot be seen: %s", namespace, error)
            return ""
        rules = (answer.get("status") or {}).get("resourceRules") or ()
        signs = (r for r in rules if names.GROUP in (r.get("apiGroups") or ()) and SIGN in (r.get("resources") or ()))
        return next((name for r in signs for name in r.get("resourceNames") or () if name != self._identity), "")

    async def run(self) -> None:
        """Renew every claim until cancelled."""
        while True:
            await asyncio.sleep(TERMS.retry)
            await self.renew()

    async def renew(self) -> None:
        """Renew every claim once; those of namespaces that are gone are forgotten."""
        for namespace, claim in list(self._claims.items()):
            ours = await claim.claim_once()
            if not ours and not claim.foreign and await self._gone(namespace):
                self._claims.pop(namespace)
                self._checked.pop(namespace, None)
            else:
                self._checked[namespace] = (self._clock(), not claim.foreign)

    async def _gone(self, namespace: str) -> bool:
        """Whether a namespace is gone for sure; where namespaces may not be read, nobody knows."""
        try:
            return await self._kube.get("Namespace", "", namespace) is None
        except ClusterError:
            return False

    async def release(self) -> None:
        """Give all of them back."""
        for claim in self._claims.values():
            await claim.release()
