"""One API server in memory, and operators that see of it what they are shown: for stories of a few passes."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from builders import NOW, experiment, trial
from faults import Call, Fault, FaultyCluster
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile import experiment as reconciler
from trialkeeper_operator.reconcile.queue import KeyedQueue
from trialkeeper_operator.reconcile.world import World
from trialkeeper_operator.state.snapshot import DATA_KEY, decode

NAME = ("default", "exp")


def harmless(_: Call) -> Fault | None:
    return None


def bare(obj: dict[str, Any], **meta: Any) -> dict[str, Any]:
    server = ("uid", "generation", "resourceVersion", "creationTimestamp")
    return {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k not in server} | meta}


class Stage:
    """One API server, and operators that see of it what they are shown."""

    def __init__(self) -> None:
        self.time = NOW
        numbers = itertools.count(1)
        self.memory = Memory(now=lambda: self.time, ids=lambda: f"{next(numbers):08d}-uid")

    def operator(self, fault: Callable[[Call], Fault | None] = harmless) -> World:
        self.calls = FaultyCluster(self.memory, fault)
        return World(self.calls, lambda: self.time, KeyedQueue(lambda: self.time))

    async def began(self, trials: int = 2) -> dict[str, Any]:
        """The experiment with its trials running."""
        made = await self.memory.create(bare(experiment(maxTrials=trials, parallelism=trials)))
        for index in range(trials):
            body = trial(f"exp-{index}", index=index, spec={"experimentUid": made["metadata"]["uid"]})
            body["metadata"]["labels"] = {"trialkeeper.dev/experiment": "exp"}
            body["metadata"]["ownerReferences"][0]["uid"] = made["metadata"]["uid"]
            await self.memory.create(bare(body))
            await self.says(index, "Running")
        return made

    async def says(self, index: int, phase: str, *, loss: float = 0.5) -> None:
        found = await self.memory.get("Trial", "default", f"exp-{index}")
        assert found is not None
        metrics = {"loss": {"last": loss, "min": loss, "max": 1.0}}
        status = {"phase": phase, "attempt": 1, "closed": int(phase != "Running"), "metrics": metrics}
        await self.memory.put_status({**found, "status": status})

    async def show(self, world: World) -> None:
        """Let an operator see everything as it is now."""
        for obj in list(self.memory.objects()):
            world.seen(obj["kind"], obj)

    async def snapshot(self, name: str = "exp-snapshot") -> tuple[str, list[str]]:
        """(phase of the experiment, phases of the trials) in a snapshot."""
        found = await self.memory.get("ConfigMap", "default", name)
        assert found is not None, name
        of, rows = decode(base64.b64decode(found["binaryData"][DATA_KEY]))
        return of["status"]["phase"], [row["status"].get("phase", "") for row in rows]

    async def phase(self) -> str:
        found = await self.memory.get("Experiment", *NAME)
        assert found is not None
        return str(found["status"]["phase"])


async def settled(world: World) -> None:
    """Passes over the experiment until one of them wants to wait."""
    for _ in range(9):
        if await reconciler.reconcile(world, NAME) != 0.0:
            return
    raise AssertionError("busy without end")


def story(tell: Callable[[Stage], Awaitable[None]]) -> None:
    async def whole() -> None:
        await tell(Stage())

    asyncio.run(whole())
