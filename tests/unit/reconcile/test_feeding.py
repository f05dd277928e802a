"""What comes in, by the watch and by a sweep: nothing that one object says keeps the others from being heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from builders import NOW, experiment
from simulation.virtual import run
from stage import Stage
from trialkeeper_operator.api import names
from trialkeeper_operator.reconcile.loop import Operator
from trialkeeper_operator.reconcile.ports import Cluster, Event, Expired, Object

# Nothing that our CRDs let in; those of another version may.
STRANGE: dict[str, object] = {
    "types that do not sort": {"conditions": [{"type": 1, "reason": "a"}, {"type": "a", "reason": None}, {"type": []}]},
    "conditions that are none": {"conditions": 5},
    "conditions that are a table": {"conditions": {"type": "Succeeded"}},
    "no table": "a status",
    "restored": {"restored": ["x"], "conditions": [None, "x", 3]},
}


async def _started(stage: Stage, source: AsyncIterator[Event] | None = None, cluster: Cluster | None = None) -> str:
    """The first pod that an operator makes."""

    class Told:
        def events(self) -> AsyncIterator[Event]:
            return source if source is not None else stage.memory.events()

    loop = asyncio.get_running_loop()
    operator = Operator(cluster or stage.memory, Told(), now=lambda: NOW + loop.time(), sweep_interval=300.0)
    task = asyncio.ensure_future(operator.run())
    async for event in stage.memory.events():
        if event.kind == names.POD:
            task.cancel()
            await asyncio.wait({task})
            return str(event.object["metadata"]["name"])
    raise AssertionError("the watch ended")


@pytest.mark.parametrize("what", STRANGE)
def test_a_status_of_another_shape_stops_nobody(what: str, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> str:
        stage = Stage()
        await stage.began(1)
        strange = experiment("strange", uid="strange-uid") | {"status": STRANGE[what]}

        async def told() -> AsyncIterator[Event]:
            for verb in ("ADDED", "MODIFIED"):
                version = {"resourceVersion": "2" if verb == "ADDED" else "3"}
                yield Event("Experiment", verb, {**strange, "metadata": strange["metadata"] | version})
            async for event in stage.memory.events():
                yield event

        return await _started(stage, told())

    assert run(story(), limit=60.0) == "exp-0-a1"
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []


def test_an_object_that_the_cache_cannot_hold_is_said_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> str:
        stage = Stage()
        await stage.began(1)

        async def told() -> AsyncIterator[Event]:
            yield Event("Trial", "ADDED", {"kind": "Trial", "metadata": {"name": "odd", "ownerReferences": [7]}})
            async for event in stage.memory.events():
                yield event

        return await _started(stage, told())

    assert run(story(), limit=60.0) == "exp-0-a1"
    assert "Trial /odd cannot be taken in" in caplog.text


class _Forgetful:
    """A Cluster whose lists take too long a few times: their beginning is forgotten before their end is read."""

    def __init__(self, inner: Cluster) -> None:
        self.get, self.create, self.put = inner.get, inner.create, inner.put
        self.put_status, self.delete = inner.put_status, inner.delete
        self._list = inner.list
        self.left = 2

    async def list(
        self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Object]:
        if self.left:
            self.left -= 1
            raise Expired("The provided continue parameter is too old")
        async for obj in self._list(kind, namespace, labels):
            yield obj


def test_a_sweep_whose_list_is_too_old_is_made_again_later(caplog: pytest.LogCaptureFixture) -> None:
    """The watch tells nothing: only the third sweep finds the trial."""

    async def story() -> tuple[str, float]:
        stage = Stage()
        await stage.began(1)

        async def silence() -> AsyncIterator[Event]:
            await asyncio.Event().wait()
            yield Event("Trial", "DELETED", {})

        pod = await _started(stage, silence(), _Forgetful(stage.memory))
        return pod, asyncio.get_running_loop().time()

    assert run(story(), limit=3000.0) == ("exp-0-a1", 900.0)
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING"]
