"""Rows and tables as text, for people and for programs; one row after the other, whatever their number."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from trialkeeper.metrics import AUTOMATIC, written
from trialkeeper.results.reading import Results, Trial, best_of, config, told
from trialkeeper.results.rows import Row
from trialkeeper.results.tensorboard import NAME, EventFile

_LAST = [name for name in AUTOMATIC if name not in ("trial_id", "training_iteration")]


def clean(text: str) -> str:
    """Text that does nothing to a terminal: a store's words are anybody's."""
    return "".join(c if c.isprintable() else "?" for c in text)


def short(value: Any) -> str:
    """A value for people."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return clean(value if isinstance(value, str) else json.dumps(value, default=str))


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError


def table(head: Sequence[str], cells: Sequence[Sequence[str]], out: IO[str]) -> None:
    """A table: drawn on a terminal, plain columns elsewhere."""
    if out.isatty():
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            pass
        else:
            drawn = Table(box=None, header_style="bold", pad_edge=False)
            for title in head:
                drawn.add_column(title)
            for line in cells:
                drawn.add_row(*map(Text, line))
            Console(file=out).print(drawn)
            return
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    for line in (head, *cells):
        out.write("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n")


def ordered(names: Iterable[str]) -> list[str]:
    """Columns: whose row it is, what was reported, parameters, and last what is set automatically."""
    given = dict.fromkeys(("trial_id", "training_iteration", *names))
    own = [n for n in given if n not in _LAST and not n.startswith("config/")]
    return [*own, *(n for n in given if n.startswith("config/")), *(n for n in _LAST if n in given)]


def columns(trials: Sequence[Trial], *, raw: bool) -> list[str]:
    """Every column that a row of these trials has."""
    names: dict[str, None] = {}
    for trial in trials:
        names |= dict.fromkeys(config(trial))
        for row in trial.rows(raw=raw):
            if not row.keys() <= names.keys():
                names |= dict.fromkeys(row)
    return ordered(names)


def as_json(row: Row) -> str:
    """A row as a line of JSON, which knows no NaN: such are words, as in raw results."""
    try:
        return json.dumps(row, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps({k: written(v) if isinstance(v, float) else v for k, v in row.items()}, separators=(",", ":"))


@contextmanager
def opened(file: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that is there when it is whole."""
    if file is None:
        yield sys.stdout
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as out:
            yield out
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(trials: Sequence[Trial], out: IO[str], *, raw: bool) -> None:
    """All rows, below a line of names; NaN is `nan`, infinity `inf`."""
    names = columns(trials, raw=raw)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for trial in trials:
        fixed = {"trial_id": trial.name, **config(trial)}
        cells = [(name, fixed.get(name, "")) for name in names]
        for row in trial.rows(raw=raw):
            row["trial_id"] = trial.name
            writer.writerow([row.get(name, value) for name, value in cells])


def write_json(trials: Sequence[Trial], out: IO[str], *, raw: bool) -> None:
    """All rows, an object a line."""
    for trial in trials:
        out.writelines(as_json(row) + "\n" for row in told(trial, trial.rows(raw=raw)))


class Events:
    """TensorBoard's event files, a folder for each trial."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._files: dict[str, EventFile] = {}

    def write(self, trial: Trial, row: Row) -> None:
        """One row's numbers, at its iteration."""
        if trial.prefix not in self._files:
            name = clean(trial.name).replace("/", "_").strip(".") or str(trial.index)
            self._files[trial.prefix] = EventFile(self._folder / name / NAME)
            self._stack.callback(self._files[trial.prefix].close)
        own = {k: v for k, v in row.items() if k not in AUTOMATIC or k.startswith("time_")}
        numbers = {k: float(v) for k, v in own.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        moment = row.get("timestamp")
        self._files[trial.prefix].write(
            float(moment) if isinstance(moment, (int, float)) else 0.0, row["training_iteration"], numbers
        )

    def flush(self) -> None:
        """Let readers see what was written."""
        for file in self._files.values():
            file.flush()


def follower(kind: str, out: IO[str], warn: Callable[[str], object]) -> Callable[[Trial, Row], None]:
    """What prints a new row: csv's columns are those of the first row, a later one is said and left out."""
    names: list[str] = []
    writer = csv.writer(out, lineterminator="\n")

    def as_csv(trial: Trial, row: Row) -> None:
        whole = next(told(trial, iter([row])))
        if not names:
            names.extend(ordered(whole))
            writer.writerow(names)
        for name in whole.keys() - {*names} - said:
            said.add(name)
            warn(f"{name} came later and has no column: --format json has everything")
        writer.writerow([whole.get(name, "") for name in names])

    def as_lines(trial: Trial, row: Row) -> None:
        out.write(as_json(next(told(trial, iter([row])))) + "\n")

    def as_text(trial: Trial, row: Row) -> None:
        own = (f"{clean(k)} {short(v)}" for k, v in row.items() if k not in AUTOMATIC)
        out.write(f"{clean(trial.name)}  iteration {row['training_iteration']}  {'  '.join(own)}\n")

    said: set[str] = set()
    return {"csv": as_csv, "json": as_lines, "table": as_text}[kind]


def write_rows(trial: Trial, out: IO[str], *, raw: bool) -> None:
    """One trial's rows as a table."""
    found = list(trial.rows(raw=raw))
    hidden = {"trial_id", "hostname", "timestamp", "time_this_iter_s", *(() if raw else ("attempt",))}
    names = [n for n in ordered(k for row in found for k in row) if n not in hidden]
    table([clean(n) for n in names], [[short(row[n]) if n in row else "-" for n in names] for row in found], out)


def write_trials(results: Results, trials: Sequence[Trial], out: IO[str]) -> None:
    """A line for each trial, and which is the best."""
    objectives = results.objectives
    head = ["trial", "state", "attempts", "iteration", *([objectives[0].metric] if objectives else []), "checkpoint"]
    cells, values = [], []
    for trial in trials:
        iteration, value = trial.reached(objectives[0] if objectives else None)
        values.append((trial, value))
        newest = trial.newest_checkpoint()
        cells.append(
            [
                clean(trial.name),
                trial.state or "-",
                str(len(trial.attempts)),
                str(iteration),
                *(["-" if value is None else short(value)] if objectives else []),
                "-" if newest is None else f"at {newest.iteration}",
                " ".join(f"{clean(k)}={short(v)}" for k, v in trial.parameters.items()) or "-",
            ]
        )
    table([clean(title) for title in (*head, "parameters")], cells, out)
    best = best_of(values, objectives[0].direction) if objectives else None
    if best is not None:
        value = next(value for trial, value in values if trial is best)
        out.write(f"\nbest  {clean(best.name)}: {clean(objectives[0].metric)} {short(value)}\n")
