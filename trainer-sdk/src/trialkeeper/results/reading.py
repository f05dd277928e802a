"""An experiment's trials, their one continuous history each, and their checkpoints, for people and their programs."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trialkeeper import contract, manifest, parallel
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.contract import Message
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.results import download, lineage, rows
from trialkeeper.results.known import FINAL, Known, KnownTrial, NotThere, Objective, Source
from trialkeeper.results.places import Place, Told
from trialkeeper.results.rows import Row
from trialkeeper.saving import remove
from trialkeeper.store import Missing

if TYPE_CHECKING:
    import os

WORKERS = 4  # connections at once
QUIET = 60.0  # seconds after which an experiment of which nobody knows more is over, if all of its trials are

_NAMED = re.compile(r"(.+)-[0-9a-f]{8}")
_ENDED = {
    contract.END_COMPLETE: "Succeeded",
    contract.END_STOPPED: "Stopped",
    contract.END_PAUSED: "Paused",
    contract.END_USER_ERROR: "Failed",
}


@dataclass(frozen=True)
class Attempt:
    """One try. `base` is the checkpoint it began from, `ended` its trainer's last words, if it had time for any."""

    number: int
    began: float | None  # seconds since the epoch
    base: str | None
    lost_iterations: int
    ended: Message | None


@dataclass(frozen=True)
class StoredCheckpoint:
    """A committed checkpoint. `whole`: its manifest is right and all of its bytes have their place in the store."""

    iteration: int
    attempt: int
    step: int | None
    metrics: Mapping[str, Any]
    bytes: int
    reason: str
    created: float  # seconds since the epoch, 0 if the manifest cannot be read
    whole: bool
    key: str
    prefix: str
    manifest: Mapping[str, Any]
    place: Place

    def __repr__(self) -> str:
        return f"StoredCheckpoint(iteration={self.iteration}, attempt={self.attempt}, whole={self.whole})"

    def to_directory(
        self,
        path: str | os.PathLike[str] | None = None,
        files: str | Sequence[str] | None = None,
        progress: Told = lambda _: None,
    ) -> Path:
        """The checkpoint's files, every part verified, in `path` or in a new temporary folder.

        The folder is complete or not there; called again, it goes on where it was interrupted.

        :param files: only those whose path fits this pattern, or one of these; `*` also takes slashes.
        :raises CheckpointCorrupt: if a file is not what was committed.
        :raises FileExistsError: if the folder holds something else.
        :raises KeyError: if the checkpoint is gone from the store.
        :raises ValueError: if no file is called so.
        """
        if not self.manifest:
            raise CheckpointCorrupt(f"the manifest of iteration {self.iteration} is not what was written")
        if path is None:
            import tempfile

            path = tempfile.mkdtemp(prefix="trialkeeper-checkpoint-")
        patterns = [files] if isinstance(files, str) else files
        chosen = download.chosen(self.manifest, patterns)
        return download.fetch(self.place, self.prefix, chosen, Path(path), progress)

    def to_dict(self, *, allow_pickle: bool = False) -> dict[Any, Any]:
        """The dictionary that the trainer gave to `Checkpoint.from_dict`; errors are those of `Checkpoint.to_dict`."""
        folder = self.to_directory()
        try:
            return Checkpoint(folder, kind=self.manifest["kind"]).to_dict(allow_pickle=allow_pickle)
        finally:
            remove(folder)


