"""Trials' prefixes written by hand, as trainers would have left them: for whoever reads results."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trialkeeper import contract, environment, manifest, saving
from trialkeeper.store.directory import DirectoryStore

LOSS = [{"metric": "loss", "direction": "Minimize", "value": "Best"}]


@dataclass
class Shelf:
    """One trial's prefix below the folder of a store."""

    root: Path
    prefix: str = "default/exp-12345678/00000"
    parameters: dict[str, Any] = field(default_factory=lambda: {"lr": 0.1})
    objectives: list[dict[str, Any]] = field(default_factory=lambda: [*LOSS])

    @property
    def folder(self) -> Path:
        return self.root / self.prefix

    @property
    def name(self) -> str:
        return f"exp-{int(self.prefix[-5:])}"

    def _write(self, key: str, text: str) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)

    def begin(self, attempt: int = 1, base: str | None = None, **more: Any) -> None:
        """The record of an attempt."""
        told = {"trial": self.name, "experiment": "exp", "parameters": self.parameters, "objectives": self.objectives}
        record = {
            "attempt": attempt,
            "podUid": f"p{attempt}",
            "base": base,
            "continues": True,
            "time": 1000.0 * attempt,
        }
        self._write(contract.attempt_key(attempt), json.dumps({**record, **told, **more}))

    def end(self, attempt: int = 1, end: str = "complete") -> None:
        """An attempt's last words."""
        self._write(contract.ended_key(attempt), contract.Message(end=end, attempt=attempt).encode())

    def text(self, attempt: int, text: str) -> None:
        """Whatever it is, at the end of an attempt's results."""
        self._write(contract.results_key(attempt), text)

    def rows(self, attempt: int, iterations: range, **metrics: Any) -> None:
        """A row for each iteration; its loss tells attempt and iteration."""
        for i in iterations:
            row = {"training_iteration": i, "timestamp": 1000.0 + i, "trial_id": self.name, "attempt": attempt}
            line = {**row, "loss": attempt + i / 1000, **metrics}
            self.text(attempt, json.dumps(line, separators=(",", ":")) + "\n")

    def save(self, attempt: int, iteration: int, files: dict[str, bytes] | None = None, **metrics: Any) -> str:
        """A committed checkpoint; the key of its manifest."""
        env = environment.read(
            {
                "TRIALKEEPER_STORE": self.root.as_uri(),
                "TRIALKEEPER_PREFIX": self.prefix,
                "TRIALKEEPER_ATTEMPT": str(attempt),
                "TRIALKEEPER_SCRATCH": str(self.root.parent / "scratch"),
            }
        )
        source = self.root.parent / f"saving-{os.urandom(4).hex()}"
        for name, data in (files or {"w": f"{attempt}-{iteration}".encode()}).items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(data)
        saving.commit(
            DirectoryStore(self.folder),
            env,
            source,
            kind="directory",
            why="periodic",
            progress=manifest.Progress(iteration, None, 1.0, {}, ()),
            metrics={"loss": attempt + iteration / 1000, **metrics},
            reported=1000.0 + iteration,
            results=None,
        )
        return contract.manifest_key(attempt, iteration)
