"""Whose trials an experiment's are: prefixes of the store by index, over all experiments that went on from others."""

from __future__ import annotations

from trialkeeper import contract
from trialkeeper_operator.reconcile.ports import Event


class Lineage:
    """Follows what the objects say. A trial that no snapshot knew is asked for anew and has no predecessor."""

    def __init__(self) -> None:
        self.source = ""  # the uid of the experiment whose snapshot the next one goes on from
        self._donor: dict[str, str] = {}  # by uid
        self._prefixes: dict[str, dict[int, list[str]]] = {}  # by uid and index: the trial's own, then older ones
        self._older: dict[str, list[str]] = {}  # by prefix
        self._newest = ""
        self._restoring = False  # whether what is created now is taken over

    def see(self, event: Event) -> None:
        spec, meta = event.object.get("spec") or {}, event.object["metadata"]
        if event.kind == "Experiment" and event.type == "ADDED":
            self._donor[meta["uid"]], self._newest = self.source, meta["uid"]
        if event.kind == "Experiment":
            restored = (event.object.get("status") or {}).get("restored")
            self._restoring = "restoreFrom" in spec and not restored and event.type != "DELETED"
        if event.kind != "Trial" or event.type != "ADDED":
            return
        index, uid = spec["index"], spec["experimentUid"]
        own = contract.prefix(meta["namespace"], spec["experiment"], uid, index)
        # A second leader may still take a trial over that the one who was through did not find in the snapshot.
        taken_over = self._restoring or "base" in spec
        older = self._prefixes.get(self._donor[uid], {}).get(index, []) if taken_over else []
        self._prefixes.setdefault(uid, {})[index] = [own, *older]
        self._older[own] = older

    def own(self, index: int) -> str:
        return self.of(index)[0]

    def of(self, index: int) -> list[str]:
        """A trial's prefix and its predecessors', the newest first."""
        return self._prefixes[self._newest][index]

    def predecessors(self, prefix: str) -> list[str]:
        return self._older.get(prefix, [])
