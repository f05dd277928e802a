"""Who leads: two that both think so do no harm, and two that ask the Lease never do so at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.conftest import Play
from cluster.freezer import Road, over, road
from cluster.killer import Killer
from cluster.plane import Count, Plane, study
from cluster.plane import over as verdict
from cluster.replicas import Replica, replica
from testbed import Cluster
from testbed.wait import awaited, until
from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.access import configuration
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.reconcile.ports import Object
from trialkeeper_operator.serve.leader import USUAL, Elector, LeaseLost, Terms


class Pods:
    """Every pod of a namespace that a watch has ever told of: uids by name."""

    def __init__(self, plane: Plane, namespace: str) -> None:
        self._source = plane.source([namespace])
        self.uids: dict[str, set[str]] = defaultdict(set)

    async def __aenter__(self) -> Pods:
        self._task = asyncio.create_task(self._watch())
        return self

    async def _watch(self) -> None:
        async for event in self._source.events():
            if event.kind == names.POD:
                self.uids[event.object["metadata"]["name"]].add(event.object["metadata"]["uid"])

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


@pytest.mark.timeout(240)
def test_two_operators_without_any_election(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    trials = 200

    async def story(plane: Plane) -> None:
        kube, counts = await plane.kube(), (Count(), Count())
        namespace = await plane.namespace(kube)
        async with AsyncExitStack() as stack:
            pods = await stack.enter_async_context(Pods(plane, namespace))
            for count in counts:
                await stack.enter_async_context(plane.operator(await plane.kube(counted=count), [namespace]))
            await kube.create(study("twice", namespace, maxTrials=trials, parallelism=100, ends_after="3s"))
            killer = await stack.enter_async_context(
                Killer(kube, namespace, lambda p: first(p) and int(p["metadata"]["name"].split("-")[1]) % 2 == 0)
            )
            done = await verdict(kube, namespace, "twice", seconds=200)
            with capsys.disabled():
                print(*(f"\n  {count.table()}" for count in counts))  # noqa: T201
        found = [t async for t in kube.list(names.TRIAL, namespace)]
        assert [len(uids) for uids in pods.uids.values()] == [1] * (trials + len(killer.killed))
        attempts = {t["metadata"]["name"]: t["status"]["attempt"] for t in found}
        assert attempts == {t["metadata"]["name"]: t["status"].get("disruptions", 0) + 1 for t in found}
        assert {t["status"]["phase"] for t in found} == {"Succeeded"}
        assert len(killer.killed) > trials * 0.4
        assert done["status"]["disruptions"] == sum(attempts.values()) - trials == len(killer.killed)
        assert done["status"]["counts"] == {"Succeeded": trials}

    play(story)


def first(pod: Object) -> bool:
    return bool(pod["metadata"]["labels"].get(names.LABEL_ATTEMPT) == "1")


# The Elector.

SHORT = Terms(duration=3.0, deadline=2.0, retry=0.4)


class Reign:
    """From when to when somebody believed that the Lease was theirs."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    async def of(self, elector: Elector) -> None:
        """Lead, and lose it, once."""
        await elector.acquire()
        began = time.monotonic()
        try:
            await elector.hold()
        except LeaseLost:
            pass
        finally:
            self.times.append((began, time.monotonic()))


@asynccontextmanager
async def kube_over(plane: Plane, way: Road, folder: Path, name: str) -> AsyncIterator[Kube]:
    made = Kube(await configuration(str(over(plane.cluster, way, folder / f"{name}.kubeconfig"))))
    try:
        yield made
    finally:
        await made.close()


def test_a_leader_that_hears_nothing_ends_before_the_next_begins(play: Play, tmp_path: Path) -> None:
    async def story(plane: Plane) -> None:
        kube = await plane.kube()
        namespace = await plane.namespace(kube)
        one, two = Reign(), Reign()
        async with AsyncExitStack() as stack:
            way = await stack.enter_async_context(road(plane.cluster).served())
            frozen = await stack.enter_async_context(kube_over(plane, way, tmp_path, "one"))
            tasks = [asyncio.create_task(one.of(Elector(frozen, namespace, "lease", "one", SHORT)))]
            await awaited("the first to lead", lambda: holder(kube, namespace, "lease", "one"))
            rival = Elector(kube, namespace, "lease", "two", SHORT)
            tasks.append(asyncio.create_task(two.of(rival)))
            way.freeze()
            began = time.monotonic()
            await tasks[0]
            lost = time.monotonic() - began
            await awaited("the second to lead", lambda: holder(kube, namespace, "lease", "two"))
            waited = time.monotonic() - began
            # What the first had on its way arrives now, and changes nothing.
            way.thaw()
            back = Elector(frozen, namespace, "lease", "one", SHORT)
            assert not await back.claim_once()
            assert (back.foreign, back.holder) == (True, "two")
            tasks[1].cancel()
            await asyncio.wait(tasks)
        assert lost <= SHORT.deadline + 0.5
        assert SHORT.duration - SHORT.retry <= waited <= SHORT.duration + 3 * SHORT.retry + 2
        assert one.times[0][1] < two.times[0][0]

    play(story)


