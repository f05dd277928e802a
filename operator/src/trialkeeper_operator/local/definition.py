"""The experiment of a file and the one that its run began with: brought together, or told apart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.api.validate import InvalidObject, Problem, check_experiment
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.ports import Conflict, Invalid, Object

NAMESPACE = "default"

_MAY_CHANGE = re.compile(
    r"spec\.(parallelism|maxTrials|suspend|enqueue|failurePolicy|timeouts|placements|checkpoint|stop|deletionPolicy)\b"
    r"|spec\.objectives\[\d+\]\.target:"
)

_MOST = Problem("spec.maxTrials", "can only grow")


class RunDiffers(ValueError):
    """Raised when the file differs from the run in what cannot change; `most`: maxTrials there, and here."""

    def __init__(
        self, name: str, refusal: InvalidObject, changes: Sequence[str], most: tuple[int | None, int | None]
    ) -> None:
        shrunk = f"{_MOST.path}: {most[0]} -> {most[1] or 'none'}: it can only grow, write {most[0]} or more"
        lines = [shrunk if problem == _MOST else str(problem) for problem in refusal.problems] + [*changes]
        anew = [] if lines == [shrunk] else ["start it anew with --fresh, or give the new one another metadata.name"]
        told = "\n".join([*(f"  {line}" for line in lines), *anew])
        super().__init__(f"experiment {name} has been started with another definition:\n{told}")


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
            wanted = check_experiment(raw).spec.to_object()
            changes = differences(stored["spec"], wanted)
            fixed = [change for change in changes if not _MAY_CHANGE.match(change)]
            most = stored["spec"].get("maxTrials"), wanted.get("maxTrials")
            raise RunDiffers(name, refusal.__cause__, fixed, most) from refusal
        raise
