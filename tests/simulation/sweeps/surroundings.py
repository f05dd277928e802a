"""What a story is told in: a Memory with nodes and room for so many pods, and an ear for what is logged as an error."""

from __future__ import annotations

import logging

from simulation.trainer import Node
from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.decide import evidence
from trialkeeper_operator.reconcile.ports import Object, QuotaExceeded


class Surroundings:
    """A Memory as a cluster: with nodes, and with room for so many pods."""

    def __init__(self, memory: Memory, node: Node, quota: int | None) -> None:
        self._memory, self._node, self._quota = memory, node, quota
        self.list, self.put = memory.list, memory.put
        self.put_status, self.delete = memory.put_status, memory.delete

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        if kind != names.NODE:
            return await self._memory.get(kind, namespace, name)
        ready = {"type": "Ready", "status": "Unknown" if name in self._node.silent else "True"}
        return {"kind": kind, "metadata": {"name": name}, "status": {"conditions": [ready]}}

    async def create(self, body: Object, *, dry_run: bool = False) -> Object:
        if body["kind"] == names.POD and self._quota is not None and not dry_run:
            pods = [p async for p in self._memory.list(names.POD) if not evidence.ended(p, "trainer")]
            there = await self._memory.get(names.POD, body["metadata"]["namespace"], body["metadata"]["name"])
            if len(pods) >= self._quota and there is None:
                raise QuotaExceeded(f"exceeded quota: pods={self._quota}")
        return await self._memory.create(body, dry_run=dry_run)


class Errors(logging.Handler):
    """What the operator logs as an error is a bug."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.found.append(f"logged: {record.getMessage()}: {error!r}")
