"""The operator's sweep: what it writes of Experiments into the store, and what it takes away once they are gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from builders import experiment, pod
from fake_s3 import Fault, fake_s3
from faults import Fault as ClusterFault
from faults import FaultyCluster
from manifests import body, entry
from minio_server import KEYS
from stage import Stage, bare
from trialkeeper import contract, manifest, sweep
from trialkeeper.store.tree import DirectoryTree
from trialkeeper_operator.reconcile.ports import Unavailable
from trialkeeper_operator.reconcile.world import World
from trialkeeper_operator.serve import sweeping
from trialkeeper_operator.serve.metrics import Metrics
from trialkeeper_operator.serve.settings import Settings, StoreSettings
from trialkeeper_operator.serve.sweeping import GONE, StoreSweep, folder_of, tree_of

WEEK = 7 * 86_400.0


async def everywhere(namespace: str) -> bool:
    return True


class Swept(Stage):
    """A cluster, a store, and the operator that sweeps it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tree = DirectoryTree(folder)
        self.offset = 0.0
        self.metrics = Metrics()
        self.world: World = self.operator()
        self.sweeper = StoreSweep(self.world, self.tree, self.metrics, everywhere, clock=self.clock)

    def clock(self) -> float:
        """Files are as old as this machine's clock says."""
        import time

        return time.time() + self.offset

    async def made(self, name: str = "exp", **spec: Any) -> str:
        """An accepted Experiment; its folder in the store, with one trial of three checkpoints in it."""
        body = bare(experiment(name, **spec))
        created = await self.memory.create(body)
        accepted = {
            "type": "Accepted",
            "status": "True",
            "reason": "Valid",
            "lastTransitionTime": "2026-11-24T00:00:00Z",
        }
        await self.memory.put_status({**created, "status": {"conditions": [accepted]}})
        await self.show(self.world)
        folder = folder_of("default", name, created["metadata"]["uid"])
        await self.sweeper.write_wishes()
        self.fill(f"{folder}/00000")
        return folder

    def fill(self, prefix: str, count: int = 3) -> None:
        store = self.tree.at(prefix)
        store.put_new(contract.attempt_key(1), json.dumps({"base": None}).encode())
        for n in range(1, count + 1):
            data = contract.data_key(1, n, "aa")
            store.put_new(f"{data}/w", b"w" * 1024)
            said = body(iteration=n, metrics={"loss": float(n)}, data=data, files=[entry(key=f"{data}/w")])
            store.put_new(contract.manifest_key(1, n), manifest.encode(said))

    async def deleted(self, name: str = "exp") -> None:
        await self.memory.delete("Experiment", "default", name)
        await self.show(self.world)
        for raw in list(self.world.cache.names("Experiment")):
            await self.world.look("Experiment", raw)

    async def over(self) -> None:
        """Passes until an Experiment that is gone has been gone for long enough."""
        await self.sweeper.sweep()
        self.offset += GONE + 1
        await self.sweeper.sweep()

    def keys(self, folder: str) -> set[str]:
        return {item.key for item in self.tree.objects(f"{folder}/")}

    def counted(self, metric: str) -> float:
        found = self.metrics.registry.get_sample_value(metric)
        assert found is not None
        return found


def story(folder: Path, tell: Callable[[Swept], Awaitable[None]]) -> None:
    async def whole() -> None:
        await tell(Swept(folder))

    asyncio.run(whole())


DELETE = {"checkpoints": "Delete"}


def test_what_an_experiment_wants_is_in_the_store_in_every_generation(tmp_path: Path) -> None:
    async def tell(stage: Swept) -> None:
        folder = await stage.made(checkpoint={"budget": "5Gi"})
        said = sweep.written_policy(stage.tree, folder)
        assert (said["checkpoints"], said["budget"], said["name"]) == ("Keep", "5Gi", "exp")
        found = await stage.memory.get("Experiment", "default", "exp")
        assert found is not None
        await stage.memory.put({**found, "spec": {**found["spec"], "deletionPolicy": DELETE}})
        await stage.show(stage.world)
        await stage.sweeper.write_wishes()
        assert sweep.written_policy(stage.tree, folder)["checkpoints"] == "Delete"
        again = StoreSweep(stage.world, stage.tree, stage.metrics, everywhere)
        await again.write_wishes()

    story(tmp_path, tell)


