"""The experiment of a file and the one that its run began with: brought together, or told apart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.api.validate import InvalidObject, check_experiment
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import Conflict, Invalid, Object

NAMESPACE = "default"

_MAY_CHANGE = re.compile(
    r"spec\.(parallelism|maxTrials|suspend|enqueue|failurePolicy|timeouts|placements|checkpoint|stop|deletionPolicy)\b"
    r"|spec\.objectives\[\d+\]\.target:"
)


class RunDiffers(ValueError):
    """Raised when the file differs from the run in what cannot change."""

    def __init__(self, name: str, refusal: InvalidObject, changes: Sequence[str]) -> None:
        lines = "\n".join(f"  {line}" for line in [*map(str, refusal.problems), *changes])
        super().__init__(
            f"experiment {name} has been started with another definition:\n{lines}\n"
            f"start it anew with --fresh, or give the new one another metadata.name"
        )


def differences(old: Any, new: Any, path: str = "spec") -> list[str]:
    """Every place where two values differ, as `path: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, pair in enumerate(zip(old, new, strict=True)) for d in differences(*pair, f"{path}[{i}]")]
    return [] if old == new else [f"{path}: {json.dumps(old)} -> {json.dumps(new)}"]


async def ensure(memory: Memory, raw: Mapping[str, Any]) -> Object:
    """Create the Experiment, or bring the one of an earlier run up to the file; as it is stored then.

    :raises RunDiffers: if the file has changed in what cannot change.
    """
    name = raw["metadata"]["name"]
    body = {**raw, "metadata": {**raw["metadata"], "namespace": NAMESPACE}}
    stored = await memory.get(names.EXPERIMENT, NAMESPACE, name)
    if stored is None:
        return await memory.create(body)
    kept = {k: stored["metadata"][k] for k in ("uid", "resourceVersion")}
    try:
        return await memory.put({**body, "metadata": {**body["metadata"], **kept}})
    except (Invalid, Conflict) as refusal:
        if isinstance(refusal.__cause__, InvalidObject):
            changes = differences(stored["spec"], check_experiment(raw).spec.to_object())
            fixed = [change for change in changes if not _MAY_CHANGE.match(change)]
            raise RunDiffers(name, refusal.__cause__, fixed) from refusal
        raise
