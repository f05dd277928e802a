"""A pod that does not start, told by a kubelet: what becomes of it, of its trial, and where the next one may run."""

from __future__ import annotations

from typing import Any

from builders import experiment
from stage import Stage, bare, story
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.reconcile import experiment as experiments
from trialkeeper_operator.reconcile import trial as trials
from trialkeeper_operator.reconcile.world import World

NAME = ("default", "exp-0")


async def begun(stage: Stage, parallelism: int = 1, **spec: Any) -> World:
    """An operator whose trials have their first pods on node-1."""
    world = stage.operator()
    world.site = Site(store="s3://bucket")
    world.nodes_closed = True
    await stage.memory.create(bare(experiment(maxTrials=2, parallelism=parallelism, **spec)))
    await stage.show(world)
    await experiments.reconcile(world, ("default", "exp"))
    for index in range(parallelism):
        await passes(stage, world, index)
        await stage.memory.bind("default", f"exp-{index}-a1", "node-1")
    return world


async def passes(stage: Stage, world: World, index: int = 0) -> dict[str, Any]:
    """The trial after what an operator makes of it as it is now; a pod that it deletes is gone at once."""
    for _ in range(4):
        await stage.show(world)
        await trials.reconcile(world, ("default", f"exp-{index}"))
        for pod in [o for o in stage.memory.objects() if o["kind"] == "Pod" and o["metadata"].get("deletionTimestamp")]:
            meta = pod["metadata"]
            await stage.memory.delete("Pod", "default", meta["name"], uid=meta["uid"], grace_seconds=0)
            world.vanished("Pod", dict(pod))
    found = await stage.memory.get("Trial", "default", f"exp-{index}")
    assert found is not None
    return dict(found["status"])


async def says(stage: Stage, pod: str, state: dict[str, Any], phase: str = "Pending") -> None:
    found = await stage.memory.get("Pod", "default", pod)
    assert found is not None
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(stage.time)}
    entry = {"name": "trainer", "image": "t", "state": state}
    await stage.memory.put_status(
        {**found, "status": {"phase": phase, "conditions": [scheduled], "containerStatuses": [entry]}}
    )


NOT_PULLED = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}


def test_an_image_that_no_pod_has_ever_had_ends_the_trial() -> None:
    async def tell(stage: Stage) -> None:
        world = await begun(stage)
        await says(stage, "exp-0-a1", NOT_PULLED)
        assert (await passes(stage, world))["reason"] == "ImageNotPulled"
        stage.time += 601
        status = await passes(stage, world)
        assert (status["phase"], status["history"][0]["class"]) == ("Failed", "UserError")
        assert status["message"] == "the image t cannot be pulled: not found (timeouts.startSeconds is 600)"
        assert await stage.memory.get("Pod", "default", "exp-0-a1") is None

    story(tell)


def test_an_image_that_another_trials_pod_has_is_tried_again_on_another_node() -> None:
    async def tell(stage: Stage) -> None:
        world = await begun(stage, parallelism=2)
        await says(stage, "exp-0-a1", NOT_PULLED)
        await says(stage, "exp-1-a1", {"running": {"startedAt": stamp(stage.time)}}, "Running")
        stage.time += 601
        status = await passes(stage, world)
        last = status["history"][0]
        assert (status["phase"], last["class"], last["node"]) == ("Waiting", "Infrastructure", "node-1")
        stage.time += 60
        await passes(stage, world)
        pod = await stage.memory.get("Pod", "default", "exp-0-a2")
        assert pod is not None
        (term,) = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        assert term["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]

    story(tell)


SPOT = [{"name": "spot", "nodeSelector": {"pool": "spot"}}, {"name": "on-demand", "nodeSelector": {"pool": "od"}}]


def test_want_of_room_moves_a_trial_to_the_next_placement_and_no_crash_in_between_moves_it_twice() -> None:
    async def tell(stage: Stage) -> None:
        world = await begun(stage, placements=SPOT, timeouts={"schedulingSeconds": 300})
        found = await stage.memory.get("Pod", "default", "exp-0-a1")
        assert found is not None
        assert found["spec"]["nodeSelector"] == {"pool": "spot"}
        unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        conditions = [unscheduled | {"lastTransitionTime": stamp(stage.time)}]
        await stage.memory.put_status({**found, "status": {"phase": "Pending", "conditions": conditions}})
        assert (await passes(stage, world))["placement"] == {"name": "spot", "disruptions": 0}
        stage.time += 301
        status = await passes(stage, world)
        assert (status["attempt"], status["placement"]["name"]) == (2, "on-demand")
        await stage.memory.delete("Pod", "default", "exp-0-a2", grace_seconds=0)
        other = stage.operator()
        other.site = world.site
        status = await passes(stage, other)
        assert status["placement"]["name"] == "on-demand"
        pods = [o for o in stage.memory.objects() if o["kind"] == "Pod"]
        assert [pod["spec"]["nodeSelector"] for pod in pods] == [{"pool": "od"}] * len(pods)

    story(tell)
