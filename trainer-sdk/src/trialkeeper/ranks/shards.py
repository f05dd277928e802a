"""The parts of a checkpoint that several ranks have written, and who gets which of them.

Every rank's files are below a folder of its own, `rank-00003/`, in the store and in the manifest. Each rank's upload
process makes its part durable and then writes an inventory beside it; rank 0's waits for all of them, and commits.
A rank without files says so to rank 0 itself, which leaves a mark in its scratch folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trialkeeper import contract
from trialkeeper.environment import Environment
from trialkeeper.errors import CheckpointCorrupt, WorldSizeChanged
from trialkeeper.store import AlreadyThere, Missing, Store

PATIENCE = 300.0  # seconds for all parts of a save to come, counted from when rank 0's own is there
LAST_SECOND = 1.0  # of the grace, which is left for saying that it did not suffice
LOOK_AT_MARKS, LOOK_INTO_STORE = 0.05, 1.0  # seconds between two looks, in the store at most
EMPTY, FAILED = "empty", "failed"

_NONCE = re.compile("[0-9a-f]{8}")
_FOLDER = re.compile(r"rank-(\d{5})/")

Entry = dict[str, Any]


class PartMissing(OSError):
    """Raised when a save cannot be committed, since a rank has not saved its part of it."""


class Unvouched(OSError):
    """Raised when ranks in other pods do not say whether they have their part of a checkpoint."""


def folder_of(rank: int) -> str:
    """The folder of a rank's files."""
    return f"rank-{rank:05d}"


def rank_of(path: str) -> int | None:
    """Whose file a path of a manifest is, None if it is nobody's in particular."""
    match = _FOLDER.match(path)
    return int(match[1]) if match else None


def world_of(body: Mapping[str, Any]) -> int:
    """How many processes have saved a checkpoint."""
    return int(body.get("worldSize", 1))


# Saving.


def _mark(env: Environment, rank: int, nonce: str, what: str) -> Path:
    return env.scratch / "parts" / f"{nonce}-{rank:05d}.{what}"


def mark(env: Environment, rank: int, nonce: str, what: str) -> None:
    """Leave word for rank 0's upload process that a rank has no files for a save, or could not save.

    :raises ValueError: if it makes no sense.
    """
    if not _NONCE.fullmatch(nonce) or what not in (EMPTY, FAILED):
        raise ValueError("that is no part of a save")
    with contextlib.suppress(OSError):  # then it is missed, and said
        path = _mark(env, rank, nonce, what)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _gone(env: Environment, rank: int) -> Path:
    return env.scratch / "parts" / f"gone-{env.life}-{rank:05d}"


def mark_gone(env: Environment, rank: int) -> None:
    """Leave word for rank 0's upload process that a rank is gone: what it has handed over may still come."""
    with contextlib.suppress(OSError):
        _gone(env, rank).parent.mkdir(parents=True, exist_ok=True)
        _gone(env, rank).touch()


def _waits_for(env: Environment, rank: int) -> bool:
    """Whether the part of a rank may still come: its upload process has the grace, once its trainer is gone."""
    try:
        return time.time() - _gone(env, rank).stat().st_mtime < env.grace
    except OSError:
        return True


def has_files(folder: Path) -> bool:
    """Whether there is a file anywhere below a folder."""
    return any(names for _, _, names in os.walk(folder))


def own(entries: Sequence[Entry], rank: int) -> list[Entry]:
    """A rank's entries of a manifest, as it has written them."""
    top = f"{folder_of(rank)}/"
    return [{**entry, "path": entry["path"].removeprefix(top)} for entry in entries if entry["path"].startswith(top)]


