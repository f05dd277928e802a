"""From `kubectl delete pod` to the first new iteration, on nodes that have the image: who takes how long.

A testbed of two nodes, the chart with its defaults, one trial that reports ten times a second and saves with every
report. Each kill is split at four moments: the trainer has ended (kubelet), the next pod exists (operator), its
container runs (scheduler and kubelet), the trainer has reported (Python and SDK). The last line is one JSON object.

    python benchmarks/recovery.py [--kills 20]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cluster.bench import source
from e2e.cluster.installed import Installed, install
from testbed import cluster, images
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.cluster.access import connect
from trialkeeper_operator.reconcile.ports import Event
from trialkeeper_operator.serve.handlers import KopfSource

NAMESPACE = "recovery"
TRAINER = """
import json, time, trialkeeper
start = trialkeeper.get_checkpoint()
step = json.loads((start.to_directory() / "step").read_text()) if start else 0
while True:
    step += 1
    time.sleep(0.1)
    def save(folder):
        (folder / "step").write_text(json.dumps(step))
    trialkeeper.report({"loss": 1 / step}, checkpoint=save)
"""
EXPERIMENT = {
    "apiVersion": "trialkeeper.dev/v1alpha1",
    "kind": "Experiment",
    "metadata": {"name": "recovery"},
    "spec": {
        "objectives": [{"metric": "loss", "direction": "Minimize"}],
        "parameters": [{"name": "lr", "fixed": 0.1}],
        "maxTrials": 1,
        "checkpoint": {"frequency": 1},
        "template": {
            "spec": {
                "containers": [
                    {"name": "trainer", "image": "trialkeeper-trainer:0.1.0", "command": ["python", "-c", TRAINER]}
                ]
            }
        },
    },
}
SHARES = ("end of the trainer", "operator", "start of the container", "trainer and SDK", "total")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=20)
    kills = parser.parse_args().kills
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(cluster("bench", nodes=2))
        for target in images.TARGETS:
            running.load(images.project(target))
        installed = install(running)
        installed.kubectl("create", "namespace", NAMESPACE)
        installed.apply(NAMESPACE, EXPERIMENT)
        rows = asyncio.run(_measure(installed, kills))
    return _tell(rows)


async def _measure(installed: Installed, kills: int) -> list[tuple[float, ...]]:
    kube = await connect(str(installed.cluster.kubeconfig))
    watch = Watch(await source(str(installed.cluster.kubeconfig), [NAMESPACE]))
    rows = []
    try:
        for attempt in range(1, kills + 1):
            await watch.until(partial(watch.first_report, attempt))
            began = time.time()
            await kube.delete("Pod", NAMESPACE, f"recovery-0-a{attempt}")
            reported = await watch.until(partial(watch.first_report, attempt + 1))
            ended, made = watch.ended[attempt], watch.made[attempt + 1]
            moments = (began, ended, made, watch.ran[attempt + 1], reported)
            shares = [b - a for a, b in itertools.pairwise(moments)]
            rows.append((*shares, reported - began))
            sys.stdout.write(" ".join(f"{x:6.3f}" for x in rows[-1]) + "\n")
    finally:
        await watch.stop()
        await kube.close()
    return rows


class Watch:
    """When each attempt's pod was first seen to exist, to run and to have ended, and when its trainer reported."""

    def __init__(self, source: KopfSource) -> None:
        self.made: dict[int, float] = {}
        self.ran: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self._status: dict[str, Any] = {}
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._follow(source))

    async def _follow(self, source: KopfSource) -> None:
        async for event in source.events():
            self._hear(event, time.time())
            self._news.set()

    def _hear(self, event: Event, now: float) -> None:
        if event.kind == "Trial":
            self._status = event.object.get("status") or {}
        if event.kind != "Pod":
            return
        attempt = int(event.object["metadata"]["labels"]["trialkeeper.dev/attempt"])
        self.made.setdefault(attempt, now)
        for state in _states(event.object):
            if "running" in state:
                self.ran.setdefault(attempt, now)
            if "terminated" in state:
                self.ended.setdefault(attempt, now)
        if event.type == "DELETED":
            self.ended.setdefault(attempt, now)

    def first_report(self, attempt: int) -> float | None:
        """When the open attempt reported first, if it is this one and has."""
        pod = self._status.get("pod") or {}
        if self._status.get("attempt") != attempt or not pod.get("firstReportTime"):
            return None
        return seconds(pod["firstReportTime"])

    async def until(self, look: Callable[[], float | None]) -> float:
        async with asyncio.timeout(120):
            while (found := look()) is None:
                self._news.clear()
                await self._news.wait()
        return found

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


def _states(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        yield status.get("state") or {}


def _tell(rows: list[tuple[float, ...]]) -> int:
    columns = dict(zip(SHARES, zip(*rows, strict=True), strict=True))
    for name, column in columns.items():
        sys.stdout.write(f"{name:24} median {statistics.median(column):6.3f} s   max {max(column):6.3f} s\n")
    result = {
        "kills": len(rows),
        "operator_median_s": round(statistics.median(columns["operator"]), 3),
        "operator_max_s": round(max(columns["operator"]), 3),
        "total_median_s": round(statistics.median(columns["total"]), 3),
        "total_max_s": round(max(columns["total"]), 3),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if result["operator_median_s"] < 0.3 and result["total_median_s"] < 6 else 1


if __name__ == "__main__":
    sys.exit(main())
