"""What a person sees while an experiment runs: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide import ledger
from trialkeeper_operator.local.summary import HEAD, row

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Look = Callable[[], tuple[Experiment, Sequence[Trial]] | None]


REDRAW = 0.25  # seconds at least between two pictures
MARGIN = 4  # rows of a terminal that the table leaves free
COLUMNS = 7  # of the summary's table: what changes while trials run, and fits into 80 characters


class Screen(Protocol):
    """Takes lines; shows the state if it can."""

    def line(self, text: str) -> None: ...

    def touch(self) -> None:
        """The state has changed."""
        ...

    def close(self) -> None: ...


class Lines:
    """Plain lines to a stream, or nowhere. A reader that goes away takes nothing with it but the lines."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def line(self, text: str) -> None:
        if self._stream is not None:
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except OSError:
                self._stream = None

    def touch(self) -> None:
        return

    def close(self) -> None:
        return


class Live:
    """A table that stays at the bottom while lines scroll above it. It is drawn when something has changed."""

    def __init__(self, look: Look, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._look = look
        self._console = console or Console()
        self._live = RichLive(console=self._console, auto_refresh=False, get_renderable=self._table, transient=True)
        self._live.start()
        self._drawing: asyncio.TimerHandle | None = None

    def _table(self) -> RenderableType:
        from rich.table import Table

        table = Table(*HEAD[:COLUMNS], box=None, pad_edge=False, header_style="bold")
        experiment, trials = self._look() or (None, ())
        if experiment is None:
            return table
        shown, hidden = fitting(trials, self._console.height - MARGIN)
        for trial in shown:
            style = {"Running": "bold", "Failed": "red", "Waiting": "yellow"}.get(trial.status.phase, "dim")
            table.add_row(*row(experiment, trial)[:COLUMNS], style=style)
        if hidden:
            table.caption = f"and {hidden} more"
            table.caption_justify = "left"
        return table

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def touch(self) -> None:
        if self._drawing is None:
            self._drawing = asyncio.get_running_loop().call_later(REDRAW, self._draw)

    def _draw(self) -> None:
        self._drawing = None
        self._live.refresh()

    def close(self) -> None:
        if self._drawing is not None:
            self._drawing.cancel()
        self._live.stop()


def fitting(trials: Sequence[Trial], rows: int) -> tuple[list[Trial], int]:
    """The trials for so many rows, by index, and how many are left out: those that are not over come first."""
    rows = max(1, rows)
    by_need = sorted(trials, key=lambda t: (t.status.phase in ledger.FINAL, -t.spec.index))
    return sorted(by_need[:rows], key=lambda t: t.spec.index), max(0, len(trials) - rows)


def open_screen(output: str, look: Look) -> Screen:
    """The screen for `--output`: JSON leaves standard output to the document."""
    if output == "quiet":
        return Lines(None)
    if output == "json":
        return Lines(sys.stderr)
    return Live(look) if output == "table" and sys.stdout.isatty() else Lines(sys.stdout)
