"""Trialkeeper in a trainer: `get_params`, `get_checkpoint`, `report`, and nothing happens before the first call.

    import trialkeeper

    p = trialkeeper.get_params(lr=1e-3)
    checkpoint = trialkeeper.get_checkpoint()
    ...
    trialkeeper.report({"loss": loss}, checkpoint=save)

Importing this has no side effect: names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trialkeeper.checkpoint import Checkpoint
    from trialkeeper.context import Context, Params, get_context, get_params
    from trialkeeper.errors import (
        CheckpointCorrupt,
        RankZeroGone,
        StaleAttempt,
        TrialPreempted,
        TrialStopped,
        WorldSizeChanged,
    )
    from trialkeeper.leaving import Preemption
    from trialkeeper.reporting import checkpoint_dir, checkpoint_due, flush, get_checkpoint, preemption, report
    from trialkeeper.results import open_results
    from trialkeeper.saves import FlushResult
    from trialkeeper.trainable import Trainable, main

__version__ = "0.1.0"

__all__ = (
    "Checkpoint",
    "CheckpointCorrupt",
    "Context",
    "FlushResult",
    "Params",
    "Preemption",
    "RankZeroGone",
    "StaleAttempt",
    "Trainable",
    "TrialPreempted",
    "TrialStopped",
    "WorldSizeChanged",
    "checkpoint_dir",
    "checkpoint_due",
    "flush",
    "get_checkpoint",
    "get_context",
    "get_params",
    "main",
    "open_results",
    "preemption",
    "report",
)

_HOMES = {
    "Checkpoint": "checkpoint",
    "CheckpointCorrupt": "errors",
    "Context": "context",
    "Params": "context",
    "RankZeroGone": "errors",
    "StaleAttempt": "errors",
    "Trainable": "trainable",
    "TrialPreempted": "errors",
    "TrialStopped": "errors",
    "WorldSizeChanged": "errors",
    "FlushResult": "saves",
    "Preemption": "leaving",
    "checkpoint_dir": "reporting",
    "checkpoint_due": "reporting",
    "flush": "reporting",
    "preemption": "reporting",
    "get_checkpoint": "reporting",
    "get_context": "context",
    "get_params": "context",
    "main": "trainable",
    "open_results": "results",
    "report": "reporting",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'trialkeeper' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"trialkeeper.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