def keep(store: Store, folder: Path, data: str, rank: int, older: Sequence[Entry]) -> list[Entry]:
    """Make a rank's part of a save durable; its entries. Errors are those of `Store.keep`.

    :raises FileNotFoundError: if the folder is gone: an upload process that died had it in hand.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"the files of rank {rank}'s part are gone")
    if not has_files(folder):
        return []
    return [*store.keep(folder, f"{data}/{folder_of(rank)}", own(older, rank))]


def announce(store: Store, data: str, rank: int, entries: Sequence[Entry] | None, *, resharding: bool) -> None:
    """Write the inventory of a rank's part; None: it could not be saved.

    :raises OSError: if the store cannot be written.
    """
    with contextlib.suppress(AlreadyThere):  # by a try whose answer was lost
        store.put_new(_inventory(data, rank), json.dumps({"files": entries, "resharding": resharding}).encode())


def _inventory(data: str, rank: int) -> str:
    return f"{data}/ranks/r{rank:05d}.json"


def gather(
    store: Store,
    env: Environment,
    data: str,
    nonce: str,
    mine: Sequence[Entry],
    *,
    resharding: bool,
    leave_by: Callable[[], float | None],
) -> tuple[list[Entry], bool]:
    """The entries of all ranks, rank 0's own among them, as soon as all are there; whether any world may load them.

    :raises PartMissing: if one does not come.
    :raises ValueError: if they do not fit together.
    :raises OSError: if the store cannot be read.
    """
    parts: dict[int, Sequence[Entry]] = {0: mine}
    flags = {resharding} if mine else set()
    end, pause, looked_at = time.monotonic() + PATIENCE, LOOK_AT_MARKS, float("-inf")
    while missing := [rank for rank in range(1, env.world) if rank not in parts]:
        for rank in missing:
            if _mark(env, rank, nonce, EMPTY).exists():
                parts[rank] = ()
            elif _mark(env, rank, nonce, FAILED).exists():
                raise PartMissing(f"rank {rank} could not save its part")
        if time.monotonic() - looked_at >= pause:
            for rank, said in _announced(store, data, [rank for rank in missing if rank not in parts]):
                if said["files"] is None:
                    raise PartMissing(f"rank {rank} could not save its part")
                parts[rank] = said["files"]
                flags.add(bool(said["resharding"]))
            looked_at, pause = time.monotonic(), min(2 * pause, LOOK_INTO_STORE)
        by = leave_by()
        if len(parts) < env.world:
            late = time.monotonic() >= (end if by is None else min(end, by - LAST_SECOND))
            missed = [rank for rank in missing if rank not in parts and (late or not _waits_for(env, rank))]
            if missed:
                raise PartMissing(
                    f"rank {missed[0]} has not saved its part in time: every process must call report(), "
                    "with checkpoint=None if it has nothing to save"
                )
            time.sleep(LOOK_AT_MARKS)
    for left in (env.scratch / "parts").glob(f"{nonce}-*"):
        left.unlink(missing_ok=True)
    if len(flags) > 1:
        raise ValueError("checkpoint: some processes say resharding=True and others do not")
    found = [{**entry, "path": f"{folder_of(rank)}/{entry['path']}"} for rank in sorted(parts) for entry in parts[rank]]
    if not found:
        raise ValueError("checkpoint: no process has saved a file: save() of one must write at least one")
    if True in flags:
        _merged(found)
    return found, True in flags


def tidy(store: Store, data: str) -> None:
    """Remove the inventories of a committed checkpoint: its manifest has all of it."""
    with contextlib.suppress(OSError):
        store.delete(f"{data}/ranks")


def _announced(store: Store, data: str, ranks: Sequence[int]) -> Iterator[tuple[int, Any]]:
    if not ranks:
        return
    there = set(store.list(f"{data}/ranks/"))
    for rank in ranks:
        if _inventory(data, rank) in there:
            with contextlib.suppress(Missing):
                yield rank, _read(rank, store.get(_inventory(data, rank)))


def _read(rank: int, data: bytes) -> dict[str, Any]:
    """An inventory; what is in its entries is looked at with the manifest that they go into."""
    try:
        said = json.loads(data)
        files = said["files"]
        whole = files is None or all(isinstance(entry["path"], str) for entry in files)
        if whole and isinstance(said["resharding"], bool):
            return {"files": files, "resharding": said["resharding"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise PartMissing(f"what rank {rank} says of its part makes no sense")


def _merged(entries: Sequence[Entry]) -> dict[str, str]:
    """The path in a manifest of each file of the folder that all ranks share.

    :raises ValueError: if two have written the same.
    """
    found: dict[str, str] = {}
    for entry in entries:
        inside = entry["path"].partition("/")[2]
        if inside in found:
            raise ValueError(
                f"checkpoint: two processes have saved {inside}: with resharding=True all share one folder, "
                "so each must give its files other names"
            )
        found[inside] = entry["path"]
    for path in found:
        top = path
        while top := top.rpartition("/")[0]:
            if top in found:
                raise ValueError(f"checkpoint: {top} is a file of one process and a folder of another")
    return found


# Loading.


def check_world(body: Mapping[str, Any], env: Environment) -> None:
    """See to it that this trial's processes can take a checkpoint.

    :raises WorldSizeChanged: if it was saved by another number of them, and not for any number.
    """
    saved = world_of(body)
    if saved != env.world and not body.get("resharding"):
        raise WorldSizeChanged(
            f"the checkpoint of iteration {body['iteration']} was saved by {_processes(saved)}, and this trial has "
            f"{env.world}: start as many, or save with resharding=True if what you save can be loaded by any number"
        )


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


def files_for(body: Mapping[str, Any], env: Environment) -> list[Entry]:
    """The entries that this pod needs of a checkpoint: the same for each of its ranks."""
    entries: list[Entry] = body["files"]
    if world_of(body) == 1 or body.get("resharding"):
        return entries
    ranks = savers(body)
    first = env.rank - env.local_rank
    wanted = {0} if ranks == {0} else set(range(first, first + env.local_world))
    return [entry for entry in entries if rank_of(entry["path"]) in wanted]


def savers(body: Mapping[str, Any]) -> set[int]:
    """The ranks that have files in a checkpoint."""
    return {rank for entry in body["files"] if (rank := rank_of(entry["path"])) is not None}


def elsewhere(body: Mapping[str, Any], env: Environment) -> frozenset[int]:
    """The ranks in other pods whose files are not among those of this one."""
    here = {rank_of(entry["path"]) for entry in files_for(body, env)}
    return frozenset(() if world_of(body) == 1 else savers(body) - here)


def folder_for(body: Mapping[str, Any], fetched: Path | None, env: Environment) -> Path:
    """The folder that this rank is given, below what was fetched for its pod.

    Rank 0's if nobody else has saved anything, the one that all share if the checkpoint is for any number of ranks.

    :raises OSError: if the scratch folder cannot be written.
    """
    if world_of(body) == 1 and fetched is not None:
        return fetched
    if body.get("resharding") and fetched is not None:
        return _view(env.scratch / "merged" / body["data"], fetched, _checked_merge(body["files"]))
    ranks = savers(body)
    rank = 0 if ranks == {0} else env.rank
    if rank in ranks and fetched is not None:
        return fetched / folder_of(rank)
    empty = env.scratch / "merged" / f"empty-{env.rank:05d}"
    empty.mkdir(parents=True, exist_ok=True)
    return empty


def _checked_merge(entries: Sequence[Entry]) -> dict[str, str]:
    try:
        return _merged(entries)
    except ValueError as wrong:
        raise CheckpointCorrupt(str(wrong)) from None


def _view(place: Path, fetched: Path, files: Mapping[str, str]) -> Path:
    """A folder of links to files of several ranks."""
    if place.is_dir():
        return place
    made = place.with_name(f".{place.name}-{os.getpid()}-{os.urandom(4).hex()}")
    for inside, path in files.items():
        (made / inside).parent.mkdir(parents=True, exist_ok=True)
        (made / inside).symlink_to(fetched / path)
    try:
        os.rename(made, place)
    except OSError:
        if not place.is_dir():
            raise
        import shutil

        shutil.rmtree(made, ignore_errors=True)  # another rank of this pod was faster
    return place


def nonce() -> str:
    """What keeps the files of two saves apart."""
    return os.urandom(4).hex()


def data_of(env: Environment, iteration: int, chosen: str) -> str:
    """The data key of a save that rank 0 has named."""
    return contract.data_key(env.attempt, iteration, chosen)