class Trial:
    """One trial, as its store and whoever knows more say it is. What has been read once is kept; see `refresh`."""

    def __init__(self, results: Results, prefix: str, known: KnownTrial | None) -> None:
        self._results, self._place, self.prefix, self._known = results, results.source.place, prefix, known

    def __repr__(self) -> str:
        return f"Trial({self.name!r}, {dict(self.parameters)!r})"

    @cached_property
    def _records(self) -> dict[int, dict[str, Any]]:
        return lineage.attempts(self._place, self.prefix)

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The newest attempt's record that says whose it is, empty if there is none."""
        told = (r for _, r in sorted(self._records.items(), reverse=True) if isinstance(r.get("trial"), str))
        return next(told, {})

    @cached_property
    def _links(self) -> list[lineage.Link]:
        bases = self._known.bases if self._known else ()
        return list(lineage.links(self._place, self.prefix, self._records, bases))

    def refresh(self) -> None:
        """Forget what has been read, so that it is read again."""
        for name in ("_records", "record", "_links", "attempts", "_committed", "_sizes", "checkpoints"):
            self.__dict__.pop(name, None)

    @property
    def index(self) -> int:
        """The trial's number in its experiment."""
        last = self.prefix.rpartition("/")[2]
        return self._known.index if self._known else int(last) if last.isdigit() else 0

    @property
    def name(self) -> str:
        """The trial's name."""
        if self._known:
            return self._known.name
        said = self.record.get("trial")
        return said if said else f"{self._results.experiment}-{self.index}"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The trial's parameters; empty if nobody knows them."""
        if self._known:
            return self._known.parameters
        said = self.record.get("parameters")
        return said if isinstance(said, dict) else {}

    @property
    def state(self) -> str | None:
        """Its phase: as the operator says, else what its last words mean; None if there are neither."""
        if self._known:
            return self._known.state
        ended = self.attempts[-1].ended if self.attempts else None
        return None if ended is None else _ENDED.get(ended.end)

    @cached_property
    def attempts(self) -> list[Attempt]:
        """All attempts that have begun, the first one first."""
        store = self._place.store(self.prefix)
        ended = set(store.list("ended/")) if self._records else set()
        found = []
        for number, record in sorted(self._records.items()):
            key, words = contract.ended_key(number), None
            if key in ended:
                with suppress(Missing):
                    words = Message.decode(store.get(key))
            base, began, lost = record.get("base"), record.get("time"), record.get("lostIterations")
            found.append(
                Attempt(
                    number,
                    float(began) if isinstance(began, (int, float)) else None,
                    base if isinstance(base, str) else None,
                    lost if isinstance(lost, int) else 0,
                    words,
                )
            )
        return found

    # Results.

    def pieces(self, *, raw: bool = False) -> list[rows.Piece]:
        """The files of the trial's story, the oldest first; `raw`: of all of its own attempts."""
        if raw:
            wanted = [lineage.Link(self.prefix, n, None) for n in lineage.numbers(self._place, self.prefix)]
        else:
            wanted = self._links[::-1]
        found = ((self._place.results(link.prefix, link.attempt), link.bound) for link in wanted)
        return [rows.Piece(path, bound) for path, bound in found if path is not None]

    def rows(self, *, raw: bool = False) -> Iterator[Row]:
        """As `history`, one row after the other, so that a long one needs no memory."""
        pieces = self.pieces(raw=raw)
        return rows.raw(pieces) if raw else rows.visible(pieces)

    def history(self, *, raw: bool = False) -> list[Row]:
        """One row for each iteration, the newest attempt's where several have done it; metrics by name.

        :param raw: everything that was ever written, in the order of the attempts.
        """
        return list(self.rows(raw=raw))

    def value(self, metric: str | None = None, mode: str | None = None) -> float | None:
        """What counts for the objective, or for another metric; None if it was never reported as a finite number."""
        return self.reached(self._results.objective(metric, mode))[1]

    def reached(self, objective: Objective | None) -> tuple[int, float | None]:
        """(the last iteration, the objective's value) of the history; 0 and None while there are none."""
        last, found = 0, None
        for row in self.rows():
            last = row["training_iteration"]
            number = _finite(row.get(objective.metric)) if objective is not None else None
            if number is None or objective is None:
                continue
            if found is None or objective.value != "Best":
                found = number
            else:
                found = min(found, number) if objective.direction == "Minimize" else max(found, number)
        return last, found

    # Checkpoints.

    @cached_property
    def _committed(self) -> list[tuple[str, int, int]]:
        """(prefix, attempt, iteration) of the checkpoints that an attempt could begin from, the newest first."""
        found: list[tuple[str, int, int]] = []
        listed: dict[str, list[tuple[int, int]]] = {}
        for link in self._links:
            if link.prefix not in listed:
                keys = self._place.store(link.prefix).list("manifests/")
                parsed = (contract.parse_manifest_key(key) for key in keys)
                listed[link.prefix] = [pair for pair in parsed if pair is not None]
            own = [m for m in listed[link.prefix] if m[0] == link.attempt]
            found += [(link.prefix, *m) for m in sorted(own, reverse=True) if link.bound is None or m[1] <= link.bound]
        return found

    @cached_property
    def _sizes(self) -> dict[str, dict[str, int]]:
        prefixes = {prefix for prefix, _, _ in self._committed}
        return {p: {key: size for key, size, _ in self._place.store(p).sizes("data/")} for p in prefixes}

    @cached_property
    def checkpoints(self) -> list[StoredCheckpoint]:
        """The committed checkpoints that an attempt could begin from, the newest first."""
        made: dict[int, StoredCheckpoint | None] = {}
        sizes = self._sizes  # before several ask for them at once

        def look(number: int, prefix: str, attempt: int, iteration: int) -> None:
            made[number] = _checkpoint(self._place, prefix, attempt, iteration, sizes[prefix])

        parallel.run((partial(look, number, *which) for number, which in enumerate(self._committed)), WORKERS)
        return [checkpoint for _, checkpoint in sorted(made.items()) if checkpoint is not None]

    def newest_checkpoint(self) -> StoredCheckpoint | None:
        """The newest checkpoint that is whole, None if there is none."""
        found = (_checkpoint(self._place, *which, self._sizes[which[0]]) for which in self._committed)
        return next((c for c in found if c is not None and c.whole), None)

    def best_checkpoint(self, metric: str | None = None, mode: str | None = None) -> StoredCheckpoint | None:
        """The whole checkpoint with the best value of the objective, or of another metric; None if none has one."""
        objective = self._results.objective(metric, mode)
        found: StoredCheckpoint | None = best_of(
            [(c, _finite(c.metrics.get(objective.metric))) for c in self.checkpoints if c.whole], objective.direction
        )
        return found


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def best_of(found: Sequence[tuple[Any, float | None]], direction: str) -> Any:
    """The first one with the best value; NaN never wins, and neither does what has none."""
    sign = 1 if direction == "Minimize" else -1
    finite = [(what, value * sign) for what, value in found if value is not None and math.isfinite(value)]
    return min(finite, key=lambda pair: pair[1])[0] if finite else None


