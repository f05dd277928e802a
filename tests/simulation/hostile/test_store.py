"""A store in which one trial's folder holds garbage: the sweep goes on, and takes away what others want taken away."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from builders import experiment
from manifests import body, entry
from simulation.hostile.garbage import VALUES, examples, spoiled
from simulation.sweeps.surroundings import Errors
from stage import Stage, bare
from trialkeeper import contract, history, manifest, sweep
from trialkeeper.store.tree import DirectoryTree
from trialkeeper_operator.serve.metrics import Metrics
from trialkeeper_operator.serve.sweeping import GONE, StoreSweep, folder_of

AT = "2026-11-24T00:00:00Z"
GOOD_MANIFEST = json.loads(manifest.encode(body()))
GOOD_POLICY = {"v": 1, "checkpoints": "Delete", "generation": 1, "uid": "x", "budget": "1Gi", "numToKeep": 1}
JSON = st.one_of(spoiled(GOOD_MANIFEST), spoiled(GOOD_POLICY), VALUES).map(lambda said: json.dumps(said).encode())
BYTES = (
    JSON
    | st.binary(max_size=40)
    | st.sampled_from(
        (b"", b"[" * 20_000, b"null", b"\xff\xfe", b'{"base": 1e999}', b'{"training_iteration": 1e999}\n')
    )
)
KEYS = st.sampled_from(
    (
        contract.manifest_key(1, 4),
        contract.manifest_key(999_999, 999_999_999_999),
        contract.attempt_key(1),
        contract.attempt_key(2),
        contract.ended_key(1),
        contract.results_key(1),
        contract.doomed_key(1, 4),
        contract.pin_key("default/exp-00000000/00000", 1, 1, 4),
        "pins/nobody.json",
        "manifests/a1-i1.json",
        "data/a000001-i000000000001-aa/w",
        "trial.json",
    )
)


async def everywhere(namespace: str) -> bool:
    return True


async def _swept(folder: Path, found: dict[str, bytes], policy: bytes) -> None:
    stage, tree, ahead = Stage(), DirectoryTree(folder), [0.0]
    world = stage.operator()

    def clock() -> float:
        import time

        return time.time() + ahead[0]  # files are as old as this machine's clock says

    sweeper = StoreSweep(world, tree, Metrics(), everywhere, clock=clock)
    folders = {}
    for name in ("exp", "odd"):
        made = await stage.memory.create(bare(experiment(name, deletionPolicy={"checkpoints": "Delete"})))
        accepted = {"type": "Accepted", "status": "True", "reason": "Valid", "lastTransitionTime": AT}
        await stage.memory.put_status({**made, "status": {"conditions": [accepted]}})
        folders[name] = folder_of("default", name, made["metadata"]["uid"])
    await stage.show(world)
    await sweeper.write_wishes()
    healthy, odd = (tree.at(f"{folders[name]}/00000") for name in ("exp", "odd"))
    data = contract.data_key(1, 1, "aa")
    healthy.put_new(f"{data}/w", b"w")
    healthy.put_new(contract.manifest_key(1, 1), manifest.encode(body(data=data, files=[entry(key=f"{data}/w")])))
    for key, value in found.items():
        odd.put_new(key, value)
    tree.at(folders["odd"]).put_new(contract.policy_key(2), policy)
    await sweeper.sweep()
    assert {item.key for item in tree.objects(f"{folders['exp']}/00000/")} >= {f"{folders['exp']}/00000/{data}/w"}
    # What a trainer, or a person, reads there is a part of it, or nothing.
    assert all(isinstance(record, dict) for record in history.records(odd).values())
    assert history.last_iteration(odd, 1) >= 0
    assert {c.iteration for c in sweep.read(odd)} <= {4, 999_999_999_999}
    for name in ("exp", "odd"):
        await stage.memory.delete("Experiment", "default", name)
        await world.look("Experiment", ("default", name))
    for _ in range(2):
        await sweeper.sweep()
        ahead[0] += GONE + 1
    await sweeper.sweep()
    left: list[Any] = [item.key for item in tree.objects(f"{folders['exp']}/")]
    assert [key for key in left if "/00000/" in key] == []


@examples(25)
@given(st.dictionaries(KEYS, BYTES, max_size=5), BYTES)
def test_whatever_lies_in_one_folder_the_sweep_comes_to_the_next_one(found: dict[str, bytes], policy: bytes) -> None:
    errors, logger = Errors(), logging.getLogger("trialkeeper_operator")
    logger.addHandler(errors)
    try:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_swept(Path(folder), found, policy))
    finally:
        logger.removeHandler(errors)
    assert errors.found == []
