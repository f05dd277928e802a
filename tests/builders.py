"""Builders of the objects that tests need: `experiment()`, `trial()`, `pod()`, each a raw dict with good defaults."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from typing import Any

from trialkeeper.contract import Message

NOW = 1_700_000_000.0
_uids = itertools.count(1)


def experiment(name: str = "exp", *, uid: str = "exp-uid", **spec: Any) -> dict[str, Any]:
    """An Experiment of four random trials, two at a time; `spec` replaces or adds fields."""
    return {
        "apiVersion": "trialkeeper.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": name, "namespace": "default", "uid": uid, "generation": 1, "resourceVersion": "1"},
        "spec": {
            "objectives": [{"metric": "loss"}],
            "parameters": [{"name": "lr", "float": {"min": 1e-5, "max": 0.1, "scale": "Log"}}],
            "search": {"algorithm": "Random", "seed": 1},
            "maxTrials": 4,
            "parallelism": 2,
            "template": {"spec": {"containers": [{"name": "trainer", "image": "t", "command": ["python", "t.py"]}]}},
            **spec,
        },
    }


def trial(
    name: str = "exp-0", *, index: int = 0, uid: str = "trial-uid", spec: Any = None, **status: Any
) -> dict[str, Any]:
    """A Trial of `experiment()`; `status` in the API's own names."""
    return {
        "apiVersion": "trialkeeper.dev/v1alpha1",
        "kind": "Trial",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "generation": 1,
            "resourceVersion": "7",
            "creationTimestamp": "2023-11-14T22:13:20Z",
            "ownerReferences": [
                {
                    "apiVersion": "trialkeeper.dev/v1alpha1",
                    "kind": "Experiment",
                    "name": "exp",
                    "uid": "exp-uid",
                    "controller": True,
                }
            ],
        },
        "spec": {
            "experiment": "exp",
            "experimentUid": "exp-uid",
            "index": index,
            "parameters": {"lr": 0.01},
            "seed": 5,
            **(spec or {}),
        },
        "status": status,
    }


def pod(
    attempt: int = 1,
    *,
    name: str | None = None,
    uid: str | None = None,
    phase: str = "Running",
    exit_code: int | None = None,
    reason: str = "",
    message: str | Message = "",
    deleted: bool = False,
    condition: tuple[str, str] | None = None,
    pod_reason: str = "",
    pod_message: str = "",
    container: str = "trainer",
    finished: str | None = "2023-11-14T22:14:20.000000Z",
) -> dict[str, Any]:
    """A pod of `trial()` in some state; `exit_code` None means that its container has not terminated."""
    text = json.dumps(asdict(message)) if isinstance(message, Message) else message
    status: dict[str, Any] = {"phase": phase}
    if exit_code is not None:
        ended: dict[str, Any] = {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
        }
        ended |= {"message": text} if text else {}
        ended |= {"finishedAt": finished} if finished else {}
        status["containerStatuses"] = [{"name": container, "state": {"terminated": ended}}]
        status["phase"] = phase if phase != "Running" else ("Succeeded" if exit_code == 0 else "Failed")
    if condition:
        status["conditions"] = [{"type": condition[0], "status": "True", "reason": condition[1]}]
    status |= {"reason": pod_reason} if pod_reason else {}
    status |= {"message": pod_message} if pod_message else {}
    meta: dict[str, Any] = {
        "name": name or f"exp-0-a{attempt}",
        "namespace": "default",
        "uid": uid or f"pod-{attempt}",
        "resourceVersion": "9",
        "labels": {"trialkeeper.dev/trial": "exp-0", "trialkeeper.dev/attempt": str(attempt)},
        "ownerReferences": [
            {
                "apiVersion": "trialkeeper.dev/v1alpha1",
                "kind": "Trial",
                "name": "exp-0",
                "uid": "trial-uid",
                "controller": True,
            }
        ],
    }
    if deleted:
        meta["deletionTimestamp"] = "2023-11-14T22:14:00Z"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {"containers": [{"name": container, "image": "t"}]},
        "status": status,
    }
