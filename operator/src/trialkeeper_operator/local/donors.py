"""What an experiment goes on from, on one machine: a snapshot in an older journal, and the checkpoints beside it.

Runs stand side by side, each with its journal, its older journals, and its store. The snapshot of an experiment
is in the journals of the run that has its name. Checkpoints are never changed once they are committed, so they are
linked into the new run's store, which then needs the old run no more.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trialkeeper import contract
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.cluster.body import SERVER_FIELDS
from trialkeeper_operator.cluster.journal import JournalCorrupt, replay
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.decide.restore import Donor, RestoreRefused, Row
from trialkeeper_operator.local.definition import NAMESPACE
from trialkeeper_operator.reconcile import restore
from trialkeeper_operator.reconcile.ports import Object
from trialkeeper_operator.state.cache import owner_uid
from trialkeeper_operator.state.snapshot import config_map, encode, name_of


async def bring(memory: Memory, raw: Mapping[str, Any], run: Path) -> None:
    """Bring the snapshot that a new experiment goes on from into its memory, and the checkpoints into its store.

    :raises RestoreRefused: if there is none, or it cannot be gone on from.
    """
    source = (raw["spec"].get("restoreFrom") or {}).get("configMap")
    if source is None or await memory.get(names.EXPERIMENT, NAMESPACE, raw["metadata"]["name"]) is not None:
        return
    experiment = Experiment.from_object({**raw, "metadata": {**raw["metadata"], "namespace": NAMESPACE}})
    found, folder = find(source, run)
    stored = await memory.get(names.CONFIG_MAP, NAMESPACE, source)
    if stored is None and found is None:
        raise RestoreRefused(
            f"spec.restoreFrom: no run in {run.parent} has the snapshot {source}: name that of a run that is there, "
            "or say with --dir where that run is"
        )
    donor, rows = restore.read(experiment, stored or found, time.time())
    if folder is not None and folder != run:
        for place in _places(donor, rows):
            link(folder / "store" / place, run / "store" / place)
    if stored is None and found is not None:
        await memory.create(_bare(found))


def find(name: str, run: Path) -> tuple[Object | None, Path | None]:
    """A snapshot's ConfigMap by name and the folder of the run that has it, as far as there is any."""
    for experiment, journal in _journals(name, run):
        try:
            objects, *_ = replay(journal)
        except (JournalCorrupt, OSError):
            continue
        found = _now(experiment, objects) if name == name_of(experiment) else None
        found = found or next((o for o in objects if _key(o) == (names.CONFIG_MAP, name)), None)
        if found is not None:
            return found, journal.parent
    return None, None


def _key(obj: Object) -> tuple[str, str]:
    return obj["kind"], obj["metadata"]["name"]


def _now(experiment: str, objects: Iterable[Object]) -> Object | None:
    """The snapshot of an experiment that its journal still has: newer than the one that was written last."""
    stored = {_key(obj): obj for obj in objects}
    of = stored.get((names.EXPERIMENT, experiment))
    if of is None or restore.pending(Experiment.from_object(of)):
        return None
    trials = [obj for obj in stored.values() if obj["kind"] == names.TRIAL and owner_uid(obj) == of["metadata"]["uid"]]
    made = config_map(of, encode(of, trials))
    return made if trials else None


def _journals(name: str, run: Path) -> Iterator[tuple[str, Path]]:
    """Experiments whose snapshot may be called so, and their journals: the newest of each first."""
    folders = {folder.name: folder for folder in run.parent.iterdir() if folder.is_dir()} | {run.name: run}
    for experiment, folder in sorted(folders.items(), key=lambda pair: -len(pair[0])):
        own = name_of(experiment)
        if name == own or name.startswith(f"{own}-"):
            older = sorted(folder.glob("journal-*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
            yield from ((experiment, journal) for journal in (folder / "journal.jsonl", *older))


def _places(donor: Donor, rows: Iterable[Row]) -> set[str]:
    """The folders of experiments in a store that trials may begin from, or have their last checkpoint in."""
    keys = [key for row in rows for key in (*(row.spec.base or ()), row.spec.fork or "")]
    keys += [row.status.checkpoint.key for row in rows if row.status.checkpoint]
    found = (contract.parse_inherited_key(key) for key in keys)
    prefixes = [donor.prefix(0), *(key[0] for key in found if key is not None)]
    return {prefix.rpartition("/")[0] for prefix in prefixes}


def link(old: Path, new: Path) -> None:
    """The files below a folder under another one, without a copy where the disk is the same; whole or not at all.

    :raises OSError: if they cannot be written.
    """
    if new.exists() or not old.is_dir():
        return
    new.parent.mkdir(parents=True, exist_ok=True)
    temporary = new.with_name(f".{new.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(old, temporary, copy_function=_linked, ignore=shutil.ignore_patterns(".*", "scratch"))
        os.rename(temporary, new)
    except shutil.Error as errors:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(None, f"{len(errors.args[0])} files could not be copied", str(old)) from errors


def _linked(source: str, target: str) -> str:
    # Results of a trainer that still writes would go on growing under another name; checkpoints never change.
    if "/results/" in source:
        return str(shutil.copyfile(source, target))
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _bare(obj: Object) -> Object:
    meta = {k: v for k, v in obj["metadata"].items() if k not in (*SERVER_FIELDS, "ownerReferences")}
    return {**obj, "metadata": meta}
