"""What a person does by hand in a story: pauses, suspends, stops, tries again, forks; each to its end, then the next.

Whatever else happens, each of these has an outcome that must come; what does not come is a violation.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from simulation.trainer import Node
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import Conflict, Object

ACTS = ("pause", "suspend", "stop", "retry", "retry", "fork", "fork")
LOOK = 5.0  # virtual seconds between two looks at what becomes of it
LONG = 1500.0  # virtual seconds after which even an operator that has missed every event knows
PATIENCE = 40_000.0  # virtual seconds for what waits for other trials to end


class Person:
    """Does one thing after the other. `note` tells, `wrong` accuses, `more` hears that there will be another trial."""

    def __init__(
        self,
        memory: Memory,
        node: Node,
        rng: random.Random,
        note: Callable[[str], None],
        wrong: Callable[[str], None],
        more: Callable[[], None],
    ) -> None:
        self._memory, self._node, self._rng = memory, node, rng
        self._note, self._wrong, self._more = note, wrong, more

    async def act(self, what: str) -> None:
        """Carry one act out; nothing comes of it if there is no trial for it."""
        self._note(f"by hand: {what}")
        await getattr(self, f"_{what}")()

    async def _pause(self) -> None:
        trial = await self._any(lambda t: True)
        if trial is None:
            return
        await self._edit("Trial", trial, desired="Pause")
        if self._rng.random() < 0.5:
            await asyncio.sleep(self._rng.uniform(0.0, 60.0))
        else:
            await asyncio.sleep(LONG)
            await self._rests(trial)
        await self._edit("Trial", trial, desired="Run")

    async def _suspend(self) -> None:
        await self._edit("Experiment", "exp", suspend=True)
        if self._rng.random() < 0.5:
            await asyncio.sleep(self._rng.uniform(0.0, 60.0))
        else:
            await asyncio.sleep(LONG)
            for trial in await self._trials():
                await self._rests(trial["metadata"]["name"])
            found = await self._memory.get("Experiment", "default", "exp")
            assert found is not None
            verdicts = {c["type"]: c["status"] for c in found["status"]["conditions"]}
            if verdicts.get("Succeeded") == "Unknown" and verdicts.get("Suspended") != "True":
                self._wrong("the experiment does not say that it is suspended")
        await self._edit("Experiment", "exp", suspend=False)

    async def _rests(self, name: str) -> None:
        """That no pod of a trial lives, and that it says so."""
        found = await self._memory.get("Trial", "default", name)
        status = (found or {}).get("status") or {}
        if status.get("phase") not in ("Paused", "Succeeded", "Failed", "Stopped"):
            self._wrong(f"{name} is {status.get('phase')}, and was told to rest {LONG:g} s ago")
        for run in self._node.running.values():
            if run.alive and not run.zombie and run.pod["metadata"]["labels"]["trialkeeper.dev/trial"] == name:
                self._wrong(f"{run.pod['metadata']['name']} lives, and its trial was told to rest {LONG:g} s ago")

    async def _stop(self) -> None:
        trial = await self._any(lambda t: True)
        if trial is not None:
            await self._edit("Trial", trial, desired="Stop")
            await self._until(trial, lambda s: s.get("phase") in ("Succeeded", "Failed", "Stopped"), "is not over")

    async def _retry(self) -> None:
        trial = await self._any(lambda t: (t.get("status") or {}).get("phase") in ("Failed", "Stopped"))
        if trial is None:
            return
        found = await self._memory.get("Trial", "default", trial)
        assert found is not None
        number = found["spec"].get("retries", 0) + 1
        await self._edit("Trial", trial, retries=number, desired="Run")
        await self._until(trial, lambda s: (s.get("retried") or {}).get("number", 0) == number, "was not tried again")

    async def _fork(self) -> None:
        trial = await self._any(lambda t: bool((t.get("status") or {}).get("checkpoint")))
        found = await self._memory.get("Trial", "default", trial) if trial else None
        of = await self._memory.get("Experiment", "default", "exp")
        if found is None or of is None:
            return
        iteration = found["status"]["checkpoint"]["iteration"]
        base = {"trial": trial, **({"iteration": iteration} if self._rng.random() < 0.5 else {})}
        entries = of["spec"].get("enqueue") or []
        self._more()
        more = of["spec"]["maxTrials"] + 1
        await self._edit("Experiment", "exp", enqueue=[*entries, {"base": base}], maxTrials=more)
        end = asyncio.get_running_loop().time() + PATIENCE
        while not any(t["spec"].get("enqueued") == len(entries) for t in await self._trials()):
            if asyncio.get_running_loop().time() > end:
                self._wrong(f"there is no trial of enqueue[{len(entries)}]")
                return
            await asyncio.sleep(LOOK)

    # What a person sees and writes.

    async def _trials(self) -> list[Object]:
        found = [t async for t in self._memory.list("Trial")]
        return sorted(found, key=lambda t: t["spec"]["index"])

    async def _any(self, wanted: Callable[[Object], bool]) -> str | None:
        names = [str(t["metadata"]["name"]) for t in await self._trials() if wanted(t)]
        return self._rng.choice(names) if names else None

    async def _edit(self, kind: str, name: str, **spec: Any) -> None:
        while True:
            found = await self._memory.get(kind, "default", name)
            assert found is not None
            try:
                await self._memory.put({**found, "spec": {**found["spec"], **spec}})
                return
            except Conflict:
                continue

    async def _until(self, name: str, holds: Callable[[Object], bool], otherwise: str) -> None:
        end = asyncio.get_running_loop().time() + LONG
        while True:
            found = await self._memory.get("Trial", "default", name)
            if holds((found or {}).get("status") or {}):
                return
            if asyncio.get_running_loop().time() > end:
                self._wrong(f"{name} {otherwise} after {LONG:g} s")
                return
            await asyncio.sleep(LOOK)
