"""The commands `trialkeeper snapshot show`: what an experiment's snapshot holds, from a file, a run, or a cluster; and
`fetch`: one made of a store alone.

A snapshot is anybody's input, so nothing of it reaches a terminal before it has been through the models, and
then without control characters.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trialkeeper_operator.api.experiment import Experiment
    from trialkeeper_operator.api.trial import Trial

Object = dict[str, Any]

BAD_INPUT = 2
BYTES = 8 << 20  # of a file: a ConfigMap's mebibyte in base64 and YAML, several times
APPLICABLE = 250 * 1024  # characters: kubectl keeps what it applies in an annotation, which holds 256 KiB
# What a store does not say of its experiment, for the models that want it.
UNTOLD: Object = {
    "parameters": [{"name": "untold", "fixed": 0}],
    "template": {"spec": {"containers": [{"name": "untold", "image": "untold"}]}},
}


class NoSnapshot(LookupError):
    """Raised when there is no snapshot where one was looked for; the message says what to do."""


Fetch = Callable[[str, str], Object]


def fetch(name: str, namespace: str) -> Object:
    """A ConfigMap of the cluster that kubectl speaks to, with whatever way to log in kubectl knows.

    :raises NoSnapshot: if there is none, or no kubectl.
    """
    from trialkeeper_operator.local import kubectl

    try:
        return kubectl.get("configmap", name, namespace)
    except kubectl.NoKubectl as none:
        raise NoSnapshot(f"no run here has left {name}, and {none}") from none
    except kubectl.Refusal as refusal:
        raise NoSnapshot(f"no run here has left {name}, and kubectl says: {refusal}") from refusal


@click.group()
def snapshot() -> None:
    """Snapshots: the state of an experiment that outlives it."""


@snapshot.command()
@click.argument("name", required=False)
@click.option("--file", "file", type=click.Path(path_type=Path, allow_dash=True), help="A ConfigMap as kubectl has it.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=Path("runs"), help="Where runs are kept.")
@click.option("-n", "--namespace", help="Look into this namespace of the cluster; else runs here come first.")
@click.option("--format", "format_", type=click.Choice(["table", "json"]), default="table", help="What to print.")
def show(name: str | None, file: Path | None, folder: Path, namespace: str | None, format_: str) -> None:
    """Print the snapshot of the experiment NAME, of a run on this machine or of a cluster, or the one in a file."""
    from trialkeeper_operator.api.validate import InvalidObject
    from trialkeeper_operator.state.snapshot import SnapshotInvalid, data_of, decode

    if name is None and file is None:
        raise click.UsageError("name an experiment, or give a file: trialkeeper snapshot show digits")
    try:
        config_map = _read(file, name) if file is not None else _found(str(name), folder, namespace, fetch)
        found, rows = decode(data_of(config_map))
        experiment, trials = _models(found, rows)
    except (NoSnapshot, SnapshotInvalid, InvalidObject) as wrong:
        click.echo(f"trialkeeper: {wrong}", err=True)
        sys.exit(BAD_INPUT)
    if format_ == "json":
        click.echo(json.dumps({"experiment": found, "trials": rows}, indent=1))
        return
    head, cells = _table(experiment, trials)
    click.echo("\n".join(_about(experiment)) + "\n")
    if sys.stdout.isatty():
        _draw(head, cells)
    else:
        from trialkeeper_operator.local.summary import table

        click.echo("\n".join(table([head, *cells])))


@snapshot.command("fetch")
@click.argument("where")
def rebuild(where: str) -> None:
    """Make the snapshot of an experiment whose cluster is gone out of its store, and print it for kubectl.

    WHERE is the bucket (s3://bucket/namespace/experiment-uid?endpoint=http://host:port, keys in AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY), or a folder that is a copy of it. Trials that have ended are in it as ended; the others
    will go on from their newest checkpoint. Nothing is changed.
    """
    from trialkeeper.results.known import BadPlace, NotThere
    from trialkeeper_operator.local.fetching import NotRebuilt, fetch
    from trialkeeper_operator.local.summary import printable
    from trialkeeper_operator.state.snapshot import name_of

    try:
        found = fetch(where)
    except (NotRebuilt, NotThere, BadPlace, ImportError, OSError) as wrong:
        click.echo(f"trialkeeper: {wrong}", err=True)
        sys.exit(BAD_INPUT)
    text = json.dumps(found.config_map, indent=1)
    click.echo(text)
    name = name_of(found.experiment)
    held = f"{found.trials} trials, {found.finished} of them over, in ConfigMap {name} of namespace {found.namespace}"
    notes = [f"{held}: apply it, then an Experiment there with restoreFrom: {{configMap: {name}}}"]
    if found.unknown:
        some = ", ".join(map(str, found.unknown[:10])) + (", ..." if len(found.unknown) > 10 else "")
        notes.append(f"trials {some} had not begun when the cluster went: what they were to try is not known")
    if len(text) > APPLICABLE:
        notes.append("it is too long for kubectl apply: use kubectl apply --server-side -f -")
    for note in notes:
        click.echo(f"trialkeeper: {printable(note)}", err=True)


def _found(name: str, folder: Path, namespace: str | None, fetch: Fetch) -> Object:
    """The snapshot of a run on this machine, unless a namespace is given; else the cluster's."""
    from trialkeeper_operator.local.donors import find
    from trialkeeper_operator.state.snapshot import name_of

    wanted = [name_of(name), name]
    for called in wanted if namespace is None and folder.is_dir() else ():
        config_map, _ = find(called, folder / name)
        if config_map is not None:
            return config_map
    return fetch(wanted[0], namespace or "default")


def _read(file: Path, name: str | None) -> Object:
    """The ConfigMap in a file, `-` is stdin: the one of the experiment `name` if there are several.

    :raises NoSnapshot: if there is none.
    :raises InvalidObject: if it cannot be read.
    """
    from trialkeeper_operator.local.documents import documents
    from trialkeeper_operator.state.snapshot import name_of

    try:
        with click.open_file(str(file), "rb") as source:
            data = source.read(BYTES + 1)
    except OSError as error:
        raise NoSnapshot(f"{file}: {error.strerror}") from error
    if len(data) > BYTES:
        raise NoSnapshot(f"{file}: it has more than {BYTES >> 20} MiB")
    objects: list[Any] = []
    for document in documents(data.decode("utf-8-sig", "replace")):
        items = document.get("items") if isinstance(document, dict) else None
        objects += items if isinstance(items, list) else [document]
    maps = [obj for obj in objects if isinstance(obj, dict) and obj.get("kind") == "ConfigMap"]
    maps = [obj for obj in maps if isinstance(obj.get("metadata"), dict)]
    called = [obj for obj in maps if name is None or obj["metadata"].get("name") in (name_of(name), name)]
    if not called:
        raise NoSnapshot(f"{file}: there is no ConfigMap {name_of(name) if name else ''}".rstrip() + " in it")
    return called[0]


def _models(found: Object, rows: Sequence[Object]) -> tuple[Experiment, list[Trial]]:
    """:raises SnapshotInvalid: if they are not what an operator writes."""
    from pydantic import ValidationError

    from trialkeeper_operator.api import names
    from trialkeeper_operator.api.experiment import Experiment
    from trialkeeper_operator.api.trial import Trial
    from trialkeeper_operator.state.snapshot import SnapshotInvalid

    meta = {field: str(found.get(field, "")) for field in ("name", "namespace", "uid")}
    owner = {"experiment": meta["name"], "experimentUid": meta["uid"]}
    spec = {**UNTOLD, **said} if isinstance(said := found.get("spec"), dict) else said
    try:
        experiment = Experiment.from_object({"metadata": meta, "spec": spec, "status": found.get("status")})
        trials = [
            Trial.from_object(
                {
                    "metadata": {"name": names.trial_name(meta["name"], row["spec"].get("index", 0))},
                    "spec": {**row["spec"], **owner},
                    "status": row["status"],
                }
            )
            for row in rows
        ]
    except ValidationError as wrong:
        first = wrong.errors(include_url=False)[0]
        raise SnapshotInvalid(f"snapshot: {'.'.join(map(str, first['loc']))}: {first['msg']}") from wrong
    return experiment, trials


def _about(experiment: Experiment) -> list[str]:
    """The experiment in a few lines."""
    from trialkeeper_operator.api import names
    from trialkeeper_operator.api.conditions import find
    from trialkeeper_operator.local.summary import printable, short

    status = experiment.status
    verdict = find(status.conditions, names.SUCCEEDED)
    lines = [
        f"experiment  {experiment.name} in {experiment.namespace or 'default'}, uid {experiment.uid}",
        f"phase       {status.phase or '-'}" + (f" ({verdict.reason}): {verdict.message}" if verdict else ""),
        f"trials      {', '.join(f'{count} {phase}' for phase, count in status.counts.items()) or '-'}",
        f"disruptions {status.disruptions}, {status.lost_work.iterations} iterations run again",
    ]
    if status.restored is not None:
        taken = status.restored
        lines.insert(1, f"goes on     from {taken.experiment}, uid {taken.uid}: {taken.trials} trials")
    if status.best is not None:
        metric = experiment.spec.objectives[0].metric
        chosen = ", ".join(f"{name}={short(value)}" for name, value in status.best.parameters.items())
        lines.append(f"best        {status.best.trial}: {metric} {status.best.value:.5g} with {chosen}")
    return [printable(line) for line in lines]


def _table(experiment: Experiment, trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    from trialkeeper_operator.local.summary import HEAD, printable, row, short

    cells = []
    for trial in trials:
        chosen = " ".join(f"{name}={short(value)}" for name, value in trial.spec.parameters.items())
        cells.append([printable(cell) for cell in (*row(experiment, trial), chosen)])
    return [*HEAD, "parameters"], cells


def _draw(head: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for title in head:
        drawn.add_column(title)
    for line in cells:
        drawn.add_row(*(Text(cell) for cell in line))
    Console().print(drawn)
