"""The commands `run` and `drill`. Everything heavy is imported when a command is carried out."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trialkeeper_operator.local.manifest import Manifest

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def _complain(file: Path, problems: list[Any]) -> int:
    for problem in problems:
        click.echo(f"{file}: {problem}", err=True)
    return BAD_INPUT


def _checked(file: Path, sets: list[str]) -> tuple[dict[str, Any], Manifest]:
    """The experiment in a file, checked.

    :raises InvalidObject: with every problem.
    """
    from trialkeeper_operator.api.validate import InvalidObject, Problem
    from trialkeeper_operator.local.manifest import load
    from trialkeeper_operator.search.check import checked

    manifest = load(file, sets)
    if checked(manifest.raw).spec.nodes > 1:
        said = "one machine is one node: try it with --set spec.nodes=1 here, several are for a cluster"
        raise InvalidObject([Problem("spec.nodes", said)])
    return manifest.raw, manifest


def _notes(raw: dict[str, Any], notes: tuple[str, ...]) -> None:
    """What of the template means nothing on one machine, said once."""
    spec = raw["spec"]["template"]["spec"]
    containers, name = spec["containers"], raw["spec"].get("trainerContainer")
    trainer = next((c for c in containers if c["name"] == name), containers[0])
    ignored = [f for f in ("volumes", "initContainers", "nodeSelector", "tolerations", "affinity") if spec.get(f)]
    if len(containers) > 1:
        ignored.append("containers beside the trainer")
    if trainer.get("envFrom"):
        ignored.append("envFrom (its variables come from your shell)")
    if raw["spec"].get("storage"):
        ignored.append("spec.storage (checkpoints go to the run's folder)")
    if raw["spec"].get("placements"):
        ignored.append("spec.placements")
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if ignored:
        click.echo(f"note: on one machine these are ignored: image, {', '.join(ignored)}", err=True)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=Path("runs"), help="Where runs are kept.")
@click.option("--parallel", type=click.IntRange(min=1), help="Trials at a time, instead of spec.parallelism.")
@click.option("--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change a field: --set spec.maxTrials=4.")
@click.option("--preempt", type=click.IntRange(min=0), default=0, help="Kill so many running trials, once each.")
@click.option("--seed", type=click.IntRange(min=0), help="The seed of search and kills, instead of spec.search.seed.")
@click.option("--gpus", help="GPUs to hand out: a number, or a list of ids. Default: those that are found.")
@click.option("--fresh", is_flag=True, help="Start anew; the old run's store is kept.")
@click.option("--output", type=click.Choice(["table", "json", "quiet"]), default="table", help="What to print.")
def run(
    file: Path,
    folder: Path,
    parallel: int | None,
    sets: tuple[str, ...],
    preempt: int,
    seed: int | None,
    gpus: str | None,
    fresh: bool,
    output: str,
) -> None:
    """Run the experiment in FILE on this machine, or go on with it.

    Trainers are processes; state, checkpoints and logs are in runs/NAME. Whatever ends this command, the same
    command goes on where it ended.
    """
    assignments = [
        *sets,
        *([f"spec.parallelism={parallel}"] if parallel is not None else []),
        *([f"spec.search.seed={seed}"] if seed is not None else []),
    ]
    sys.exit(_run(file, folder, assignments, preempt, gpus, fresh, output))


def _run(file: Path, folder: Path, sets: list[str], preempt: int, gpus: str | None, fresh: bool, output: str) -> int:
    from trialkeeper_operator.api.validate import InvalidObject
    from trialkeeper_operator.cluster.journal import JournalCorrupt, JournalGone
    from trialkeeper_operator.decide.restore import RestoreRefused
    from trialkeeper_operator.local.definition import RunDiffers
    from trialkeeper_operator.local.gpus import parse
    from trialkeeper_operator.local.place import RunBusy
    from trialkeeper_operator.local.runner import Request, execute

    try:
        raw, manifest = _checked(file, sets)
        ids = tuple(parse(gpus, os.environ))
    except InvalidObject as invalid:
        return _complain(file, list(invalid.problems))
    except ValueError as wrong:
        return _complain(file, [wrong])
    _notes(raw, manifest.notes)
    where = (folder / raw["metadata"]["name"]).resolve()
    if not (where / "journal.jsonl").exists() and any((where / "store").glob("*")):
        click.echo(f"note: {where} has no journal.jsonl: it begins anew, and the old store in it stays", err=True)
    request = Request(raw, manifest.folder, where, output=output, preempt=preempt, gpus=ids, fresh=fresh)
    try:
        done = asyncio.run(execute(request))
    except RestoreRefused as refusal:
        return _complain(file, [refusal])
    except (RunBusy, RunDiffers, JournalCorrupt) as refusal:
        click.echo(f"trialkeeper: {refusal}", err=True)
        return BAD_INPUT
    except JournalGone as gone:
        click.echo(f"trialkeeper: {gone}", err=True)
        return FAILED
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        click.echo(f"trialkeeper: {what}{error.strerror}: mend that, and the same command goes on", err=True)
        return FAILED
    if done.interrupted:
        click.echo(f"stopped: the same command goes on ({where} has everything)", err=True)
        return INTERRUPTED
    if output == "json":
        click.echo(json.dumps(done.document(), indent=1))
    elif output == "table":
        click.echo(done.text())
    return OK if done.document()["phase"] in ("Succeeded", "Suspended") else FAILED


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--kills", type=click.IntRange(min=1, max=20), help="How often the trainer is killed: 4, in a cluster 2.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="The seed of the kills.")
@click.option("--set", "sets", multiple=True, metavar="PATH=VALUE", help="Change a field: --set spec.maxTrials=4.")
@click.option("--cluster", is_flag=True, help="In the cluster of kubectl's context, with real pods.")
@click.option("-n", "--namespace", help="With --cluster: the namespace, instead of the file's or the context's.")
@click.option("--keep", is_flag=True, help="With --cluster: do not delete what the drill has made.")
def drill(
    file: Path, kills: int | None, seed: int, sets: tuple[str, ...], cluster: bool, namespace: str | None, keep: bool
) -> None:
    """Kill the trainer of FILE a few times and say whether it resumes.

    One trial is run twice, once in peace and once with kills, half of them with notice (SIGTERM) and half
    without (SIGKILL); then the results of the two are compared. In a cluster it is run as two Experiments of
    derived names, whose pods are deleted, with notice and by force; afterwards they are deleted with their checkpoints.
    """
    if (namespace or keep) and not cluster:
        raise click.UsageError("--namespace and --keep are for --cluster")
    sys.exit(_drill(file, kills, seed, list(sets), (namespace, keep) if cluster else None))


def _drill(file: Path, kills: int | None, seed: int, sets: list[str], cluster: tuple[str | None, bool] | None) -> int:
    from trialkeeper_operator.api.validate import InvalidObject
    from trialkeeper_operator.cluster.journal import JournalGone
    from trialkeeper_operator.local import remote_drill
    from trialkeeper_operator.local.drill import DrillInterrupted, carry_out

    try:
        raw, manifest = _checked(file, sets)
        if cluster is None:
            verdict = asyncio.run(carry_out(raw, manifest.folder, kills or 4, seed, click.echo))
        else:
            namespace, keep = cluster
            if (times := kills or 2) > remote_drill.KILLS:
                raise click.UsageError(
                    f"in a cluster --kills is {remote_drill.KILLS} at most: a status shows ten attempts"
                )
            verdict = remote_drill.carry_out(raw, namespace, times, seed, click.echo, keep=keep)
    except InvalidObject as invalid:
        return _complain(file, list(invalid.problems))
    except DrillInterrupted as interrupted:
        click.echo(f"trialkeeper: {interrupted}", err=True)
        return INTERRUPTED
    except remote_drill.Refused as refusal:
        click.echo(f"trialkeeper: {refusal}", err=True)
        return BAD_INPUT
    except JournalGone as gone:
        click.echo(f"trialkeeper: {gone}", err=True)
        return FAILED
    click.echo(verdict.sentence)
    return OK if verdict.resumes else FAILED
