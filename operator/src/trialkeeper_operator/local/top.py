"""The command `top`: where trials stand now, in a cluster or in a run on this machine; live on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from trialkeeper_operator.local.by_hand import Named, experiment_of, named, told

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from trialkeeper_operator.api.experiment import Experiment
    from trialkeeper_operator.api.trial import Trial

INTERVAL = 2.0  # seconds between two looks
NOT_RUN = "nobody carries it out now: the same trialkeeper run goes on, and results has what was saved last"
MARGIN = 5  # rows of a terminal that the table leaves free


class Picture(NamedTuple):
    """What is shown: a table, and a few lines below it."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: list[str]


HEAD_OF_ALL = ("experiment", "phase", "over", "of", "best", "disruptions", "lost", "goodput", "reason")


def share(goodput: float | None) -> str:
    return "-" if goodput is None else f"{goodput:.1%}"


def of_trials(experiment: Experiment, trials: Sequence[Trial], left_out: int = 0) -> Picture:
    """An experiment's trials, and the sums below them."""
    from trialkeeper_operator.api import names
    from trialkeeper_operator.local.summary import HEAD, lost, printable, row, short

    objective, rows = experiment.spec.objectives[0], []
    for trial in trials:
        *columns, reason = row(experiment, trial)
        rows.append((*columns, share(trial.status.goodput), reason))
    of = experiment.status
    counts = ", ".join(f"{count} {phase}" for phase, count in of.counts.items()) or "no trials yet"
    words = [f"{experiment.name}: {of.phase or 'not seen by an operator yet'}; {counts}"]
    words += [f"and {left_out} trials more, which are over"] if left_out else []
    if of.best is not None:
        chosen = ", ".join(f"{name}={short(given)}" for name, given in of.best.parameters.items())
        words.append(f"best        {of.best.trial}: {objective.metric} {of.best.value:.5g} with {chosen}")
    words.append(
        f"lost work   {lost(of.lost_work)}; {of.disruptions} disruptions, {of.failures} failures; "
        f"goodput {share(of.goodput)}"
    )
    told_by = (names.ACCEPTED, "False"), (names.STALLED, "True"), (names.ENQUEUED, "False"), (names.SUSPENDED, "True")
    words += [f"{c.reason}: {c.message}" for c in of.conditions if (c.type, c.status) in told_by]
    return Picture((*HEAD[:-1], "goodput", HEAD[-1]), rows, [printable(line) for line in words])


def of_experiments(experiments: Sequence[Experiment]) -> Picture:
    """All experiments of a namespace, a row each."""
    from trialkeeper_operator.api import names
    from trialkeeper_operator.api.conditions import find
    from trialkeeper_operator.local.summary import lost, printable

    rows = []
    for experiment in experiments:
        of = experiment.status
        found = find(of.conditions, names.SUCCEEDED)
        verdict = found.reason if found is not None else ""
        rows.append(
            (
                experiment.name,
                of.phase or "-",
                str(of.finished),
                str(of.trials),
                "-" if of.best is None else f"{of.best.value:.5g}",
                str(of.disruptions),
                lost(of.lost_work),
                share(of.goodput),
                printable(verdict) if verdict != of.phase else "",
            )
        )
    return Picture(HEAD_OF_ALL, rows, [] if rows else ["there is no Experiment here: -n looks into another namespace"])


# Where it comes from.


def look(where: str | None, namespace: str | None, room: int | None = None) -> Picture:
    """What there is to see now; of trials as many as there is `room` for, those that are not over first.

    :raises Refused: if there is nothing of that name.
    :raises OSError: if kubectl, or the file of a run, says no.
    """
    from trialkeeper_operator.decide.experiment import over
    from trialkeeper_operator.local.place import runner_of
    from trialkeeper_operator.local.screen import fitting

    if where is None:
        return of_experiments(_experiments(namespace))
    run, resting = Path(where), False
    if (run / "journal.jsonl").is_file():
        experiment, trials = _of_run(run)
        resting = not over(experiment.status) and runner_of(run) is None
    else:
        experiment, trials = _of_cluster(named(where, namespace))
    shown, left_out = (list(trials), 0) if room is None else fitting(trials, room)
    picture = of_trials(experiment, shown, left_out)
    return picture._replace(words=[*picture.words, NOT_RUN]) if resting else picture


