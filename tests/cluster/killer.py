"""Deletes running pods, each trial's once: what a spot market does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.cluster.paths import path
from trialkeeper_operator.reconcile.ports import Conflict, NotFound, Object

EVERY = 0.2


def first_attempt(pod: Object) -> bool:
    return bool(pod["metadata"]["labels"].get(names.LABEL_ATTEMPT) == "1")


class Killer:
    """Kills while its block lasts. `killed` are the uids of pods that ran when they were deleted, and only those."""

    def __init__(self, kube: Kube, namespace: str, wanted: Callable[[Object], bool] = first_attempt) -> None:
        self._kube, self._namespace, self._wanted = kube, namespace, wanted
        self.killed: set[str] = set()

    async def __aenter__(self) -> Killer:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task.done():
            self._task.result()
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            async for pod in self._kube.list(names.POD, self._namespace):
                running = pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")
                if running and pod["metadata"]["uid"] not in self.killed and self._wanted(pod):
                    await self._kill(pod)
            await asyncio.sleep(EVERY)

    async def _kill(self, pod: Object) -> None:
        """Delete this very version: one that has ended meanwhile was not disrupted."""
        meta = pod["metadata"]
        conditions = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}
        try:
            await self._kube.call("DELETE", path(names.POD, self._namespace, meta["name"]), options, kind=names.POD)
        except (Conflict, NotFound):
            return
        self.killed.add(meta["uid"])