async def holder(kube: Kube, namespace: str, lease: str, name: str) -> bool:
    found = await kube.get("Lease", namespace, lease)
    return found is not None and str(found["spec"].get("holderIdentity", "")).startswith(name)


def test_many_that_ask_at_once_get_one_leader(play: Play) -> None:
    async def story(plane: Plane) -> None:
        kube = await plane.kube()
        namespace = await plane.namespace(kube)
        for lease in ("a", "b", "c"):
            rivals = [Elector(kube, namespace, lease, f"r{number}", SHORT) for number in range(8)]
            assert sum(await asyncio.gather(*(rival.claim_once() for rival in rivals))) == 1

    play(story)


def test_a_lease_taken_by_force_is_lost_at_once(play: Play) -> None:
    async def story(plane: Plane) -> None:
        kube = await plane.kube()
        namespace = await plane.namespace(kube)
        held = Elector(kube, namespace, "lease", "one", SHORT)
        assert await held.claim_once()
        holding = asyncio.create_task(held.hold())
        found = await kube.get("Lease", namespace, "lease")
        assert found is not None
        await kube.put({**found, "spec": {**found["spec"], "holderIdentity": "somebody"}})
        done, _ = await asyncio.wait({holding}, timeout=5)
        assert done
        with pytest.raises(LeaseLost):
            holding.result()

    play(story)


def test_a_lease_is_given_back_though_a_renewal_was_under_way(play: Play) -> None:
    async def story(plane: Plane) -> None:
        kube = await plane.kube()
        namespace = await plane.namespace(kube)
        leaving, next_ = (Elector(kube, namespace, "lease", name, SHORT) for name in ("one", "two"))
        assert await leaving.claim_once()
        # A renewal that arrived while its answer did not: what is held is not the newest version any more.
        found = await kube.get("Lease", namespace, "lease")
        assert found is not None
        await kube.put({**found, "spec": {**found["spec"], "renewTime": "2020-01-01T00:00:00.000000Z"}})
        await leaving.release()
        assert await next_.claim_once()
        # And what is somebody else's by now is left alone.
        await leaving.release()
        assert await holder(kube, namespace, "lease", "two")

    play(story)


# Real processes.


def lead(*replicas: Replica) -> list[str]:
    return [replica.name for replica in replicas if replica.leads()]


@pytest.mark.timeout(150)
def test_the_standby_leads_soon_after_the_leader_has_been_told_to_stop(fakes: Cluster, tmp_path: Path) -> None:
    space = make_namespace(fakes)
    with ExitStack() as stack:
        one = stack.enter_context(replica(fakes, tmp_path, "one", space, [space]))
        until("the first to lead", one.leads, seconds=20)
        two = stack.enter_context(replica(fakes, tmp_path, "two", space, [space]))
        assert lead(one, two) == ["one"]
        began = time.monotonic()
        assert one.stop() == 0
        until("the second to lead", two.leads, seconds=20)
        assert time.monotonic() - began < 3
        assert not two.said("beginning anew")


@pytest.mark.timeout(150)
def test_a_lost_lease_ends_in_a_fresh_process(play: Play, fakes: Cluster, tmp_path: Path) -> None:
    space = make_namespace(fakes)

    async def told(what: str, look: Callable[[], object], seconds: float) -> None:
        """Look beside the loop, which has the road to serve."""
        await awaited(what, lambda: asyncio.to_thread(look), seconds=seconds)

    async def story(plane: Plane) -> None:
        async with AsyncExitStack() as stack:
            way = await stack.enter_async_context(road(plane.cluster).served())
            config = over(plane.cluster, way, tmp_path / "kubeconfig")
            one = stack.enter_context(replica(fakes, tmp_path, "one", space, [space], kubeconfig=config))
            await told("the first to lead", one.leads, 20)
            two = stack.enter_context(replica(fakes, tmp_path, "two", space, [space]))
            way.freeze()
            began = time.monotonic()
            await told("the loss", lambda: one.said("beginning anew"), USUAL.deadline + 10)
            assert time.monotonic() - began <= USUAL.deadline + 1
            assert not two.leads()
            # Thawed only then: a renewal that is under way would make both wait as long, and either might be first.
            await told("the second to lead", two.leads, USUAL.duration + 10)
            way.thaw()
            # The same process number, another process: it waits, and takes over when it is asked to.
            await told("the first to wait", lambda: one.get("/readyz"), 20)
            assert (one.process.poll(), one.value("trialkeeper_leader")) == (None, 0)
            assert await asyncio.to_thread(two.stop) == 0
            await told("the first to lead again", one.leads, 10)
            assert len(one.said("leading")) == 2

    play(story)


