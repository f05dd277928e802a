"""`python -m trialkeeper_operator.serve --config FILE`: the operator in a cluster."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import click

from trialkeeper_operator.serve import logs
from trialkeeper_operator.serve.replica import HTTP_PORT, REPORT_PORT, Place, again, renewable, run
from trialkeeper_operator.serve.settings import BadSettings, Settings, read

log = logging.getLogger("trialkeeper_operator.serve")


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="The settings file; without it, the defaults.")
@click.option("--http-port", default=HTTP_PORT, show_default=True, help="Health and metrics.")
@click.option("--report-port", default=REPORT_PORT, show_default=True, help="The report service.")
def main(config: Path | None, http_port: int, report_port: int) -> None:
    """Run the operator until SIGTERM."""
    try:
        settings = read(config) if config else Settings()
    except BadSettings as wrong:
        logs.set_up("info")
        log.error("%s", wrong)
        sys.exit(78)
    logs.set_up(settings.log_level)
    try:
        asyncio.run(run(settings, Place.of_environment(), http_port=http_port, report_port=report_port))
    except Exception as error:
        if not renewable(error):
            log.exception("stopped")  # the kubelet starts it again, later each time, and people see that it does
            sys.exit(1)
        log.warning("beginning anew: %s", error)
        again()


if __name__ == "__main__":
    main()
