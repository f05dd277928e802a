"""The scenarios as data: what trainers and people do, and how it must end, whatever else goes wrong meanwhile.

Whatever happens in a scenario happens when a trainer has come so far, not at a time: so that it is the same story
however late the operator is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simulation.trainer import Script

LONG = Script(iterations=100_000, seconds=10.0, every=5)  # longer than any story: somebody has to stop it
SLOW = Script(iterations=100_000, seconds=200.0, every=5)  # too slow to be good at anything within a story


@dataclass(frozen=True)
class Scenario:
    """One story.

    `endings`: of each trial, the classes of its attempts; Lost is what Preempted becomes if nobody saw it, and what was
    taken over as it was has none. `deletions`: how often the experiment is deleted and made anew. `loose`: fields of a
    `TrialEnd` in which tellings may differ, since they depend on how late the operator is. `site`: whether it is told
    in a cluster; `quota`: pods that have room there.
    """

    scripts: tuple[Script, ...]
    endings: tuple[str, ...] = ()
    verdict: str = "AllTrialsFinished"
    spec: Mapping[str, Any] = field(default_factory=dict)
    deletions: int = 0
    gone: bool = False  # whether the experiment is deleted for good
    loose: tuple[str, ...] = ()
    site: bool = False
    quota: int | None = None
    patience: float = 900.0  # seconds that a trouble may cost: a few sweeps, a few back-offs

    @property
    def trials(self) -> int:
        return len(self.scripts)


def _script(iterations: int = 4, seconds: float = 10.0, every: int = 2, **at: tuple[int, str]) -> Script:
    """A trainer; `a2=(1, "exit")`: in attempt 2, after one report."""
    return Script(iterations, seconds, every, 3.0, {int(name[1:]): what for name, what in at.items()})


def _impolite(**at: tuple[int, str]) -> Script:
    return Script(4, 10.0, 2, 3.0, {int(name[1:]): what for name, what in at.items()}, obeys_sigterm=False)


SCENARIOS: dict[str, Scenario] = {
    "plain": Scenario(
        (_script(3), _script(2), _script(2)), ("Succeeded", "Succeeded", "Succeeded"), spec={"parallelism": 2}
    ),
    "preempted": Scenario(
        (_script(8, a1=(1, "evict"), a2=(1, "delete")), _impolite(a1=(2, "evict"))),
        ("Preempted Preempted Succeeded", "Preempted Succeeded"),
    ),
    "killed": Scenario(
        (_script(a1=(1, "vanish"), a2=(0, "kill"), a3=(1, "pressure")), _script(2)),
        ("Preempted Infrastructure Preempted Succeeded", "Succeeded"),
    ),
    "failed, then well": Scenario(
        (_script(a1=(1, "exception"), a2=(0, "os._exit")), _script(a1=(1, "reschedule"))),
        ("Failed Failed Succeeded", "Preempted Succeeded"),
    ),
    "failed for good": Scenario(
        (_script(a1=(1, "exit"), a2=(0, "segfault")), _script(a1=(1, "user error")), _script(a1=(1, "nan")), _script()),
        ("Failed Failed", "UserError", "Stopped", "Succeeded"),
        spec={"failurePolicy": {"maxFailures": 1}, "parallelism": 3},
    ),
    "gone at once": Scenario(
        (
            Script(4, 1.0, 2, 0.5, {1: (0, "force"), 2: (0, "vanish")}),
            Script(4, 1.0, 2, 0.5, {1: (0, "vanish"), 2: (0, "force"), 3: (0, "delete")}),
        ),
        ("Preempted Preempted Succeeded", "Preempted Preempted Preempted Succeeded"),
    ),
    "a zombie": Scenario(
        (_script(6, 400.0, a1=(1, "zombie"), a2=(2, "force")), _script(2)),
        ("Preempted Preempted Succeeded", "Succeeded"),
        loose=("lost",),
    ),
    "a node is lost": Scenario(
        (_script(6, 400.0, a1=(3, "lost")), _script(2)), ("Lost Succeeded", "Succeeded"), site=True, loose=("lost",)
    ),
    "nobody there": Scenario(
        (_script(8, a1=(1, "unseen"), a2=(0, "kill"), a3=(0, "unseen death"), a4=(1, "alone")), _script(2)),
        ("Lost Infrastructure Lost Succeeded", "Succeeded"),
    ),
    "a hang": Scenario(
        (_script(every=3, a1=(2, "hang")), _script(2)),
        ("Failed Succeeded", "Succeeded"),
        spec={"timeouts": {"firstReportSeconds": 2000, "progressSeconds": 2000}},
        patience=2 * 3600.0,
    ),
    "paused, and gone on with": Scenario(
        (_script(8, a1=(2, "pause")), _script(2)), ("Stopped Succeeded", "Succeeded"), site=True
    ),
    "stopped by hand": Scenario(
        (_script(100, a1=(3, "stop")), _script(2)), ("Stopped", "Succeeded"), loose=("iteration",)
    ),
    "target reached": Scenario(
        (_script(7), SLOW),
        ("Succeeded", "Stopped"),
        verdict="TargetReached",
        spec={"objectives": [{"metric": "loss", "target": 0.15}]},
        loose=("iteration",),
    ),
    "too many failed": Scenario(
        (_script(a1=(1, "user error")), LONG),
        ("UserError", "Stopped"),
        verdict="TooManyFailedTrials",
        spec={"failurePolicy": {"maxFailedTrials": 0}},
        loose=("iteration",),
    ),
    "no room": Scenario((_script(3, a1=(1, "evict")), _script(2)), ("Preempted Succeeded", "Succeeded"), quota=1),
    "restored": Scenario(
        (_script(2), _script(6, a1=(3, "restore")), _script(3)),
        ("", "Succeeded", "Succeeded"),
        spec={"parallelism": 2},
        deletions=1,
        loose=("closed", "classes", "failures", "disruptions", "lost"),
    ),
    "two pods each": Scenario(
        (
            _script(10, a1=(1, "evict another"), a2=(1, "exit"), a3=(1, "force another")),
            _impolite(a1=(2, "kill another, unseen"), a2=(0, "evict"), a3=(1, "kill another")),
            _script(a1=(1, "user error")),
        ),
        ("Preempted Failed Preempted Succeeded", "Infrastructure Preempted Infrastructure Succeeded", "UserError"),
        spec={"nodes": 2},
        loose=("lost",),
    ),
    "deleted": Scenario((LONG, _script(a1=(1, "delete the experiment"))), gone=True),
}