@pytest.mark.timeout(150)
def test_a_leader_whose_pod_is_not_ready_yields_to_one_whose_pod_is(fakes: Cluster, tmp_path: Path) -> None:
    space = make_namespace(fakes)
    make_pods(fakes, space, "one", "two")
    set_ready(fakes, space, one=True, two=False)
    with ExitStack() as stack:
        one = stack.enter_context(replica(fakes, tmp_path, "one", space, [space]))
        until("the first to lead", one.leads, seconds=20)
        two = stack.enter_context(replica(fakes, tmp_path, "two", space, [space]))
        until("the second to stand back", lambda: two.said("standing back for one"), seconds=20)
        # As when its node's kubelet has gone: the process lives on, and the Lease with it.
        set_ready(fakes, space, one=False, two=True)
        until("the second to lead", two.leads, seconds=60)
        until("the first to begin anew", lambda: one.said("standing back for two"), seconds=20)
        assert one.said("beginning anew")
        assert labelled(fakes, space) == ["two"]
        assert lead(one, two) == ["two"]
        # And back again: whoever stood back stands for the Lease as soon as its pod is Ready.
        set_ready(fakes, space, one=True, two=False)
        until("the first to lead again", one.leads, seconds=60)
        until("the label to follow", lambda: labelled(fakes, space) == ["one"], seconds=20)


def make_pods(fakes: Cluster, namespace: str, *pods: str) -> None:
    """Pods of replicas, as far as the API server is concerned: no scheduler and no node ever takes them."""
    labels = {f"app.kubernetes.io/{k}": v for k, v in (("name", "trialkeeper"), ("component", "operator"))}
    container = {"name": "operator", "image": "operator"}
    for name in pods:
        spec = {"schedulerName": "nobody", "containers": [container]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
        fakes.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(body))


def set_ready(fakes: Cluster, namespace: str, **pods: bool) -> None:
    for name, ready in pods.items():
        change = {"status": {"conditions": [{"type": "Ready", "status": str(ready)}]}}
        fakes.kubectl("patch", "pod", name, "-n", namespace, "--subresource=status", "-p", json.dumps(change))


def labelled(fakes: Cluster, namespace: str) -> list[str]:
    found = fakes.kubectl("get", "pods", "-n", namespace, "-l", "trialkeeper.dev/leader=true", "-o", "name")
    return [line.removeprefix("pod/") for line in found.split()]


def test_what_no_fresh_process_could_mend_ends_with_a_code(fakes: Cluster, tmp_path: Path) -> None:
    space = make_namespace(fakes)
    settings: dict[str, Any] = {"report": {"url": "https://127.0.0.1", "tlsDir": str(tmp_path / "missing")}}
    with replica(fakes, tmp_path, "one", space, [space], settings=settings, lives=False) as one:
        until("its end", lambda: one.process.poll() is not None, seconds=30)
        assert one.process.returncode == 1


def make_namespace(fakes: Cluster) -> str:
    name = f"l-{time.time_ns() % 10**9}"
    fakes.kubectl("create", "namespace", name)
    return name


# Claims.


def test_a_second_installation_stands_back(play: Play, fakes: Cluster, tmp_path: Path) -> None:
    first, second, served = (make_namespace(fakes) for _ in range(3))

    async def story(plane: Plane) -> None:
        kube = await plane.kube()
        with (
            replica(fakes, tmp_path, "mine", first, [served]) as mine,
        ):
            await awaited("it to lead", lambda: asyncio.to_thread(mine.leads), seconds=20)
            await kube.create(study("exp", served, maxTrials=2, ends_after="1h"))
            await awaited("its trials", lambda: running(kube, served, 2), seconds=30)
            with replica(fakes, tmp_path, "theirs", second, [served]) as theirs:
                await awaited("the other to lead", lambda: asyncio.to_thread(theirs.leads), seconds=20)
                await kube.create(study("late", served, maxTrials=2, ends_after="1h"))
                await awaited("four trials", lambda: running(kube, served, 4), seconds=30)
                said = await awaited(
                    "a sentence", lambda: asyncio.to_thread(lambda: theirs.said("another installation")), seconds=20
                )
                assert f"namespace {served} is served by another installation ({first}/" in said[0]["message"]
                assert "left alone" in said[0]["message"]
                assert said[0]["level"] == "error"
                calls = theirs.calls()
                asked = ("Lease", "Pod", "SelfSubjectRulesReview")  # the last is a question, which nothing is made of
                touched = {k: n for k, n in calls.items() if k[0] != "GET" and k[1] not in asked}
                assert (touched, calls["POST", "Pod"], calls["DELETE", "Pod"]) == ({}, 0, 0)
            found = await kube.get("Lease", served, "trialkeeper-serves")
            assert found is not None
            assert found["spec"]["holderIdentity"].startswith(f"{first}/")
        # Whoever leaves gives its namespaces back.
        found = await kube.get("Lease", served, "trialkeeper-serves")
        assert found is not None
        assert found["spec"]["holderIdentity"] == ""

    play(story)


async def running(kube: Kube, namespace: str, count: int) -> bool:
    found = [t async for t in kube.list(names.TRIAL, namespace)]
    return [bool((t.get("status") or {}).get("pod")) for t in found] == [True] * count
