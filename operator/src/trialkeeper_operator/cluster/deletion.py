"""A pod's way out: how long it has when it is deleted, as the API server's graceful deletion reckons it. Pure.

Other kinds have no grace: they are gone at once. The rules are those of the API server's `BeforeDelete` and of
its pod strategy; whole seconds, counted from the first deletion.
"""

from __future__ import annotations

from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.reconcile.ports import Object

DEFAULT_GRACE = 30  # seconds, for a pod that does not say


def ending(pod: Object, asked: int | None, now: float) -> Object:
    """The pod once it is deleted with the grace `asked` for (seconds; None: its own), or as it is if nothing changes.

    Grace 0 means that it is to be removed now. A pod that no node has, or that has ended, is given none. A pod
    that is being deleted already can only be given less, and a negative grace is taken for the least, 1.
    """
    meta = pod["metadata"]
    asked = 1 if asked is not None and asked < 0 else asked
    if meta.get("deletionTimestamp"):
        granted: int = meta["deletionGracePeriodSeconds"]
        if asked is None or asked >= granted:
            return pod
        began = seconds(meta["deletionTimestamp"]) - granted
        return _with(pod, max(now, began + asked), asked, meta.get("generation", 0))
    grace = _own(pod) if asked is None else asked
    if not pod["spec"].get("nodeName") or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        grace = 0
    return _with(pod, now + grace, grace, meta.get("generation", 0) + 1)


def is_over(pod: Object) -> bool:
    """Whether a deleted pod has no grace left to it."""
    return bool(pod["metadata"].get("deletionGracePeriodSeconds") == 0)


def _own(pod: Object) -> int:
    return int(pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE))


def _with(pod: Object, at: float, grace: int, generation: int) -> Object:
    fields = {"deletionTimestamp": stamp(at), "deletionGracePeriodSeconds": grace, "generation": generation}
    return {**pod, "metadata": {**pod["metadata"], **fields}}
