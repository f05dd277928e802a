"""A write that somebody else's has thwarted: any of them, a create too, is made again soon, and is no error."""

from __future__ import annotations

import asyncio

import pytest

from builders import NOW
from faults import Call, Fault, FaultyCluster
from simulation.virtual import run
from stage import Stage
from trialkeeper_operator.api import names
from trialkeeper_operator.reconcile.loop import Operator


@pytest.mark.parametrize("kind", [names.TRIAL, names.POD])
def test_a_quota_that_others_count_with_at_the_same_time_delays_a_create(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The API server answers 409 then, and no other object has the name."""
    refused = 0

    def thwarted(call: Call) -> Fault | None:
        nonlocal refused
        first = call.verb == "create" and call.kind == kind and refused < 2
        refused += first
        return Fault.CONFLICT if first else None

    async def story() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        stage = Stage()
        await stage.began(1)
        if kind == names.TRIAL:
            await stage.memory.delete(names.TRIAL, "default", "exp-0")
        operator = Operator(FaultyCluster(stage.memory, thwarted), stage.memory, now=lambda: NOW + loop.time())
        task = asyncio.ensure_future(operator.run())
        async for event in stage.memory.events():
            if event.kind == names.POD:
                task.cancel()
                await asyncio.wait({task})
                return event.object["metadata"]["name"], loop.time()
        raise AssertionError("the watch ended")

    name, seconds = run(story(), limit=60.0)
    assert (name, refused, seconds <= 2.0) == ("exp-0-a1", 2, True)
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
