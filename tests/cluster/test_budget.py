"""What a trial costs the API server: at most six writes for its first attempt, five for each further one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cluster.conftest import Play
from cluster.killer import Killer
from cluster.plane import WRITES, Plane, over, study
from cluster.replicas import replica, requests
from testbed import Cluster

FIRST, FURTHER = 6, 5
SHARED = 0.2  # writes for each attempt that the experiment itself may cost: its status, its snapshot
REHEARSAL = 1  # the first pod is asked for once without being made


def writes(calls: Counter[tuple[str, str]], *kinds: str) -> int:
    """Writes of some kinds; the one PATCH of all is the label on the operator's own pod."""
    return sum(n for (verb, kind), n in calls.items() if verb in WRITES - {"PATCH"} and kind in kinds)


def table(calls: Counter[tuple[str, str]]) -> str:
    return ", ".join(f"{verb} {kind} {n}" for (verb, kind), n in sorted(calls.items()))


def judge(calls: Counter[tuple[str, str]], first: int, further: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Compare the counts with the budget, and tell them."""
    own, shared = writes(calls, "Trial", "Pod"), writes(calls, "Experiment", "ConfigMap")
    with capsys.disabled():
        print(f"\n  {first} first attempts, {further} further: {own} writes for trials, {shared} for the experiment")  # noqa: T201
        print(f"  {writes(calls, 'Event')} Events; all calls: {table(calls)}")  # noqa: T201
    assert own <= FIRST * first + FURTHER * further + REHEARSAL
    assert shared <= SHARED * (first + further)


@pytest.mark.timeout(240)
def test_500_trials_200_at_a_time(
    play: Play, fakes: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = 500

    async def story(plane: Plane) -> None:
        kube = await plane.kube()
        namespace = await plane.namespace(kube)
        before = requests(fakes)
        with replica(fakes, tmp_path, "budget", namespace, [namespace]) as running:
            body = study("many", namespace, maxTrials=trials, parallelism=200, ends_after="2s")
            await kube.create(body)
            done = await over(kube, namespace, "many", seconds=200)
            after, calls = requests(fakes), running.calls()
            with capsys.disabled():
                print(f"\n  the operator's memory: {running.memory():.0f} MiB at most")  # noqa: T201
        assert done["status"]["counts"] == {"Succeeded": trials}
        judge(calls, trials, 0, capsys)
        seen = after - before
        # The server's own count: one pod for each trial and no other, one number for each attempt.
        assert seen["POST", "pods", 201] == trials
        assert seen["POST", "trials", 201] == trials
        status = sum(n for (verb, resource, _), n in seen.items() if (verb, resource) == ("PUT", "trials/status"))
        assert status == calls["PUT", "Trial"]

    play(story)


@pytest.mark.timeout(240)
def test_100_trials_each_disrupted_once(
    play: Play, fakes: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = 100

    async def story(plane: Plane) -> None:
        kube = await plane.kube()
        namespace = await plane.namespace(kube)
        with replica(fakes, tmp_path, "disrupted", namespace, [namespace]) as running:
            await kube.create(study("torn", namespace, maxTrials=trials, parallelism=50, ends_after="5s"))
            async with Killer(kube, namespace) as killer:
                done = await over(kube, namespace, "torn", seconds=200)
            calls = running.calls()
        assert done["status"]["counts"] == {"Succeeded": trials}
        assert done["status"]["disruptions"] == len(killer.killed) > trials * 0.9
        judge(calls, trials, len(killer.killed), capsys)

    play(story)
