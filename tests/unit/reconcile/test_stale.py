"""An operator that has come up with what was there some time ago: it starts no pod of an attempt that is closed."""

from __future__ import annotations

from stage import Stage, story
from trialkeeper_operator.reconcile import trial as reconciler

TRIAL = ("default", "exp-0")


def test_an_open_attempt_without_a_pod_is_looked_at_live_before_it_gets_one() -> None:
    async def tell(stage: Stage) -> None:
        await stage.began(1)
        stale, other = stage.operator(), stage.operator()
        await stage.show(stale)  # attempt 1 is open, and its pod not there yet
        await stage.show(other)
        for _ in range(2):
            await reconciler.reconcile(other, TRIAL)
            await stage.show(other)
        pod = await stage.memory.get("Pod", "default", "exp-0-a1")
        assert pod is not None
        await stage.memory.delete("Pod", "default", "exp-0-a1")
        other.vanished("Pod", pod)
        for _ in range(4):
            await reconciler.reconcile(other, TRIAL)
            await stage.show(other)
        pods = [pod["metadata"]["name"] async for pod in stage.memory.list("Pod")]
        assert pods == ["exp-0-a2"]
        for _ in range(3):
            await reconciler.reconcile(stale, TRIAL)
        assert [pod["metadata"]["name"] async for pod in stage.memory.list("Pod")] == pods

    story(tell)