def _checkpoint(
    place: Place, prefix: str, attempt: int, iteration: int, sizes: Mapping[str, int]
) -> StoredCheckpoint | None:
    """A committed checkpoint, None if it has been deleted meanwhile."""
    key = contract.manifest_key(attempt, iteration)
    try:
        body = manifest.decode(place.store(prefix).get(key))
        if (body["attempt"], body["iteration"]) != (attempt, iteration):
            raise CheckpointCorrupt("the manifest is another checkpoint's")
    except Missing:
        return None
    except CheckpointCorrupt:
        return StoredCheckpoint(iteration, attempt, None, {}, 0, "", 0.0, False, key, prefix, {}, place)
    return StoredCheckpoint(
        iteration=iteration,
        attempt=attempt,
        step=body["step"],
        metrics={k: rows.number_of(v) for k, v in body["metrics"].items()},
        bytes=sum(entry["size"] for entry in body["files"]),
        reason=body["reason"],
        created=float(body["created"]),
        whole=download.whole(body, sizes),
        key=key,
        prefix=prefix,
        manifest=body,
        place=place,
    )


class Results:
    """An experiment's results. A context manager: leaving it ends connections and removes temporary copies."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._known: Known | None = None
        self._trials: dict[str, Trial] = {}
        self._ends: dict[str, dict[Path, int]] = {}
        self._over: set[str] = set()
        self._changed_at = time.monotonic()
        self.refresh()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End what was opened."""
        self.source.place.close()

    def refresh(self) -> None:
        """Look for new trials and attempts."""
        self._known = self.source.know()
        known = {trial.prefix: trial for trial in self._known.trials} if self._known else {}
        before, self._trials = self._trials, {}
        for prefix in sorted({*self.source.prefixes(), *known}):
            trial = self._trials[prefix] = before.get(prefix) or Trial(self, prefix, None)
            trial._known = known.get(prefix)
            if prefix not in self._over:
                trial.refresh()
        if before.keys() != self._trials.keys():
            self._changed_at = time.monotonic()
        if not self._trials and self._known is None:
            raise NotThere("there are no trials yet: is the name right, and has the first one begun?")

    def new(self, trials: Sequence[str | int] = (), *, raw: bool = False) -> Iterator[tuple[Trial, Row]]:
        """Rows that no earlier call has given, of all trials or of some; at the first call their whole histories."""
        for trial in self.trials:
            if trial.prefix in self._over or not (
                not trials or {trial.name, trial.index, str(trial.index)} & {*trials}
            ):
                continue
            over = trial.state in FINAL  # asked first: what is written after this is for nobody
            for row in rows.new(trial.pieces(raw=raw), self._ends.setdefault(trial.prefix, {}), raw=raw):
                self._changed_at = time.monotonic()
                yield trial, row
            if over:
                self._over.add(trial.prefix)

    @property
    def trials(self) -> list[Trial]:
        """All trials, by index."""
        return sorted(self._trials.values(), key=lambda trial: (trial.index, trial.prefix))

    def load(self) -> None:
        """Read every trial's records at once, which is quicker than one by one."""
        parallel.run((partial(getattr, trial, "attempts") for trial in self.trials), WORKERS)

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        if self._known:
            return self._known.experiment
        first = next(iter(self._trials.values()))
        said = first.record.get("experiment")
        folder = first.prefix.rpartition("/")[0].rpartition("/")[2]
        match = _NAMED.fullmatch(folder)
        return said if isinstance(said, str) and said else match[1] if match else folder

    @property
    def objectives(self) -> list[Objective]:
        """What is to be optimised, the first one first; empty if nobody knows."""
        if self._known:
            return list(self._known.objectives)
        for trial in self._trials.values():
            given = trial.record.get("objectives")
            found = [o for o in map(Objective.of, given if isinstance(given, list) else []) if o is not None]
            if found:
                return found
        return []

    def objective(self, metric: str | None = None, mode: str | None = None) -> Objective:
        """The objective that is meant by a metric and a mode (`min` or `max`), each of which may be left open.

        :raises ValueError: if that is not enough to go by.
        """
        own = [o for o in self.objectives if metric is None or o.metric == metric]
        if mode is not None and mode.lower() not in ("min", "max"):
            raise ValueError(f"mode={mode!r}: it is min or max")
        if not own and metric is None:
            raise ValueError("nobody knows the objective: name a metric and its mode, min or max")
        if not own and mode is None:
            raise ValueError(f"{metric} is no objective of the experiment: say whether min or max is meant")
        base = own[0] if own else Objective(str(metric))
        direction = {"min": "Minimize", "max": "Maximize"}[mode.lower()] if mode else base.direction
        return Objective(base.metric, direction, base.value)

    def trial(self, name: str | int) -> Trial:
        """A trial by its name or its index.

        :raises NotThere: if there is none.
        """
        for trial in self.trials:
            if name in (trial.name, trial.index) or str(name) == str(trial.index):
                return trial
        there = ", ".join(trial.name for trial in self.trials[:20])
        raise NotThere(f"there is no trial {name}, there are: {there}{', ...' if len(self._trials) > 20 else ''}")

    def best(self, metric: str | None = None, mode: str | None = None) -> Trial | None:
        """The trial with the best objective, or the best value of another metric; None if none has a finite one.

        :param mode: `min` or `max`, needed for a metric that is no objective.
        :raises ValueError: if metric or mode have to be named.
        """
        direction = self.objective(metric, mode).direction
        found: Trial | None = best_of([(trial, trial.value(metric, mode)) for trial in self.trials], direction)
        return found

    def history(self, trial: str | int | Trial, *, raw: bool = False) -> list[Row]:
        """A trial's history, see `Trial.history`."""
        which = trial if isinstance(trial, Trial) else self.trial(trial)
        return which.history(raw=raw)

    def dataframe(self, *, raw: bool = False) -> Any:
        """All trials' histories as one pandas.DataFrame: a line for each iteration, parameters as `config/<name>`.

        :raises ImportError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("dataframe() needs pandas: pip install pandas") from None
        return pandas.DataFrame([row for trial in self.trials for row in told(trial, trial.rows(raw=raw))])

    @property
    def finished(self) -> bool:
        """Whether nothing more is to come: as the operator says, else when every trial has said its last words."""
        if self._known:
            return self._known.finished
        self.load()
        over = all(trial.state in FINAL for trial in self.trials)
        return over and time.monotonic() - self._changed_at >= QUIET


def told(trial: Trial, found: Iterator[Row]) -> Iterator[Row]:
    """Rows as a table of several trials has them: with whose they are, and parameters where no metric has the name."""
    head = {"trial_id": trial.name, **config(trial)}
    for row in found:
        yield {**head, **row, "trial_id": head["trial_id"]}


def config(trial: Trial) -> Row:
    """A trial's parameters as columns."""
    return {f"config/{k}": json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in trial.parameters.items()}