def _experiments(namespace: str | None) -> list[Experiment]:
    from trialkeeper_operator.api.experiment import Experiment
    from trialkeeper_operator.local import kubectl
    from trialkeeper_operator.local.remote import EXPERIMENTS

    items = kubectl.get(EXPERIMENTS, "", namespace).get("items") or []
    return sorted((Experiment.from_object(obj) for obj in items), key=lambda found: found.name)


def _of_cluster(target: Named) -> tuple[Experiment, list[Trial]]:
    from trialkeeper_operator.api import names
    from trialkeeper_operator.api.trial import Trial
    from trialkeeper_operator.local import kubectl
    from trialkeeper_operator.local.by_hand import Missing
    from trialkeeper_operator.local.remote import TRIALS
    from trialkeeper_operator.state.cache import owner_uid

    experiment = experiment_of(target)
    if experiment is None:
        raise Missing(f"there is no Experiment {target.name}, and no run of this name in a folder")
    selector = f"--selector={names.LABEL_EXPERIMENT}={experiment.name}"
    items = kubectl.get(TRIALS, "", experiment.namespace, selector).get("items") or []
    trials = [Trial.from_object(obj) for obj in items if owner_uid(obj) == experiment.uid]
    return experiment, sorted(trials, key=lambda trial: trial.spec.index)


def _of_run(run: Path) -> tuple[Experiment, list[Trial]]:
    from trialkeeper_operator.api import names
    from trialkeeper_operator.api.experiment import Experiment
    from trialkeeper_operator.api.trial import Trial
    from trialkeeper_operator.cluster.journal import JournalCorrupt, replay
    from trialkeeper_operator.local.by_hand import Refused
    from trialkeeper_operator.state.cache import owner_uid

    try:
        objects = replay(run / "journal.jsonl").objects
    except JournalCorrupt as broken:
        raise Refused(str(broken)) from broken
    found = next((Experiment.from_object(obj) for obj in objects if obj["kind"] == names.EXPERIMENT), None)
    if found is None:
        raise Refused(f"{run} has no experiment yet")
    trials = [Trial.from_object(o) for o in objects if o["kind"] == names.TRIAL and owner_uid(o) == found.uid]
    return found, sorted(trials, key=lambda trial: trial.spec.index)


# How it is shown.


def plain(picture: Picture) -> str:
    """As lines of text."""
    from trialkeeper_operator.local.summary import table

    return "\n".join([*table([picture.head, *picture.rows]), *(["", *picture.words] if picture.words else [])])


def drawn(picture: Picture) -> RenderableType:
    """For a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(*picture.head, box=None, pad_edge=False, header_style="bold")
    for row in picture.rows:
        style = {"Running": "bold", "Failed": "red", "Waiting": "yellow"}.get(row[1], "dim")
        table.add_row(*(Text(cell) for cell in row), style=style)
    return Group(table, Text(), *(Text(line) for line in picture.words))


def watch(
    see: Callable[[int], Picture], console: Console, interval: float, wait: Callable[[float], object] = time.sleep
) -> None:
    """Show what `see` sees with so many rows, again and again, until somebody interrupts; trouble is shown below it."""
    from rich.live import Live

    from trialkeeper_operator.local.by_hand import Refused

    picture = see(max(1, console.height - MARGIN))
    with Live(drawn(picture), console=console, auto_refresh=False) as live:
        while True:
            wait(interval)
            try:
                picture = see(max(1, console.height - MARGIN))
                live.update(drawn(picture), refresh=True)
            except (Refused, OSError) as trouble:
                words = [*picture.words, f"since then: {trouble}"]
                live.update(drawn(picture._replace(words=words)), refresh=True)


@click.command()
@click.argument("experiment", required=False)
@click.option("-n", "--namespace", help="The namespace, instead of that of kubectl's context.")
@click.option("--once", is_flag=True, help="Print one table and leave, as without a terminal.")
@click.option("--interval", type=click.FloatRange(min=0.2), default=INTERVAL, help="Seconds between two looks.")
def top(experiment: str | None, namespace: str | None, once: bool, interval: float) -> None:
    """Show the trials of EXPERIMENT: one in a cluster, or the folder of a run; without it all experiments.

    Live on a terminal, until Ctrl-C.
    """
    with told(experiment):
        if once or not sys.stdout.isatty():
            click.echo(plain(look(experiment, namespace)))
            return
        from rich.console import Console

        try:
            watch(lambda room: look(experiment, namespace, room), Console(), interval)
        except KeyboardInterrupt:
            return
