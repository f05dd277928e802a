"""Entries of `enqueue` become trials, whenever they are appended: each once, in their order, before the search."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, experiment
from stage import NAME, Stage, bare, settled, story
from trialkeeper import contract
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.reconcile.ask import limit
from trialkeeper_operator.reconcile.world import World

Object = dict[str, Any]


async def trials(stage: Stage) -> list[Object]:
    return sorted([t async for t in stage.memory.list("Trial")], key=lambda t: t["spec"]["index"])


async def edit(stage: Stage, **spec: Any) -> None:
    found = await stage.memory.get("Experiment", *NAME)
    assert found is not None
    await stage.memory.put({**found, "spec": {**found["spec"], **spec}})


async def look(stage: Stage, world: World) -> None:
    for _ in range(2):
        await stage.show(world)
        await settled(world)
        stage.time += 2  # counts alone are not written at once


def condition(obj: Object | None, type_: str) -> tuple[str, str, str] | None:
    assert obj is not None
    found = {c["type"]: (c["status"], c["reason"], c["message"]) for c in obj["status"]["conditions"]}
    return found.get(type_)


async def create(stage: Stage, **spec: Any) -> World:
    await stage.memory.create(bare(experiment(**spec)))
    world = stage.operator()
    await look(stage, world)
    return world


async def saved(stage: Stage, index: int, iteration: int, phase: str = "Running") -> None:
    found = await stage.memory.get("Trial", "default", f"exp-{index}")
    assert found is not None
    ref = {"attempt": 1, "iteration": iteration, "key": contract.manifest_key(1, iteration), "time": stamp(NOW)}
    status = {"phase": phase, "attempt": 1, "closed": int(phase != "Running"), "checkpoint": ref}
    await stage.memory.put_status({**found, "status": status})


def test_an_entry_that_is_appended_to_a_running_experiment_is_the_next_trial() -> None:
    async def tell(stage: Stage) -> None:
        first = {"name": "first", "parameters": {"lr": 0.001}}
        world = await create(stage, enqueue=[first], maxTrials=6, parallelism=3)
        later = [{"name": "later", "parameters": {"lr": 0.002}}, {"name": "last", "parameters": {"lr": 0.003}}]
        await edit(stage, enqueue=[first, *later], parallelism=6)
        await look(stage, world)
        found = await trials(stage)
        assert [(t["spec"].get("name"), t["spec"].get("enqueued")) for t in found] == [
            ("first", 0),
            (None, None),
            (None, None),
            ("later", 1),
            ("last", 2),
            (None, None),
        ]
        assert [found[i]["spec"]["parameters"]["lr"] for i in (0, 3, 4)] == [0.001, 0.002, 0.003]
        of = await stage.memory.get("Experiment", *NAME)
        assert of is not None
        assert of["status"]["enqueued"] == 3

    story(tell)


def test_without_max_trials_each_appended_entry_is_one_more() -> None:
    async def tell(stage: Stage) -> None:
        body = experiment()
        del body["spec"]["maxTrials"]
        await stage.memory.create(bare(body))
        world = stage.operator()
        await look(stage, world)
        assert len(await trials(stage)) == 1
        await stage.says(0, "Succeeded")
        await look(stage, world)
        assert await stage.phase() == "Succeeded"
        await edit(stage, enqueue=[{"parameters": {"lr": 0.001}}])
        await look(stage, world)
        assert [t["spec"].get("enqueued") for t in await trials(stage)] == [None, 0]
        assert await stage.phase() == "Running"

    story(tell)


def test_what_max_trials_leaves_no_room_for_is_said_and_made_once_there_is_room() -> None:
    async def tell(stage: Stage) -> None:
        world = await create(stage, maxTrials=2)
        for index in range(2):
            await stage.says(index, "Succeeded")
        await edit(stage, enqueue=[{"parameters": {"lr": 0.001}}])
        await look(stage, world)
        said = condition(await stage.memory.get("Experiment", *NAME), "Enqueued")
        assert said == ("False", "NoRoom", "enqueue has 1 more than maxTrials leaves room for: raise it")
        assert (await stage.phase(), len(await trials(stage))) == ("Succeeded", 2)
        await edit(stage, maxTrials=3)
        await look(stage, world)
        assert [t["spec"].get("enqueued") for t in await trials(stage)] == [None, None, 0]
        said = condition(await stage.memory.get("Experiment", *NAME), "Enqueued")
        assert said is not None
        assert said[0] == "True"

    story(tell)


def test_a_fork_has_its_donors_parameters_but_for_those_that_are_given() -> None:
    async def tell(stage: Stage) -> None:
        world = await create(stage, maxTrials=4, parallelism=2)
        donor = (await trials(stage))[0]
        await saved(stage, 0, 40)
        older = {"base": {"trial": "exp-0", "iteration": 12}, "parameters": {"lr": 0.05}}
        forks = [{"base": {"trial": "exp-0"}}, older]
        await edit(stage, enqueue=forks, parallelism=4)
        await look(stage, world)
        _, _, same, other = [t["spec"] for t in await trials(stage)]
        prefix = f"default/exp-{donor['spec']['experimentUid'][:8]}/00000"
        assert (same["fork"], other["fork"]) == (
            contract.inherited_key(prefix, 1, 40),
            contract.inherited_key(prefix, 0, 12),
        )
        assert same["parameters"] == donor["spec"]["parameters"]
        assert other["parameters"] == {"lr": 0.05}
        raw = await stage.memory.get("Experiment", *NAME)
        assert raw is not None
        of = Experiment.from_object(raw)
        assert world.awaited(of, "exp-0") == [12, 40]
        assert world.awaited(of, "exp-1") == []

    story(tell)


def test_a_fork_waits_for_its_donor_and_says_so() -> None:
    async def tell(stage: Stage) -> None:
        world = await create(stage, maxTrials=3, parallelism=2)
        await saved(stage, 0, 8)
        await edit(stage, enqueue=[{"base": {"trial": "exp-0", "iteration": 12}}], parallelism=3)
        await look(stage, world)
        assert len(await trials(stage)) == 2
        of = await stage.memory.get("Experiment", *NAME)
        assert of is not None
        assert "not yet of 12" in world.held[of["metadata"]["uid"]].message
        await saved(stage, 0, 12)
        await look(stage, world)
        assert len(await trials(stage)) == 3

    story(tell)


def test_an_entry_that_can_never_be_is_passed_over_and_holds_nothing_up() -> None:
    async def tell(stage: Stage) -> None:
        forks = [{"base": {"trial": "exp-99"}}, {"parameters": {"lr": 0.001}}]
        world = await create(stage, maxTrials=2, parallelism=2, enqueue=forks)
        assert [t["spec"].get("enqueued") for t in await trials(stage)] == [1, None]
        of = await stage.memory.get("Experiment", *NAME)
        said = condition(of, "Enqueued")
        assert said == (
            "False",
            "BaseMissing",
            "enqueue[0] is passed over: there is no Trial exp-99 in namespace default",
        )
        assert of is not None
        assert (of["status"]["enqueued"], of["status"]["passedOver"]) == (2, 1)
        await look(stage, world)
        assert len(await trials(stage)) == 2

    story(tell)


def test_what_is_enqueued_takes_no_point_of_a_grid_away() -> None:
    async def tell(stage: Stage) -> None:
        grid: dict[str, Any] = {
            "parameters": [{"name": "n", "int": {"min": 1, "max": 3}}],
            "search": {"algorithm": "Grid"},
        }
        body = experiment(parallelism=9, enqueue=[{"parameters": {"n": 3}}], **grid)
        del body["spec"]["maxTrials"]
        await stage.memory.create(bare(body))
        world = stage.operator()
        await look(stage, world)
        assert [t["spec"]["parameters"]["n"] for t in await trials(stage)] == [3, 1, 2, 3]
        await edit(stage, enqueue=[{"parameters": {"n": 3}}, {"parameters": {}}])
        await look(stage, world)
        assert [t["spec"]["parameters"]["n"] for t in await trials(stage)] == [3, 1, 2, 3, 2]

    story(tell)


@pytest.mark.parametrize(("most", "entries", "number"), [(None, 0, 1), (None, 3, 3), (2, 3, 2), (9, 3, 9)])
def test_how_many_trials_an_experiment_can_have(most: int | None, entries: int, number: int) -> None:
    body = experiment(enqueue=[{"parameters": {}}] * entries)
    body["spec"].pop("maxTrials")
    body["spec"] |= {"maxTrials": most} if most else {}
    assert limit(Experiment.from_object(body)) == number
