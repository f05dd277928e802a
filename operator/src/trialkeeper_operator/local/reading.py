"""What the operator's side knows of an experiment whose results are read: from a run's journal, or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trialkeeper import contract
from trialkeeper.results.known import Known, KnownTrial, Objective
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.state.cache import owner_uid

Object = dict[str, Any]


def known(experiment: Experiment, trials: Iterable[Trial], root: str = "") -> Known:
    """An experiment and its trials as readers of results want them; `root` goes before each prefix."""
    return Known(
        experiment=experiment.name,
        objectives=tuple(Objective(o.metric, o.direction, o.value) for o in experiment.spec.objectives),
        trials=tuple(_trial(experiment, trial, root) for trial in trials),
        finished=experiment.status.completion_time is not None,
    )


def _trial(experiment: Experiment, trial: Trial, root: str) -> KnownTrial:
    prefix = contract.prefix(experiment.namespace, experiment.name, experiment.uid, trial.spec.index)
    inherited = [*(trial.spec.base or ()), *([trial.status.checkpoint.key] if trial.status.checkpoint else [])]
    bases = (contract.parse_inherited_key(key) for key in inherited)
    return KnownTrial(
        name=trial.name,
        index=trial.spec.index,
        prefix=f"{root}{prefix}",
        parameters=trial.spec.parameters,
        state=trial.status.phase,
        bases=tuple(base[0] for base in bases if base is not None),
    )


def of_run(folder: Path) -> Callable[[], Known | None]:
    """Whoever knows what a run's journal says, None while there is none that can be read."""
    from pydantic import ValidationError

    from trialkeeper_operator.cluster.journal import JournalCorrupt, replay

    journal = folder / "journal.jsonl"
    kept: list[tuple[tuple[int, int], Known | None]] = []

    def know() -> Known | None:
        try:
            stat = journal.stat()
            version = stat.st_mtime_ns, stat.st_size
            if not kept or kept[0][0] != version:
                kept[:] = [(version, _replayed(replay(journal).objects, folder))]
        except (OSError, JournalCorrupt, ValidationError):
            return None
        return kept[0][1]

    return know


def _replayed(objects: Iterable[Object], folder: Path) -> Known | None:
    found = list(objects)
    experiments = [obj for obj in found if obj["kind"] == names.EXPERIMENT]
    if not experiments:
        return None
    experiment = Experiment.from_object(experiments[-1])
    trials = [
        Trial.from_object(obj) for obj in found if obj["kind"] == names.TRIAL and owner_uid(obj) == experiment.uid
    ]
    return known(experiment, trials, f"{str(folder / 'store').lstrip('/')}/")
