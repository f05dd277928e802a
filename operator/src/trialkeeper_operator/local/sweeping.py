"""The command `trialkeeper sweep`: what nobody needs goes from a bucket, a run's folder, or a plain trainer's store."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trialkeeper.store.address import check

if TYPE_CHECKING:
    from trialkeeper.environment import Environment
    from trialkeeper.store.tree import Tree
    from trialkeeper.sweep import Rules, Swept

OK, FAILED, BAD_INPUT = 0, 1, 2
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str) -> float:
    """The seconds of a duration such as 36h.

    :raises ValueError: if it is none.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])|0", text)
    if match is None:
        raise ValueError(f"--older-than {text[:40]!r} is not a time: write for example 24h, 30m, or 0")
    return float(match[1]) * _SECONDS[match[2]] if match[1] else 0.0


def url_of(place: str) -> str:
    """The URL of a store: of a bucket as it is, of a folder the store in it.

    :raises ValueError: if there is no such folder, or it is no store's URL.
    """
    if "://" in place:
        check(place)
        return place
    folder = Path(place).resolve()
    if not folder.is_dir():
        raise ValueError(f"{place} is no folder: name a run's folder, a store's, or s3://bucket?endpoint=...")
    return (folder / "store" if (folder / "store").is_dir() else folder).as_uri()


def _environment(url: str) -> Environment:
    import tempfile

    from trialkeeper import contract, environment

    nowhere = Path(tempfile.gettempdir()) / "trialkeeper-sweep"  # nothing is fetched
    return environment.read({contract.ENV_STORE: url, contract.ENV_ATTEMPT: "1", contract.ENV_SCRATCH: str(nowhere)})


@click.command()
@click.argument("place")
@click.option("--dry-run", is_flag=True, help="Say what would go, and leave it.")
@click.option("--older-than", "age", default="24h", help="What is younger may be of an upload under way.")
@click.option("--budget", help="Bytes that the checkpoints of an experiment may have, such as 50Gi.")
@click.option("--score", help="The metric by which checkpoints are ranked. Default: the older is the worse.")
@click.option("--order", type=click.Choice(["Max", "Min"]), default="Max", help="Which score is the best.")
@click.option("--delete", "experiments", multiple=True, metavar="EXPERIMENT", help="A folder that goes as a whole.")
def sweep(
    place: str,
    dry_run: bool,
    age: str,
    budget: str | None,
    score: str | None,
    order: str,
    experiments: tuple[str, ...],
) -> None:
    """Take away what nobody needs from PLACE: s3://bucket?endpoint=http://host:port, a run's folder, or a store's.

    That is data of no checkpoint, left by killed uploads; pins of nobody; and with --budget what is more than that,
    worst first, but never the newest two of a trial that may go on. Results stay. Keys to a bucket come from
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or from a workload identity.
    """
    from trialkeeper import sweep as sweeping
    from trialkeeper.retention import Policy
    from trialkeeper.store.opening import open_tree

    try:
        older_than = seconds(age)
        policy = Policy(0, score, "max" if order == "Max" else "min")
        rules = sweeping.Rules(sweeping.bytes_of(budget) if budget else None, policy)
        tree = open_tree(_environment(url_of(place)))
    except (ValueError, ImportError) as wrong:
        click.echo(f"trialkeeper: {wrong}", err=True)
        sys.exit(BAD_INPUT)
    try:
        for experiment in experiments:
            gone = sweeping.remove(tree, experiment.strip("/"), dry_run=dry_run)
            click.echo(f"{experiment}: {_said(gone, dry_run)}")
        one = _swept(tree, rules, older_than, dry_run)
    except ValueError as wrong:
        click.echo(f"trialkeeper: {wrong}", err=True)
        sys.exit(BAD_INPUT)
    except OSError as error:
        click.echo(f"trialkeeper: {error}: the same command goes on where this one ended", err=True)
        sys.exit(FAILED)
    click.echo(f"{_said(one, dry_run)}; {sweeping.written(one.left)} stay")
    for experiment, size in one.over.items():
        click.echo(f"{experiment} is {sweeping.written(size)} beyond its budget: the rest of it is needed", err=True)
    for trouble in one.trouble:
        click.echo(f"trialkeeper: {trouble}", err=True)
    sys.exit(FAILED if one.trouble else OK)


def _swept(tree: Tree, rules: Rules, older_than: float, dry_run: bool) -> Swept:
    from trialkeeper import sweep as sweeping

    return sweeping.Sweep(
        tree,
        now=time.time(),
        rules=lambda experiment: rules,
        older_than=older_than,
        dry_run=dry_run,
        tell=click.echo,
    ).run()


def _said(swept: Swept, dry_run: bool) -> str:
    from trialkeeper.sweep import written

    would = "would be removed" if dry_run else "removed"
    return f"{would}: {swept.objects} objects, {written(swept.bytes)}, {swept.checkpoints} checkpoints"
