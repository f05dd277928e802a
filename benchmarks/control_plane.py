"""A thousand running trials, and disruptions: how soon the replacement's pod exists, and what it costs the API server.

A real control plane with fake nodes (kwok), the operator as a process of its own with one replica. The pods of some
trials are deleted, several at once and one after the other, each trial's once. An ending counts from when this
program's own watch saw it, the replacement when it saw that. The last line is one JSON object.

    python benchmarks/control_plane.py [--trials 1000] [--kills 300]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cluster.bench import source
from cluster.plane import WRITES, Plane, study
from cluster.replicas import Replica, replica
from testbed import Cluster, cluster
from trialkeeper_operator.api import names
from trialkeeper_operator.decide import evidence
from trialkeeper_operator.reconcile.ports import Event
from trialkeeper_operator.serve.handlers import KopfSource

CRDS = Path(__file__).parents[1] / "crds"
LIMIT = 2.0  # seconds, the 99th percentile
BUDGET = 5.0  # writes for each further attempt
BURST = 10  # pods that are deleted at once, as when a node goes
PAUSE = 1.0  # seconds between two bursts
PATIENCE = 300.0

Key = tuple[str, int]  # a trial's name and an attempt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=300)
    options = parser.parse_args()
    with cluster("bench", nodes=0, kwok=4) as running, tempfile.TemporaryDirectory() as folder:
        running.kubectl("apply", "-f", str(CRDS))
        running.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
        return asyncio.run(_measure(running, Path(folder), options.trials, options.kills))


async def _measure(running: Cluster, folder: Path, trials: int, kills: int) -> int:
    plane = Plane(running)
    kube = await plane.kube()
    namespace = await plane.namespace(kube)
    watch = Watch(await source(str(running.kubeconfig), [namespace]))
    try:
        with replica(running, folder, "bench", namespace, [namespace]) as operator:
            began = time.monotonic()
            await kube.create(study("many", namespace, maxTrials=trials, parallelism=trials, ends_after="24h"))
            await watch.until(lambda: len(watch.runs) >= trials)
            sys.stdout.write(f"{trials} trials run after {time.monotonic() - began:.0f} s\n")
            before = _writes(operator)
            victims = sorted(watch.runs)[:: max(1, trials // kills)][:kills]
            for start in range(0, len(victims), BURST):
                pods = [names.pod_name(*key) for key in victims[start : start + BURST]]
                await asyncio.gather(*(kube.delete(names.POD, namespace, pod) for pod in pods))
                await asyncio.sleep(PAUSE)
            followers = {(trial, attempt + 1) for trial, attempt in victims}
            await watch.until(lambda: followers <= watch.runs)
            await asyncio.sleep(PAUSE)  # for the last status
            spent = _writes(operator) - before
            memory = operator.memory()
    finally:
        await watch.stop()
        await plane.close()
    waits = sorted(watch.made[trial, n + 1] - watch.ended[trial, n] for trial, n in victims)
    return _tell(trials, waits, spent / len(victims), memory)


def _writes(operator: Replica) -> int:
    """Writes for trials and pods that the operator has sent, refused ones too."""
    kinds = (names.TRIAL, names.POD)
    return sum(n for (verb, kind), n in operator.calls().items() if verb in WRITES and kind in kinds)


class Watch:
    """When each attempt's pod was first seen, and seen to have ended; and those that run."""

    def __init__(self, source: KopfSource) -> None:
        self.made: dict[Key, float] = {}
        self.ended: dict[Key, float] = {}
        self.runs: set[Key] = set()
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._follow(source))

    async def _follow(self, source: KopfSource) -> None:
        async for event in source.events():
            if event.kind == names.POD:
                self._hear(event, time.monotonic())
                self._news.set()

    def _hear(self, event: Event, now: float) -> None:
        labels = event.object["metadata"]["labels"]
        key = labels[names.LABEL_TRIAL], int(labels[names.LABEL_ATTEMPT])
        self.made.setdefault(key, now)
        if event.type == "DELETED" or evidence.ended(event.object, ""):
            self.ended.setdefault(key, now)
        elif (event.object.get("status") or {}).get("phase") == "Running":
            self.runs.add(key)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self._news.clear()
                await self._news.wait()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


def _tell(trials: int, waits: list[float], writes: float, memory: float) -> int:
    result = {
        "trials": trials,
        "disruptions": len(waits),
        "replacement_median_s": round(statistics.median(waits), 3),
        "replacement_p99_s": round(waits[min(len(waits) - 1, int(0.99 * len(waits)))], 3),
        "writes_per_further_attempt": round(writes, 2),
        "operator_mib": round(memory),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["replacement_p99_s"] < LIMIT and writes <= BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
