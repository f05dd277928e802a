"""The `trialkeeper` command: a frame into which installed packages put their commands, each loaded when called."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from trialkeeper import __version__

GROUP = "trialkeeper.commands"
SUMMARIES = {  # so that `--help` loads no command
    "run": "Run an experiment on this machine, and resume it.",
    "drill": "Kill a trainer a few times and say whether it resumes.",
    "results": "Print trials' results, whatever happened to their pods: table, csv, json, TensorBoard.",
    "checkpoints": "List checkpoints.",
    "download": "Fetch a checkpoint, verified.",
    "top": "Watch trials: phase, iteration, best, disruptions, lost work, goodput.",
    "pause": "Let a trial save and leave, and keep its place.",
    "resume": "Let a trial, or an experiment, go on.",
    "stop": "Let a trial save and leave for good.",
    "retry": "Give a trial that has failed another try.",
    "fork": "Begin a new trial at a checkpoint of another one.",
    "suspend": "Let all trials of an experiment save and leave.",
    "sweep": "Take away what nobody needs from a store.",
    "snapshot": "Show what an experiment's snapshot holds.",
}
USAGE_ERROR = 2
_MORE = "pip install 'trialkeeper[local]'"


def main() -> None:
    """Run the command line; exits."""
    try:
        import click
    except ImportError:
        sys.stderr.write(
            f"trialkeeper: the commands need a few more packages: {_MORE} (or [cli], to read results only)\n"
        )
        sys.exit(USAGE_ERROR)

    found: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=GROUP)}

    class Commands(click.Group):
        """Commands by entry point."""

        def list_commands(self, ctx: click.Context) -> list[str]:
            return sorted(found)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            point = found.get(cmd_name)
            if point is None:
                if cmd_name in SUMMARIES:
                    ctx.fail(f"{cmd_name} needs a few more packages: {_MORE}")
                return None
            try:
                loaded: Any = point.load()
            except ImportError as missing:
                ctx.fail(f"{cmd_name} cannot be loaded ({missing}): {_MORE}")
            return loaded if isinstance(loaded, click.Command) else None

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            if found:
                with formatter.section("Commands"):
                    formatter.write_dl([(name, SUMMARIES.get(name, "")) for name in self.list_commands(ctx)])

    group = Commands(name="trialkeeper", help="Checkpointed trials: nothing is lost when a pod dies.")
    click.version_option(__version__, prog_name="trialkeeper")(group)
    group(prog_name="trialkeeper")
