"""Trainers as processes: a script, its operator's variables, and what it left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trialkeeper import environment
from trialkeeper.contract import Message
from trialkeeper.store.opening import open_store
from trialkeeper.store.s3 import S3Store

PREAMBLE = "import json, os, sys, signal, trialkeeper\n"
SAVING = """
checkpoint = trialkeeper.get_checkpoint()
start = int((checkpoint.path / "i").read_text()) + 1 if checkpoint else 0
def save(folder):
    (folder / "i").write_text(str(i))
def die():
    trialkeeper.flush()  # so that it is known what is in the store by then
    os.kill(os.getpid(), 9)
"""


@dataclass
class Place:
    """One trial's folder; each `run` is an attempt."""

    root: Path
    settings: dict[str, Any] = field(
        default_factory=lambda: {"objectives": [{"metric": "loss"}], "checkpoint": {"frequency": 1, "onBusy": "Wait"}}
    )
    params: dict[str, Any] = field(default_factory=dict)
    timeout: float = 60  # seconds that an attempt may take

    @property
    def store(self) -> Path:
        return self.root / "store" / "t"

    def env(self, attempt: int, pod: str | None = None) -> dict[str, str]:
        scratch = self.root / f"scratch-{attempt}-{pod}"
        scratch.mkdir(parents=True, exist_ok=True)
        return {
            **os.environ,
            "TRIALKEEPER_TRIAL": "exp-0",
            "TRIALKEEPER_EXPERIMENT": "exp",
            "TRIALKEEPER_ATTEMPT": str(attempt),
            "TRIALKEEPER_POD_UID": pod or f"pod-{attempt}",
            "TRIALKEEPER_SEED": "5",
            "TRIALKEEPER_STORE": (self.root / "store").as_uri(),
            "TRIALKEEPER_PREFIX": "t",
            "TRIALKEEPER_SCRATCH": str(scratch),
            "TRIALKEEPER_TERMINATION_LOG": str(scratch / "termination"),
            "TRIALKEEPER_REPORT": (scratch / "report.json").as_uri(),
            "TRIALKEEPER_PARAMS": json.dumps(self.params),
            "TRIALKEEPER_SETTINGS": json.dumps(self.settings),
        }

    def run(self, script: str, attempt: int = 1, *, pod: str | None = None, stdin: bool = False) -> Left:
        """Run a script to its end as one attempt."""
        env, code = self.env(attempt, pod), PREAMBLE + script
        if stdin:
            command, given = [sys.executable, "-"], code
        else:
            (self.root / "trainer.py").write_text(code)
            command, given = [sys.executable, "trainer.py"], ""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=env,
            input=given,
            capture_output=True,
            text=True,
            timeout=self.timeout,
            check=False,
        )
        log = Path(env["TRIALKEEPER_TERMINATION_LOG"])
        report = Path(env["TRIALKEEPER_SCRATCH"]) / "report.json"
        return Left(
            done.returncode,
            done.stdout,
            done.stderr,
            Message.decode(log.read_text()) if log.exists() else None,
            Message.decode(report.read_text()) if report.exists() else None,
        )

    def rows(self, attempt: int = 1) -> list[dict[str, Any]]:
        file = self.store / "results" / f"a{attempt:06d}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def manifests(self) -> list[str]:
        return sorted(p.stem for p in (self.store / "manifests").glob("*.json"))


@dataclass
class BucketPlace(Place):
    """One trial's prefix in a bucket; each attempt has a scratch folder of its own, as on a node of its own."""

    url: str = ""
    keys: dict[str, str] = field(default_factory=dict)

    def env(self, attempt: int, pod: str | None = None) -> dict[str, str]:
        return super().env(attempt, pod) | {"TRIALKEEPER_STORE": self.url} | self.keys

    @contextmanager
    def opened(self) -> Iterator[S3Store]:
        """The store, as a reader sees it."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.keys.items():
                patch.setenv(name, value)
            found = open_store(environment.read(self.env(1, "reader")))
            assert isinstance(found, S3Store)
            yield found
            found.close()

    def rows(self, attempt: int = 1) -> list[dict[str, Any]]:
        with self.opened() as store:
            return [json.loads(line) for line in store.lines(f"results/a{attempt:06d}.jsonl")][::-1]

    def manifests(self) -> list[str]:
        with self.opened() as store:
            return [Path(key).stem for key in store.list("manifests/")]

    def copied(self) -> Path:
        """The prefix as a directory store would have it, for whoever reads folders."""
        top = self.root / "copied"
        with self.opened() as store:
            for key in store.list(""):
                if not key.startswith("results/"):
                    (top / key).parent.mkdir(parents=True, exist_ok=True)
                    (top / key).write_bytes(store.get(key))
            (top / "results").mkdir(exist_ok=True)
            for name in {key.split("/")[1] for key in store.list("results/")}:
                (top / "results" / name).write_bytes(b"".join([*store.lines(f"results/{name}")][::-1]))
        return top


@dataclass
class Left:
    """What a trainer's process left behind."""

    code: int
    out: str
    err: str
    last: Message | None
    report: Message | None

    @property
    def end(self) -> tuple[str, str]:
        assert self.last is not None
        return self.last.end, self.last.reason


RANKED = """
import threading, time
checkpoint = trialkeeper.get_checkpoint()
context = trialkeeper.get_context()
rank, attempt = context.rank, context.attempt
start = int((checkpoint.path / "i").read_text()) + 1 if checkpoint else 0
def save(folder):
    (folder / "i").write_text(str(i))
    (folder / "of").write_text(str(rank))
"""


@dataclass
class Ranks:
    """One attempt's processes on several nodes, each with a scratch folder of its own, as a launcher starts them."""

    place: Place
    nodes: tuple[int, ...] = (2, 2)

    @property
    def world(self) -> int:
        return sum(self.nodes)

    def env(self, attempt: int, rank: int, life: int = 0) -> dict[str, str]:
        node = next(n for n in range(len(self.nodes)) if rank < sum(self.nodes[: n + 1]))
        return self.place.env(attempt, f"pod-{attempt}-{node}") | {
            "RANK": str(rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(rank - sum(self.nodes[:node])),
            "LOCAL_WORLD_SIZE": str(self.nodes[node]),
            "MASTER_ADDR": "127.0.0.1",
            "TORCHELASTIC_RESTART_COUNT": str(life),
            "TRIALKEEPER_GRACE_SECONDS": "10",
        }

    @contextmanager
    def running(
        self, script: str, attempt: int = 1, *, beginning: str = RANKED
    ) -> Iterator[list[subprocess.Popen[str]]]:
        """The processes, in the order of their ranks; whatever still runs afterwards is killed."""
        (self.place.root / "trainer.py").write_text(PREAMBLE + beginning + script)
        processes = [
            subprocess.Popen(
                [sys.executable, "trainer.py"],
                cwd=self.place.root,
                env=self.env(attempt, rank),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(self.world)
        ]
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.communicate()

    def ended(self, processes: list[subprocess.Popen[str]], attempt: int = 1) -> list[Left]:
        """How they have ended; each within a minute."""
        found = []
        log = Path(self.env(attempt, 0)["TRIALKEEPER_TERMINATION_LOG"])
        for process in processes:
            out, err = process.communicate(timeout=60)
            last = Message.decode(log.read_text()) if log.exists() else None
            found.append(Left(process.returncode, out, err, last, None))
        return found

    def run(self, script: str, attempt: int = 1, *, beginning: str = RANKED) -> list[Left]:
        """Run a script to its end in every process."""
        with self.running(script, attempt, beginning=beginning) as processes:
            return self.ended(processes, attempt)
