"""Generated Experiments: taken or refused with a sentence, changed or not, over in the end, gone without a trace."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import event, given

from simulation.hostile.garbage import examples
from simulation.hostile.neighbours import HOSTILE, Neighbours, beside, sentence
from simulation.hostile.specs import experiments
from trialkeeper_operator.api import names
from trialkeeper_operator.reconcile.ports import Invalid, Object

TRIALS = 3  # of a generated one, at most: what it does with more it does with these


def _conditions(obj: Object) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in (obj.get("status") or {}).get("conditions", ())}


def _settled(obj: Object) -> bool:
    """Whether it has come to its end, or says what it waits for."""
    spec, said = obj["spec"], _conditions(obj)
    if said.get(names.SUCCEEDED, {}).get("status", "Unknown") != "Unknown":
        return True
    refused = said.get(names.ACCEPTED, {})
    if refused.get("status") == "False" and sentence(refused.get("message")):
        return True
    return bool(spec.get("suspend")) or spec.get("parallelism") == 0 or names.STALLED in said


async def _left(here: Neighbours) -> list[str]:
    """What is there of it."""
    found = []
    for kind in (names.EXPERIMENT, names.TRIAL, names.POD):
        found += [o["metadata"]["name"] async for o in here.memory.list(kind)]
    return [name for name in found if name.startswith(HOSTILE)]


@examples(40)
@given(experiments(), experiments())
def test_a_generated_experiment_is_taken_or_refused_and_comes_to_its_end(first: Object, then: Object) -> None:
    where = {"name": HOSTILE, "namespace": "default"}

    def few(body: Object) -> Object:
        spec = body["spec"]
        most = spec.get("maxTrials") if isinstance(spec, dict) else None
        less = {"maxTrials": TRIALS} if isinstance(most, int) and most > TRIALS and most is not True else {}
        return {**body, "metadata": where, "spec": {**spec, **less} if less else spec}

    async def tell(here: Neighbours) -> None:
        try:
            stored = await here.memory.create(few(first))
        except Invalid as refusal:
            event("refused")
            assert str(refusal)
            return
        event("taken")
        await asyncio.sleep(30.0)
        now = await here.memory.get(names.EXPERIMENT, "default", HOSTILE)
        assert now is not None
        version = {"resourceVersion": now["metadata"]["resourceVersion"]}
        change = {**few(then), "metadata": {**where, **version}}
        try:
            # Most changes of everything are refused; those of one field may be taken.
            await here.memory.put({**change, "spec": {**stored["spec"], **_editable(change["spec"])}})
            event("changed")
        except Invalid as refusal:
            event("change refused")
            assert str(refusal)
        await asyncio.sleep(1500.0)
        now = await here.memory.get(names.EXPERIMENT, "default", HOSTILE)
        assert now is not None
        assert _settled(now), now
        await here.memory.delete(names.EXPERIMENT, "default", HOSTILE)
        await asyncio.sleep(120.0)
        assert await _left(here) == []

    beside(tell)


def _editable(spec: Any) -> dict[str, Any]:
    """The fields of a spec that somebody may edit, as a person would: not all at once."""
    fields = ("parallelism", "maxTrials", "suspend", "enqueue", "failurePolicy", "timeouts", "checkpoint", "stop")
    return {field: spec[field] for field in fields if isinstance(spec, dict) and field in spec}
