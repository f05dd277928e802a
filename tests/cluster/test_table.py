"""The table of good and bad objects gets the same verdicts from the real API server as from the memory cluster's.

Both know two kinds of refusal: what nobody lets in, and what only the operator refuses, by a condition.
"""

from __future__ import annotations

import time
from typing import Any

from cluster.conftest import Play
from cluster.plane import Plane, conditions
from objects import BAD, CHANGES, GOOD, Bad, Change, changed
from testbed.wait import awaited
from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.admission import admission
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.cluster.paths import path
from trialkeeper_operator.reconcile.ports import Invalid, Object

STRICT = {"fieldValidation": "Strict"}
DRY = {"dryRun": "All"}
LENIENT_TOO = ("both",)  # refused even by a server that is not asked to be strict


async def _refusal(kube: Kube, verb: str, where: str, body: Object, query: dict[str, str]) -> str | None:
    """What the API server says against a request, None if it takes it."""
    try:
        await kube.call(verb, where, body, query)
    except Invalid as refusal:
        return str(refusal)
    return None


async def _of_memory(body: Object, stored: Object | None = None) -> str | None:
    """What the memory cluster says against a new object, or against one that follows a stored one."""
    memory = Memory(now=time.time, admit=admission())
    try:
        if stored is None:
            await memory.create(body)
        else:
            old = await memory.create(stored)
            version = {"resourceVersion": old["metadata"]["resourceVersion"]}
            await memory.put({**body, "metadata": body["metadata"] | version})
    except Invalid as refusal:
        return str(refusal)
    return None


def test_a_good_object_is_taken_by_both(play: Play) -> None:
    async def story(plane: Plane) -> None:
        kube = await plane.kube()
        for name, changes in GOOD.items():
            body = changed(changes)
            assert await _of_memory(body) is None, name
            said = await _refusal(kube, "POST", path("Experiment", "default"), body, DRY | STRICT)
            assert said is None, f"{name}: {said}"

    play(story)


def test_a_bad_object_is_refused_by_both_or_by_the_operator_alone(play: Play) -> None:
    async def verdicts(kube: Kube, name: str, bad: Bad) -> None:
        body, where = changed(bad.changes), path("Experiment", "default")
        assert await _of_memory(body) is not None, name
        strict = await _refusal(kube, "POST", where, body, DRY | STRICT)
        lenient = await _refusal(kube, "POST", where, body, DRY)
        assert (strict is not None) == (bad.by in ("both", "strict")), f"{name}: {strict}"
        assert (lenient is not None) == (bad.by == "both"), f"{name}: {lenient}"

    async def story(plane: Plane) -> None:
        kube = await plane.kube()
        for name, bad in BAD.items():
            await verdicts(kube, name, bad)

    play(story)


def test_what_only_the_operator_refuses_gets_the_tables_sentence(play: Play) -> None:
    async def story(plane: Plane) -> None:
        kube = await plane.kube()
        namespace = await plane.namespace(kube)
        refused = {f"bad-{i}": bad for i, bad in enumerate(b for b in BAD.values() if b.by == "operator")}
        for name, bad in refused.items():
            body = changed(bad.changes)
            await kube.create({**body, "metadata": {"name": name, "namespace": namespace}})

        async def told() -> dict[str, Any]:
            found = {
                o["metadata"]["name"]: conditions(o)[names.ACCEPTED]
                async for o in kube.list(names.EXPERIMENT, namespace)
                if names.ACCEPTED in conditions(o)
            }
            return found if len(found) == len(refused) else {}

        async with plane.operator(kube, [namespace]):
            said = await awaited("a condition on each", told, seconds=30)
        for name, bad in refused.items():
            condition = said[name]
            assert (condition["status"], condition["reason"]) == ("False", names.INVALID), name
            assert condition["message"] == f"{bad.path}: {bad.sentence}"

    play(story)


def test_a_change_is_taken_by_both_or_refused_by_both(play: Play) -> None:
    async def verdict(kube: Kube, namespace: str, number: int, name: str, change: Change) -> None:
        meta = {"name": f"c{number}", "namespace": namespace}
        old, new = (changed(changes) | {"metadata": meta} for changes in (change.old, change.new))
        assert (await _of_memory(new, old) is not None) == bool(change.sentence), name
        stored = await kube.call("POST", path("Experiment", namespace), old, STRICT)
        version = {"resourceVersion": stored["metadata"]["resourceVersion"]}
        body = {**new, "metadata": meta | version}
        said = await _refusal(kube, "PUT", path("Experiment", namespace, meta["name"]), body, STRICT)
        assert (said is not None) == (bool(change.sentence) and change.by == "both"), f"{name}: {said}"

    async def story(plane: Plane) -> None:
        kube = await plane.kube()
        namespace = await plane.namespace(kube)
        for number, (name, change) in enumerate(CHANGES.items()):
            await verdict(kube, namespace, number, name, change)

    play(story)
