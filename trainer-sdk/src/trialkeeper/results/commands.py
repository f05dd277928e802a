"""The commands `results`, `checkpoints` and `download`. Exit codes: 0; 1 the store fails; 2 not there; 130 Ctrl-C."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import gmtime, sleep, strftime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from trialkeeper.results.places import Told
    from trialkeeper.results.reading import Results, StoredCheckpoint, Trial

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
WHERE = "WHERE is a folder (runs/digits), a bucket (s3://bucket/prefix?endpoint=URL), or exp/NAME of a cluster."


def _warn(sentence: str) -> None:
    from trialkeeper.results.output import clean

    click.echo(f"trialkeeper: {clean(' '.join(sentence.split()))}", err=True)


@contextmanager
def _opened(where: str) -> Iterator[Results]:
    """The results; what goes wrong with them, also later, is one sentence and an exit code."""
    from trialkeeper import open_results
    from trialkeeper.errors import CheckpointCorrupt
    from trialkeeper.results.known import NotThere
    from trialkeeper.store import Missing

    try:
        with open_results(where) as results:
            yield results
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (CheckpointCorrupt, Missing, OSError, NotThere, ValueError, ImportError) as wrong:
        in_the_way = isinstance(wrong, FileExistsError)
        failed = isinstance(wrong, (CheckpointCorrupt, Missing, OSError)) and not in_the_way
        words = wrong.args[0] if isinstance(wrong, LookupError) and wrong.args else wrong
        if isinstance(wrong, OSError) and wrong.filename and wrong.strerror:
            words = f"{wrong.filename}: {wrong.strerror}"
        _warn(str(words))
        sys.exit(FAILED if failed else BAD_INPUT)


def _chosen(results: Results, names: Sequence[str]) -> list[Trial]:
    return [results.trial(name) for name in names] if names else results.trials


@click.command(epilog=WHERE)
@click.argument("where")
@click.option("--trial", "names", multiple=True, metavar="TRIAL", help="Only this one, by name or index; repeatable.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "csv", "json", "tensorboard"]),
    default="table",
    help="What to print; json: an object a line.",
)
@click.option("--output", type=click.Path(path_type=Path), help="A file; for tensorboard a folder.")
@click.option("--follow", is_flag=True, help="Print new rows as they come, until the experiment is finished.")
@click.option("--raw", is_flag=True, help="Every row that was ever written, also of work that was lost.")
def results(where: str, names: tuple[str, ...], format_: str, output: Path | None, follow: bool, raw: bool) -> None:
    """Print the results of an experiment: one continuous history of each trial, whatever happened to its pods."""
    if format_ == "tensorboard" and output is None:
        raise click.UsageError("TensorBoard reads files: say where with --output FOLDER")
    with _opened(where) as found, ExitStack() as stack:
        if format_ == "tensorboard":
            assert output is not None
            _tensorboard(found, names, output, stack, follow=follow, raw=raw)
        elif follow:
            _follow(found, names, format_, output, stack, raw=raw)
        else:
            _print(found, names, format_, output, stack, raw=raw)


def _print(
    found: Results, names: Sequence[str], format_: str, output: Path | None, stack: ExitStack, *, raw: bool
) -> None:
    from trialkeeper.results import output as write

    trials = _chosen(found, names)
    out = stack.enter_context(write.opened(output))
    if format_ == "csv":
        write.write_csv(trials, out, raw=raw)
    elif format_ == "json":
        write.write_json(trials, out, raw=raw)
    elif names:
        for number, trial in enumerate(trials):
            out.write(("\n" if number else "") + f"{write.clean(trial.name)}\n" if len(trials) > 1 else "")
            write.write_rows(trial, out, raw=raw)
    else:
        found.load()
        write.write_trials(found, trials, out)


def _follow(
    found: Results, names: Sequence[str], format_: str, output: Path | None, stack: ExitStack, *, raw: bool
) -> None:
    from trialkeeper.results.output import follower

    # No temporary file: who follows a file wants to see it grow.
    out = stack.enter_context(output.open("w", encoding="utf-8")) if output else sys.stdout
    write = follower(format_, out, _warn)
    for _ in _looks(found, names):
        for trial, row in found.new(names, raw=raw):
            write(trial, row)
        out.flush()


def _looks(found: Results, names: Sequence[str]) -> Iterator[None]:
    """One look after the other, the last one after the experiment was finished."""
    _chosen(found, names)
    while True:
        finished = found.finished
        yield
        if finished:
            return
        sleep(found.source.pause)
        found.refresh()


def _tensorboard(
    found: Results, names: Sequence[str], output: Path, stack: ExitStack, *, follow: bool, raw: bool
) -> None:
    from trialkeeper.results.output import Events

    events = Events(output, stack)
    for _ in _looks(found, names) if follow else iter([None]):
        _chosen(found, names)
        for trial, row in found.new(names, raw=raw):
            events.write(trial, row)
        events.flush()


@click.command(epilog=WHERE)
@click.argument("where")
@click.argument("trial", required=False)
@click.option("--format", "format_", type=click.Choice(["table", "json"]), default="table", help="What to print.")
def checkpoints(where: str, trial: str | None, format_: str) -> None:
    """List the checkpoints of an experiment, or of one TRIAL: those that an attempt could go on from, newest first."""
    from trialkeeper.results import output as write

    with _opened(where) as found:
        trials = _chosen(found, [trial] if trial else [])
        listed = [(t.name, c) for t in trials for c in t.checkpoints]
        if format_ == "json":
            click.echo(json.dumps([_document(name, c) for name, c in listed], indent=1))
            return
        head = ["trial", "iteration", "attempt", "size", "saved", "reason", "whole", *_metric(found)]
        cells = [
            [
                write.clean(name),
                str(c.iteration),
                str(c.attempt),
                write.size(c.bytes),
                strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(c.created)) if c.created else "-",
                write.clean(c.reason) or "-",
                "yes" if c.whole else "no",
                *(write.short(c.metrics.get(metric, "-")) for metric in _metric(found)),
            ]
            for name, c in listed
        ]
        write.table([write.clean(title) for title in head], cells, sys.stdout)


def _metric(found: Results) -> list[str]:
    return [objective.metric for objective in found.objectives[:1]]


def _document(name: str, checkpoint: StoredCheckpoint) -> dict[str, object]:
    from trialkeeper.metrics import written

    return {
        "trial": name,
        "iteration": checkpoint.iteration,
        "attempt": checkpoint.attempt,
        "step": checkpoint.step,
        "bytes": checkpoint.bytes,
        "reason": checkpoint.reason,
        "created": checkpoint.created or None,
        "whole": checkpoint.whole,
        "metrics": {k: written(v) if isinstance(v, float) else v for k, v in checkpoint.metrics.items()},
        "files": [entry["path"] for entry in checkpoint.manifest.get("files", ())],
        "manifest": f"{checkpoint.prefix}/{checkpoint.key}",
    }


@click.command(epilog=WHERE)
@click.argument("where")
@click.argument("trial", metavar="TRIAL[@ITERATION|@best|@latest]")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Default: ./TRIAL-iITERATION.")
@click.option("--files", multiple=True, metavar="GLOB", help="Only files whose path fits; repeatable.")
def download(where: str, trial: str, folder: Path | None, files: tuple[str, ...]) -> None:
    """Fetch a checkpoint into a folder, every part verified; called again, it goes on where it was interrupted.

    TRIAL is a trial's name or index, or `best`. The newest whole checkpoint is taken unless another one is named.
    """
    from trialkeeper.results.output import clean

    with _opened(where) as found, ExitStack() as stack:
        name, _, which = trial.partition("@")
        checkpoint, chosen = _checkpoint(found, name, which or "latest")
        title = clean(chosen.name)
        target = folder or Path(f"{title.replace('/', '_')}-i{checkpoint.iteration}")
        from trialkeeper.results.download import chosen as files_of

        total = sum(entry["size"] for entry in files_of(checkpoint.manifest, files or None))
        progress = _progress(f"{title} at {checkpoint.iteration}", total, stack)
        done = checkpoint.to_directory(target, files or None, progress)
        stack.close()
        click.echo(f"{done}")


def _checkpoint(found: Results, name: str, which: str) -> tuple[StoredCheckpoint, Trial]:
    """:raises NotThere: if there is none."""
    from trialkeeper.results.known import NotThere

    trial = found.best() if name == "best" else found.trial(name)
    if trial is None:
        raise NotThere("no trial is the best yet: name one")
    if which == "best":
        chosen = trial.best_checkpoint()
    elif which == "latest":
        chosen = trial.newest_checkpoint()
        if chosen is not None and chosen != trial.checkpoints[0]:
            broken = trial.checkpoints[0].iteration
            _warn(f"the checkpoint at iteration {broken} is not whole: that at {chosen.iteration} is taken")
    elif which.isdigit():
        chosen = next((c for c in trial.checkpoints if c.iteration == int(which)), None)
    else:
        raise click.UsageError(f"{which!r} is no iteration, nor best, nor latest")
    if chosen is None:
        there = ", ".join(str(c.iteration) for c in trial.checkpoints[:20])
        raise NotThere(
            f"{trial.name} has no such checkpoint" + (f", it has some at iterations {there}" if there else "")
        )
    return chosen, trial


def _progress(title: str, total: int, stack: ExitStack) -> Told:
    """A bar on a terminal; silence elsewhere, and without rich."""
    if not sys.stderr.isatty():
        return lambda _: None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
    except ImportError:
        return lambda _: None
    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    bar = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
    task = bar.add_task(title, total=total)
    return lambda count: bar.advance(task, count)