def test_a_store_of_ones_own_and_what_is_not_accepted_are_left_alone(tmp_path: Path) -> None:
    async def tell(stage: Swept) -> None:
        await stage.memory.create(bare(experiment("other")))
        folder = await stage.made(storage={"volume": {"claimName": "c"}})
        assert stage.tree.folders("default/") == [folder.partition("/")[2]], "what this test has put there"
        assert sweep.written_policy(stage.tree, folder) == {}

    story(tmp_path, tell)


def test_checkpoints_go_with_an_experiment_that_says_so(tmp_path: Path) -> None:
    async def tell(stage: Swept) -> None:
        gone, kept = await stage.made("gone", deletionPolicy=DELETE), await stage.made("kept")
        before = stage.keys(kept)
        await stage.over()
        assert stage.keys(gone), "it is there"
        for name in ("gone", "kept"):
            await stage.deleted(name)
        await stage.sweeper.sweep()
        assert stage.keys(gone), "not at once"
        await stage.over()
        assert stage.keys(gone) == set()
        assert stage.keys(kept) == before
        assert stage.counted("trialkeeper_swept_bytes_total") > 3 * 1024

    story(tmp_path, tell)


def test_a_namesake_of_another_uid_is_another_experiment(tmp_path: Path) -> None:
    async def tell(stage: Swept) -> None:
        first = await stage.made(deletionPolicy=DELETE)
        await stage.deleted()
        second = await stage.made(deletionPolicy=DELETE)
        await stage.over()
        assert stage.keys(first) == set()
        assert stage.keys(second)

    story(tmp_path, tell)


def test_absence_is_believed_after_a_live_get_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list may be of before the Experiment was made."""

    async def tell(stage: Swept) -> None:
        folder = await stage.made(deletionPolicy=DELETE)

        async def nothing(*_: Any) -> Any:
            none: list[Any] = []
            for found in none:
                yield found

        monkeypatch.setattr(stage.world.cluster, "list", nothing)
        await stage.over()
        assert stage.keys(folder)

    story(tmp_path, tell)


@pytest.mark.parametrize("need", ["a base", "a result", "a restore", "a pin", "a pod"])
def test_what_somebody_needs_is_kept(need: str, tmp_path: Path) -> None:
    async def tell(stage: Swept) -> None:
        folder = await stage.made(deletionPolicy=DELETE)
        await stage.deleted()
        key = contract.inherited_key(f"{folder}/00000", 1, 3)
        heir = await stage.made("heir", **({"restoreFrom": {"configMap": "s"}} if need == "a restore" else {}))
        body: dict[str, Any] = {"kind": "Trial", "apiVersion": "trialkeeper.dev/v1alpha1", "spec": {}}
        body["metadata"] = {"name": "heir-0", "namespace": "default"}
        if need == "a base":
            await stage.memory.create({**body, "spec": {"base": [key]}})
        elif need == "a result":
            made = await stage.memory.create(body)
            await stage.memory.put_status({**made, "status": {"checkpoint": {"key": key}}})
        elif need == "a pin":
            stage.tree.at(f"{folder}/00000").put_new(contract.pin_key(f"{heir}/00000", 1, 1, 3), b"{}")
        elif need == "a pod":
            running = pod()
            running["metadata"]["labels"]["trialkeeper.dev/experiment"] = "exp"
            env = [{"name": "A"}, {"name": contract.ENV_PREFIX, "value": f"{folder}/00000"}]
            running["spec"]["containers"][0]["env"] = env
            running["metadata"].pop("ownerReferences")
            await stage.memory.create(bare(running))
        await stage.over()
        await stage.over()
        assert stage.keys(folder)
        if need == "a pod":
            await stage.memory.delete("Pod", "default", "exp-0-a1", grace_seconds=0)
            await stage.over()
            assert stage.keys(folder) == set()

    story(tmp_path, tell)


def test_a_folder_that_speaks_of_another_one_is_kept(tmp_path: Path) -> None:
    """Trainers may write below their experiment's folder."""

    async def tell(stage: Swept) -> None:
        folder = "default/exp-11111111"
        stage.fill(f"{folder}/00000")
        said = {"v": 1, "namespace": "default", "name": "nobody", "uid": "22222222", "checkpoints": "Delete"}
        stage.tree.at(folder).put_new(contract.policy_key(1), json.dumps(said).encode())
        await stage.over()
        assert stage.keys(folder)

    story(tmp_path, tell)


