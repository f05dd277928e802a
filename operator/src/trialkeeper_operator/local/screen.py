"""What a person sees while an experiment runs: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TextIO

from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.local.summary import HEAD, row

Look = Callable[[], tuple[Experiment, Sequence[Trial]] | None]


COLUMNS = 7  # of the summary's table: what changes while trials run, and fits into 80 characters


class Screen(Protocol):
    """Takes lines; shows the state if it can."""

    def line(self, text: str) -> None: ...

    def refresh(self) -> None: ...

    def close(self) -> None: ...


class Lines:
    """Plain lines to a stream, or nowhere."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def line(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text + "\n")
            self._stream.flush()

    def refresh(self) -> None:
        return

    def close(self) -> None:
        return


class Live:
    """A table that stays at the bottom while lines scroll above it."""

    def __init__(self, look: Look) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._look = look
        self._console = Console()
        self._live = RichLive(console=self._console, refresh_per_second=4, get_renderable=self._table, transient=True)
        self._live.start()

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(*HEAD[:COLUMNS], box=None, pad_edge=False, header_style="bold")
        found = self._look()
        for trial in found[1] if found else ():
            if found is not None:
                style = {"Running": "bold", "Failed": "red", "Waiting": "yellow"}.get(trial.status.phase, "dim")
                table.add_row(*row(found[0], trial)[:COLUMNS], style=style)
        return table

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def refresh(self) -> None:
        self._live.refresh()

    def close(self) -> None:
        self._live.stop()


def open_screen(output: str, look: Look) -> Screen:
    """The screen for `--output`: JSON leaves standard output to the document."""
    if output == "quiet":
        return Lines(None)
    if output == "json":
        return Lines(sys.stderr)
    return Live(look) if output == "table" and sys.stdout.isatty() else Lines(sys.stdout)
