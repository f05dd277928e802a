"""Trainers that are killed at given steps, and what they end with: a fingerprint of all weights, and the curve."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import proof
from trainers import Left, Place

Kills = Sequence[tuple[int, signal.Signals]]  # one for each attempt: the step that it hits, and the signal

PRELUDE = """
import hashlib, logging, warnings
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
KILLS = dict(enumerate(json.loads(os.environ["KILLS"]), 1))

def begin(step):
    at, number = KILLS.get(trialkeeper.get_context().attempt, (None, 0))
    if step == at:
        os.kill(os.getpid(), number)

def end(*parts):
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part if isinstance(part, bytes) else part.numpy().tobytes())
    print("ended with", whole.hexdigest())
"""


@dataclass
class Dying(Place):
    """A place whose trainers are told when to die."""

    kills: Kills = ()

    def env(self, attempt: int, pod: str | None = None) -> dict[str, str]:
        return super().env(attempt, pod) | {"KILLS": json.dumps(self.kills), "OMP_NUM_THREADS": "1"}


@dataclass
class Ended:
    """What a trial came to."""

    fingerprint: str
    curve: dict[int, dict[str, Any]]
    attempts: list[Left]
    place: Place


def trial(root: Path, script: str, kills: Kills = (), checkpoint: dict[str, Any] | None = None) -> Ended:
    """Run a trainer, and again after each kill, to its end.

    :raises AssertionError: if an attempt ends otherwise than by its kill, or the last one not.
    """
    root.mkdir()
    place = Dying(
        root, settings={"checkpoint": {"frequency": 1, "onBusy": "Wait"} | (checkpoint or {})}, timeout=600, kills=kills
    )
    left = []
    for number, (_, how) in enumerate(kills, 1):
        left.append(place.run(PRELUDE + script, number))
        assert "ended with" not in left[-1].out, "the kill has missed"
        if how == signal.SIGKILL:
            assert left[-1].code == -signal.SIGKILL, left[-1].err
        else:
            assert left[-1].end[0] == "preempted", left[-1].err
    left.append(place.run(PRELUDE + script, len(kills) + 1))
    assert (left[-1].code, left[-1].end[0]) == (0, "complete"), left[-1].err
    (said,) = (line for line in left[-1].out.splitlines() if line.startswith("ended with"))
    assert proof.continuity(place.store) == []
    return Ended(said, proof.curve(place.store), left, place)