def test_budgets_and_orphans(tmp_path: Path) -> None:
    async def tell(stage: Swept) -> None:
        folder = await stage.made(
            checkpoint={"budget": "2Ki"}, objectives=[{"metric": "loss", "direction": "Maximize"}]
        )
        stage.tree.at(f"{folder}/00000").put_new("data/a000001-i000000000009-aa/w", b"orphan")
        await stage.sweeper.sweep()
        assert stage.counted("trialkeeper_swept_objects_total") == 1
        assert stage.counted("trialkeeper_store_checkpoint_bytes") == 2048 + 6
        stage.offset = WEEK
        await stage.sweeper.sweep()
        assert stage.counted("trialkeeper_store_checkpoint_bytes") == 2048
        assert stage.counted("trialkeeper_store_over_budget_bytes") == 0
        assert len(stage.tree.at(f"{folder}/00000").list("manifests/")) == 2
        assert stage.metrics.registry.get_sample_value("trialkeeper_sweeps_total", {"result": "whole"}) == 2

    story(tmp_path, tell)


def test_a_pass_that_takes_too_long_goes_on_where_it_left_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def tell(stage: Swept) -> None:
        folders = sorted([await stage.made(name) for name in ("a", "b", "c")])
        for folder in folders:
            stage.tree.at(f"{folder}/00000").put_new("probes/0a", b"")
        stage.offset = WEEK
        looks = iter([False, False, True, False, False, False, False, False, False])
        monkeypatch.setattr(sweeping, "_until", lambda seconds: Looking(lambda: next(looks)))
        await stage.sweeper.sweep()
        assert [bool(stage.tree.at(f"{f}/00000").list("probes/")) for f in folders] == [False, True, True]
        await stage.sweeper.sweep()
        assert [bool(stage.tree.at(f"{f}/00000").list("probes/")) for f in folders] == [False, False, False]
        assert stage.metrics.registry.get_sample_value("trialkeeper_sweeps_total", {"result": "part"}) == 1

    story(tmp_path, tell)


class Looking:
    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __enter__(self) -> Callable[[], bool]:
        return self._stop

    def __exit__(self, *_: object) -> None:
        pass


def test_a_store_or_a_cluster_that_is_away_is_trouble_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name, value in zip(("access-key", "secret-key"), KEYS.values(), strict=True):
        (keys / name).write_text(f"{value}\n")

    async def tell(stage: Swept) -> None:
        with fake_s3() as server:
            settings = StoreSettings(mode="embedded", endpoint=server.endpoint, bucket="trials", credentials_dir=keys)
            assert sweeping.swept(Settings(store=settings))
            assert not sweeping.swept(Settings(store=settings.model_copy(update={"mode": "external"})))
            stage.tree = tree_of(settings, tmp_path)  # type: ignore[assignment]
            stage.sweeper = StoreSweep(stage.world, stage.tree, stage.metrics, everywhere, clock=stage.clock)
            folder = await stage.made(deletionPolicy=DELETE)
            await stage.deleted()
            await stage.sweeper.sweep()
            stage.offset = GONE + 1
            server.fault = lambda request: Fault(403)
            with pytest.raises(OSError, match="HTTP 403"):
                await stage.sweeper.sweep()
            (keys / "access-key").unlink()
            with pytest.raises(OSError, match="keys cannot be read"):
                await stage.sweeper.sweep()
            (keys / "access-key").write_text(KEYS["AWS_ACCESS_KEY_ID"])
            server.fault = lambda request: Fault(403) if request.method == "DELETE" else None
            with pytest.raises(OSError, match="HTTP 403"):
                await stage.sweeper.sweep()
            server.fault = lambda request: None
            stage.world.cluster = FaultyCluster(stage.memory, lambda call: ClusterFault.UNAVAILABLE)
            with pytest.raises(Unavailable):
                await stage.sweeper.sweep()
            assert stage.keys(folder)
            stage.world.cluster = stage.memory
            monkeypatch.setattr(sweeping, "NOTICE", 0.0)
            monkeypatch.setattr(sweeping, "INTERVAL", 0.0)
            monkeypatch.setattr(sweeping, "RETRY", 0.0)
            removed, here, remove = asyncio.Event(), asyncio.get_running_loop(), sweep.remove

            def told(*args: Any, **more: Any) -> Any:
                found = remove(*args, **more)
                here.call_soon_threadsafe(removed.set)
                return found

            monkeypatch.setattr(sweep, "remove", told)
            running = asyncio.create_task(stage.sweeper.run())
            await removed.wait()
            assert not stage.keys(folder)
            running.cancel()

    story(tmp_path / "store", tell)
