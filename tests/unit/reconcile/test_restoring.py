"""Going on from a snapshot: whatever is cut short, whoever else is at it, and whatever the snapshot says."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest

from builders import experiment
from faults import Call, Fault
from stage import NAME, Stage, bare, harmless, settled, story
from trialkeeper import contract
from trialkeeper_operator.reconcile import trial as trial_reconciler
from trialkeeper_operator.reconcile.ask import ask
from trialkeeper_operator.reconcile.world import World
from trialkeeper_operator.state import snapshot
from trialkeeper_operator.state.snapshot import DATA_KEY, SHA_ANNOTATION


async def donated(stage: Stage, *phases: str) -> str:
    """The short uid of an experiment that was deleted with its trials in these phases."""
    made = await stage.began(len(phases))
    for index, phase in enumerate(phases):
        await stage.says(index, phase)
    world = stage.operator()
    await stage.show(world)
    await settled(world)
    await stage.memory.delete("Experiment", *NAME)
    return str(made["metadata"]["uid"])[:8]


async def heir(stage: Stage, name: str = "exp", **spec: Any) -> None:
    given = {"maxTrials": 4, "parallelism": 1, "restoreFrom": {"configMap": "exp-snapshot"}, **spec}
    await stage.memory.create(bare(experiment(name, **given)))


async def trials(stage: Stage) -> list[dict[str, Any]]:
    found = [obj async for obj in stage.memory.list("Trial")]
    return sorted(found, key=lambda t: t["spec"]["index"])


async def accepted(stage: Stage) -> tuple[str, str]:
    found = await stage.memory.get("Experiment", *NAME)
    assert found is not None
    condition = next(c for c in found["status"]["conditions"] if c["type"] == "Accepted")
    return condition["status"], condition["message"]


@pytest.mark.parametrize("seen", [False, True])
def test_trials_are_taken_over_and_what_is_over_does_not_run_again(seen: bool) -> None:
    async def tell(stage: Stage) -> None:
        short = await donated(stage, "Succeeded", "Running", "Failed")
        await heir(stage)
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        found = await trials(stage)
        assert [t["status"]["phase"] for t in found] == ["Succeeded", "Pending", "Failed"]
        assert found[1]["spec"]["base"] == [contract.inherited_key(f"default/exp-{short}/00001", 0, 0)]
        assert [t["spec"]["seed"] for t in found] == [5, 5, 5]
        of = await stage.memory.get("Experiment", *NAME)
        assert of is not None
        assert of["status"]["restored"] == {"experiment": "exp", "uid": f"{short}-uid", "trials": 3, "finished": 2}
        assert of["status"]["counts"] == {"Failed": 1, "Pending": 1, "Succeeded": 1}
        for t in found:
            if seen:
                await stage.show(world)
            await trial_reconciler.reconcile(world, ("default", t["metadata"]["name"]))
        started = [obj["metadata"]["name"] async for obj in stage.memory.list("Pod")]
        assert started == ["exp-1-a1"]
        assert (await stage.snapshot(f"exp-snapshot-{short}"))[1] == ["Succeeded", "Running", "Failed"]
        assert (await stage.snapshot())[1] == ["Succeeded", "Pending", "Failed"]

    story(tell)


def test_under_another_name_the_old_snapshot_stays_where_it_is() -> None:
    async def tell(stage: Stage) -> None:
        await donated(stage, "Succeeded", "Running")
        await heir(stage, "other")
        world = stage.operator()
        await stage.show(world)
        from trialkeeper_operator.reconcile import experiment as reconciler

        for _ in range(3):
            await reconciler.reconcile(world, ("default", "other"))
        assert [t["metadata"]["name"] for t in await trials(stage)][:2] == ["other-0", "other-1"]
        assert (await stage.snapshot())[1] == ["Succeeded", "Running"]
        assert (await stage.snapshot("other-snapshot"))[1][:2] == ["Succeeded", "Pending"]

    story(tell)


@pytest.mark.parametrize("name", ["exp-0", "exp-1"])
def test_no_trial_runs_before_all_are_taken_over(name: str) -> None:
    async def tell(stage: Stage) -> None:
        await donated(stage, "Succeeded", "Running")
        await heir(stage)
        writes = 0

        def third(call: Call) -> Fault | None:
            nonlocal writes
            writes += call.writes
            return Fault.UNAVAILABLE if writes >= 4 else None

        world = stage.operator(third)
        await stage.show(world)
        with pytest.raises(Exception, match="drawn"):
            await settled(world)
        other = stage.operator()
        await stage.show(other)
        await trial_reconciler.reconcile(other, ("default", name))
        assert [obj async for obj in stage.memory.list("Pod")] == []

    story(tell)


@pytest.mark.parametrize("at", range(16))
@pytest.mark.parametrize("how", [Fault.UNAVAILABLE, Fault.APPLIED_UNAVAILABLE, Fault.CONFLICT])
def test_restoring_survives_a_fault_at_any_call(at: int, how: Fault) -> None:
    async def tell(stage: Stage) -> None:
        short = await donated(stage, "Succeeded", "Running")
        await heir(stage)
        stale = stage.operator()
        await stage.show(stale)
        for attempt in range(2):
            world = stage.operator((lambda call: how if call.number == at else None) if attempt == 0 else harmless)
            await stage.show(world)
            try:
                await settled(world)
            except Exception as error:
                assert "drawn" in str(error)
        await settled(stale)
        assert [t["status"]["phase"] for t in await trials(stage)][:2] == ["Succeeded", "Pending"]
        assert (await stage.snapshot(f"exp-snapshot-{short}"))[1] == ["Succeeded", "Running"]
        assert (await stage.snapshot())[1][:2] == ["Succeeded", "Pending"]

    story(tell)


def test_a_trial_of_the_old_experiment_is_waited_for() -> None:
    async def tell(stage: Stage) -> None:
        await donated(stage, "Running")
        await heir(stage)
        old = bare(experiment("exp-0"))
        await stage.memory.create({**old, "kind": "Trial", "spec": {"experiment": "gone", "index": 0}})
        world = stage.operator()
        await stage.show(world)
        from trialkeeper_operator.reconcile import experiment as reconciler

        assert await reconciler.reconcile(world, NAME) == 30.0
        await stage.memory.delete("Trial", "default", "exp-0")
        world.vanished("Trial", {**old, "kind": "Trial"})
        found = await stage.memory.get("Trial", "default", "exp-0")
        assert found is None
        await settled(world)
        assert (await trials(stage))[0]["status"]["phase"] == "Pending"

    story(tell)


def changed(config_map: dict[str, Any], change: Any) -> dict[str, Any]:
    """A snapshot with another document in it, as somebody may write it who knows how."""
    document = json.loads(gzip.decompress(base64.b64decode(config_map["binaryData"][DATA_KEY])))
    change(document)
    data = base64.b64encode(gzip.compress(json.dumps(document).encode())).decode()
    meta = {**config_map["metadata"], "annotations": {}}
    return {**config_map, "metadata": meta, "binaryData": {DATA_KEY: data}}


def deep(document: dict[str, Any]) -> None:
    column: dict[str, Any] = {"all": 1}
    for _ in range(400):
        column = {"of": {"a": column}}
    document["spec"]["parameters"] = column


def wide(document: dict[str, Any]) -> None:
    document["trials"] = 100_000
    document["spec"] = {k: {"all": None} for k in document["spec"]}
    document["status"] = {k: {"of": {str(i): {"all": 1} for i in range(1000)}} for k in document["status"]}


SPOILT: dict[str, tuple[Any, str]] = {
    "no data": (lambda c: {**c, "binaryData": {}}, "binaryData has no snapshot.json.gz"),
    "text instead": (lambda c: {k: v for k, v in c.items() if k != "binaryData"} | {"data": {"a": "b"}}, "has no"),
    "no base64": (lambda c: {**c, "binaryData": {DATA_KEY: "=%="}}, "is not base64|not what was written"),
    "cut short": (
        lambda c: {
            **c,
            "binaryData": {DATA_KEY: base64.b64encode(base64.b64decode(c["binaryData"][DATA_KEY])[:-9]).decode()},
        },
        "its sha256 is not that of",
    ),
    "another schema": (lambda c: changed(c, lambda d: d.update(schemaVersion=2)), "schemaVersion is not 1"),
    "no trials": (lambda c: changed(c, lambda d: d.pop("trials")), "experiment or trials is missing"),
    "another namespace": (lambda c: changed(c, lambda d: d["experiment"].update(namespace="x")), "of namespace x"),
    "no uid": (lambda c: changed(c, lambda d: d["experiment"].pop("uid")), "does not say of which experiment"),
    "a value beyond the space": (
        lambda c: changed(c, lambda d: d["spec"].update(parameters={"all": {"lr": 9.0}})),
        "trial 0 does not fit spec.parameters: lr must be between",
    ),
    "a parameter that nobody knows": (
        lambda c: changed(c, lambda d: d["spec"].update(parameters={"all": {"lr": 0.01, "x": 1}})),
        "x is not active",
    ),
    "a row twice": (lambda c: changed(c, lambda d: d["spec"].update(index={"all": 0})), "trial 0 stands twice"),
    "NaN": (lambda c: changed(c, lambda d: d["status"].update(trainedSeconds={"all": float("nan")})), "no number"),
    "too deep": (lambda c: changed(c, deep), "does not fit|cannot be read|too deep"),
    "too wide": (lambda c: changed(c, wide), "more than 4000000 values"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_cannot_be_gone_on_from_is_said_in_one_sentence(what: str) -> None:
    spoil, words = SPOILT[what]

    async def tell(stage: Stage) -> None:
        await donated(stage, "Succeeded", "Running")
        stored = await stage.memory.get("ConfigMap", "default", "exp-snapshot")
        assert stored is not None
        meta = {k: stored["metadata"][k] for k in ("name", "namespace", "annotations")}
        await stage.memory.delete("ConfigMap", "default", "exp-snapshot")
        await stage.memory.create(spoil({**stored, "metadata": meta}))
        await heir(stage)
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        verdict, message = await accepted(stage)
        assert verdict == "False"
        assert message.startswith("spec.restoreFrom: ConfigMap exp-snapshot: ")
        import re

        assert re.search(words, message), message
        assert await trials(stage) == []
        before = len(stage.calls.calls)
        await settled(world)
        assert not any(call.writes for call in stage.calls.calls[before:]), "it is said once"
        await stage.memory.delete("ConfigMap", "default", "exp-snapshot")
        await stage.memory.create({**stored, "metadata": meta})
        await settled(world)
        assert (await accepted(stage))[0] == "True"

    story(tell)


def test_a_missing_snapshot_is_waited_for() -> None:
    async def tell(stage: Stage) -> None:
        await heir(stage)
        world = stage.operator()
        await stage.show(world)
        from trialkeeper_operator.reconcile import experiment as reconciler

        assert await reconciler.reconcile(world, NAME) == 30.0
        verdict, message = await accepted(stage)
        assert (verdict, "does not exist in namespace default" in message) == ("False", True)

    story(tell)


async def asked(stage: Stage, world: World, index: int) -> dict[str, Any]:
    of = world.cache.experiment(NAME)
    assert of is not None
    found: dict[str, Any] = ask(of, world.cache.trials_of(of), index, {})["spec"]["parameters"]
    return found


@pytest.mark.parametrize("algorithm", ["TPE", "Random", "QMC"])
def test_suggestions_after_a_restore_are_those_of_a_run_that_nobody_interrupted(algorithm: str) -> None:
    async def tell(stage: Stage) -> None:
        search = {"algorithm": algorithm, "seed": 3}
        search |= {"settings": {"startupTrials": 3}} if algorithm == "TPE" else {}
        await stage.memory.create(bare(experiment(search=search, maxTrials=12, parallelism=8)))
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        for index in range(6):
            await stage.says(index, "Succeeded" if index != 2 else "Failed", loss=1.0 / (index + 1))
        stage.time += 100
        await stage.show(world)
        await settled(world)
        assert len((await stage.snapshot())[1]) == 8, "it was written before the last four were asked for"
        before = [await asked(stage, world, index) for index in (14, 15, 16)]
        of = [(t["spec"]["parameters"], t["spec"]["seed"], t["spec"].get("note")) for t in await trials(stage)]
        assert len(of) == 12
        await stage.memory.delete("Experiment", *NAME)
        await heir(stage, search=search, maxTrials=12, parallelism=8)
        other = stage.operator()
        await stage.show(other)
        await settled(other)
        assert [(t["spec"]["parameters"], t["spec"]["seed"], t["spec"].get("note")) for t in await trials(stage)] == of
        assert [await asked(stage, other, index) for index in (14, 15, 16)] == before

    story(tell)


@pytest.mark.parametrize("policy", ["Keep", "Delete"])
def test_the_snapshot_outlives_the_experiment_unless_it_is_to_go_with_it(policy: str) -> None:
    async def tell(stage: Stage) -> None:
        await stage.memory.create(bare(experiment(deletionPolicy={"snapshot": policy}, maxTrials=1)))
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        assert await stage.memory.get("ConfigMap", "default", "exp-snapshot") is None, "there is nothing in it yet"
        await settled(world)
        await stage.memory.delete("Experiment", *NAME)
        found = await stage.memory.get("ConfigMap", "default", "exp-snapshot")
        assert (found is None) == (policy == "Delete")
        stage.time += 100
        await settled(world)  # who has not heard of the deletion
        found = await stage.memory.get("ConfigMap", "default", "exp-snapshot")
        assert (found is None) == (policy == "Delete")

    story(tell)


def test_a_policy_that_changes_changes_the_snapshots_owner() -> None:
    async def tell(stage: Stage) -> None:
        await stage.memory.create(bare(experiment(maxTrials=1)))
        world = stage.operator()
        for policy in ("Delete", "Keep"):
            await stage.show(world)
            await settled(world)
            found = await stage.memory.get("Experiment", *NAME)
            assert found is not None
            await stage.memory.put({**found, "spec": {**found["spec"], "deletionPolicy": {"snapshot": policy}}})
            await stage.show(world)
            stage.time += 100
            await settled(world)
            stored = await stage.memory.get("ConfigMap", "default", "exp-snapshot")
            assert stored is not None
            assert bool(stored["metadata"].get("ownerReferences")) == (policy == "Delete")

    story(tell)


def test_a_snapshot_that_was_set_aside_can_be_gone_on_from_and_has_no_owner() -> None:
    async def tell(stage: Stage) -> None:
        short = await donated(stage, "Succeeded", "Running")
        stored = await stage.memory.get("ConfigMap", "default", "exp-snapshot")
        assert stored is not None
        copy = snapshot.aside(stored, f"exp-snapshot-{short}")
        assert "ownerReferences" not in copy["metadata"]
        await stage.memory.create(copy)
        await heir(stage, restoreFrom={"configMap": f"exp-snapshot-{short}"})
        world = stage.operator()
        await stage.show(world)
        await settled(world)
        assert [t["status"]["phase"] for t in await trials(stage)][:2] == ["Succeeded", "Pending"]
        assert copy["metadata"]["annotations"][SHA_ANNOTATION]

    story(tell)
