"""Results and checkpoints, read by people: `open_results` for programs, the commands for a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trialkeeper.results.reading import Results


def open_results(where: str) -> Results:
    """The results of an experiment.

        with trialkeeper.open_results("runs/digits") as results:
            best = results.best()

    :param where: a folder of `trialkeeper run`, of a plain run (`trialkeeper-store/<script>`), of an experiment or of
        a single trial; `s3://bucket/prefix?endpoint=http://host:port`; or `exp/digits`, `exp/namespace/digits`, an
        Experiment of the cluster of one's kubeconfig.
    :raises trialkeeper.results.known.BadPlace: if it cannot be understood (a ValueError).
    :raises trialkeeper.results.known.NotThere: if there is nothing (a LookupError).
    :raises ImportError: if a package is missing; the message says which.
    :raises OSError: if it cannot be read.
    """
    from trialkeeper.results.finding import find
    from trialkeeper.results.reading import Results

    source = find(str(where))
    try:
        return Results(source)
    except BaseException:
        source.place.close()
        raise
