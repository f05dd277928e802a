"""What WHERE means: a folder, a bucket, or an Experiment of a cluster; and the trials that are there.

`exp/...` and what a run's journal knows come from packages that can read those, by entry points.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from trialkeeper.results.known import BadPlace, Known, NotThere, Source
from trialkeeper.results.places import FolderPlace, Place

GROUP = "trialkeeper.results"  # entry points: `exp` opens an Experiment of a cluster, `run` knows a run's folder
DEPTH = 3  # folders from a store's root to a trial's prefix
HELP = "a folder (runs/digits), a bucket (s3://bucket/prefix?endpoint=http://host:port), or exp/NAME of a cluster"

_FOLDERS = frozenset({"attempts", "results", "manifests", "ended", "data"})  # of a trial
_MORE = "pip install 'trialkeeper[local]'"


def find(where: str) -> Source:
    """The trials that are meant.

    :raises BadPlace: if it cannot be understood.
    :raises NotThere: if there is nothing.
    :raises ImportError: if a package is missing; the message says which.
    :raises OSError: if it cannot be read.
    """
    if where.startswith("s3://"):
        return _bucket(where)
    if where.startswith("exp/"):
        opened = _entry("exp")
        if opened is None:
            raise ImportError(f"{where} is an Experiment of a cluster, and that needs a few more packages: {_MORE}")
        source: Source = opened(where)
        return source
    if where.startswith("file://"):
        from trialkeeper.store.address import path_of

        return _folder(path_of(where))
    if "://" in where or not where:
        raise BadPlace(f"{where[:200]!r} is not a place of results: name {HELP}")
    return _folder(Path(where))


def _entry(name: str) -> Callable[..., Any] | None:
    for point in entry_points(group=GROUP, name=name):
        loaded: Callable[..., Any] = point.load()
        return loaded
    return None


def _folder(path: Path) -> Source:
    path = Path(os.path.abspath(path))
    if not path.is_dir():
        raise NotThere(f"{path} is no folder: name {HELP}")
    place = FolderPlace()
    if (path / "store").is_dir() and not (path / "attempts").is_dir():
        return _run(place, path)
    top = str(path).lstrip("/")
    experiments = _experiments(place, top)
    return Source(place, lambda: _trials(place, _only(experiments, "/", top)))


def _run(place: FolderPlace, path: Path) -> Source:
    """A folder of `trialkeeper run`: its newest experiment, of which the journal knows more."""
    store = str(path / "store").lstrip("/")
    know = _nobody
    with suppress(ImportError):  # the store knows all but the states
        entry = _entry("run")
        know = know if entry is None else entry(path)

    def prefixes() -> list[str]:
        known = know()
        if known is not None:
            folders = {trial.prefix.rpartition("/")[0] for trial in known.trials}
            return [prefix for folder in sorted(folders) for prefix in _trials(place, folder)]
        found = _experiments(place, store)
        newest = max(found, key=lambda folder: _touched(place, folder), default=None)
        return [] if newest is None else _trials(place, newest)

    return Source(place, prefixes, know)


def _nobody() -> Known | None:
    return None


def _touched(place: Place, folder: str) -> float:
    """When the newest attempt of an experiment has begun."""
    records = (p for trial in _trials(place, folder) for p in Path("/", trial, "attempts").glob("*.json"))
    return max((path.stat().st_mtime for path in records), default=0.0)


def _bucket(where: str) -> Source:
    from dataclasses import replace

    from trialkeeper.store.address import bucket_of

    try:
        bucket = bucket_of(where)
    except ValueError as wrong:
        raise BadPlace(str(wrong)) from None
    try:
        from trialkeeper.results.buckets import open_bucket
    except ImportError as missing:
        raise ImportError(f"a bucket needs a few more packages: pip install 'trialkeeper[s3]' ({missing})") from None
    place = open_bucket(replace(bucket, folder="", from_service=False))
    experiments = _experiments(place, bucket.folder)
    root = f"s3://{bucket.name}/"
    return Source(place, lambda: _trials(place, _only(experiments, root, bucket.folder)), pause=5.0)


def trials(place: Place, folder: str) -> list[str]:
    """The prefixes of the trials of an experiment's folder."""
    return _trials(place, folder)


def _trials(place: Place, folder: str) -> list[str]:
    names = place.children(folder)
    if _is_trial(names):
        return [folder]
    numbered = [name for name in names if name.isdigit()]
    found = numbered or [name for name in names if _is_trial(place.children(_join(folder, name)))]
    return [_join(folder, name) for name in found]


def _has_trials(place: Place, folder: str, names: list[str]) -> bool:
    """Whether folders are trials, by the first of them: a store may have thousands."""
    numbered = [name for name in names if name.isdigit()]
    return any(_is_trial(place.children(_join(folder, name))) for name in [*numbered, *names][:1])


def _is_trial(names: list[str]) -> bool:
    return "attempts" in names or bool(names and set(names) <= _FOLDERS)


def _experiments(place: Place, top: str) -> list[str]:
    """The folders at or below `top` whose folders are trials; `top` itself if it is a trial's."""
    level = [top]
    for _ in range(DEPTH + 1):
        listed = [(folder, place.children(folder)) for folder in level]
        found = [folder for folder, names in listed if _is_trial(names) or _has_trials(place, folder, names)]
        if found:
            return found
        level = [_join(folder, name) for folder, names in listed for name in names]
    return []


def _only(found: list[str], root: str, top: str) -> str:
    if not found:
        raise NotThere(f"there are no trials in {root}{top}: name {HELP}")
    if len(found) > 1:
        some = ", ".join(f"{root}{folder}" for folder in found[:10]) + (", ..." if len(found) > 10 else "")
        raise NotThere(f"there are {len(found)} experiments in {root}{top}, name one of them: {some}")
    return found[0]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
