"""Where the next attempt may run: whose turn it is among the placements, and which nodes it stays away from.

Both follow from what is stored before the pod is made, so that a crash in between changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trialkeeper.contract import REASON_STORE
from trialkeeper_operator.api.experiment import ExperimentSpec, Placement
from trialkeeper_operator.api.trial import Placed, TrialStatus
from trialkeeper_operator.decide import endings
from trialkeeper_operator.decide.waiting import UNSCHEDULABLE

AVOIDED = 3  # nodes at most
PATIENCE = 60.0  # seconds that a pod may be unschedulable before it avoids no node any more


def opened(spec: ExperimentSpec, status: TrialStatus) -> TrialStatus:
    """The status of an attempt that is opened, with its placement; placements may have been edited."""
    found = _turn(spec, status)
    name = found.name if found else None
    if (status.placement.name if status.placement else None) == name:
        return status
    return status.model_copy(update={"placement": Placed(name=name) if name else None})


def closed(spec: ExperimentSpec, status: TrialStatus) -> TrialStatus:
    """The status after an ending: the next placement's turn comes after so many disruptions, or for want of room.

    Want of room counts only for a pod that avoided no node: that is given up first.
    """
    placements, placed, last = spec.placements or [], status.placement, status.history[-1]
    if placed is None or last.class_ not in endings.DISRUPTED or last.reason == REASON_STORE:
        return status  # the store is as far away from any node
    count = placed.disruptions + 1
    position = next((i for i, p in enumerate(placements) if p.name == placed.name), None)
    if position is None:
        return status
    limit, before = placements[position].max_disruptions, status.history[:-1]
    full = last.reason == UNSCHEDULABLE and not _avoided(before)
    if (full or (limit is not None and count >= limit)) and position + 1 < len(placements):
        return status.model_copy(update={"placement": Placed(name=placements[position + 1].name)})
    return status.model_copy(update={"placement": Placed(name=placed.name, disruptions=count)})


def movable(spec: ExperimentSpec, status: TrialStatus) -> float:
    """Seconds that the open attempt's pod may be unschedulable before another could do better, 0 for ever."""
    if avoided(status):
        return PATIENCE
    placements = spec.placements or []
    name = status.placement.name if status.placement else None
    last = not placements or name in (None, placements[-1].name)
    return 0.0 if last else spec.timeouts.scheduling_seconds


def avoided(status: TrialStatus) -> list[str]:
    """Nodes whose own trouble has ended the newest attempts, one after the other, the newest first.

    An ending of another kind, or for want of room on any other node, begins anew.
    """
    return _avoided(status.history)


def _avoided(history: Sequence[Any]) -> list[str]:
    nodes: dict[str, None] = {}
    for record in reversed(history):
        if record.class_ != endings.INFRASTRUCTURE or record.reason == UNSCHEDULABLE:
            break
        if record.node and record.reason != REASON_STORE:  # which is no trouble of the node's
            nodes[record.node] = None
    return list(nodes)[:AVOIDED]


def _turn(spec: ExperimentSpec, status: TrialStatus) -> Placement | None:
    placements = spec.placements or []
    name = status.placement.name if status.placement else None
    return next((p for p in placements if p.name == name), placements[0] if placements else None)


def settle(pod: dict[str, Any], spec: ExperimentSpec, status: TrialStatus) -> None:
    """Put a pod's spec where this attempt may run. Of a placement only nodeSelector and tolerations reach a pod."""
    found = _turn(spec, status)
    if found is not None and found.node_selector and isinstance(pod.get("nodeSelector") or {}, dict):
        pod["nodeSelector"] = {**(pod.get("nodeSelector") or {}), **found.node_selector}
    if found is not None and found.tolerations and isinstance(pod.get("tolerations") or [], list):
        pod["tolerations"] = [*(pod.get("tolerations") or []), *found.tolerations]
    _away(pod, avoided(status))


def _away(pod: dict[str, Any], nodes: Sequence[str]) -> None:
    """Have a pod stay away from nodes: terms of a node affinity are alternatives, so each of them has to say it."""
    affinity = _member(pod, "affinity")
    node = _member(affinity, "nodeAffinity")
    required = _member(node, "requiredDuringSchedulingIgnoredDuringExecution")
    terms = None if required is None else required.get("nodeSelectorTerms") or [{}]
    if not nodes or affinity is None or node is None or required is None or not isinstance(terms, list):
        return
    if not all(isinstance(t, dict) and isinstance(t.get("matchFields") or [], list) for t in terms):
        return
    # The API server takes one name in each requirement, and all of them have to hold.
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in nodes]
    told = [{**t, "matchFields": [*(t.get("matchFields") or []), *fields]} for t in terms]
    required = {**required, "nodeSelectorTerms": told}
    node = {**node, "requiredDuringSchedulingIgnoredDuringExecution": required}
    pod["affinity"] = {**affinity, "nodeAffinity": node}


def _member(of: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    """A mapping in a mapping, empty if it is absent; None for what no pod can have, which is left as it is."""
    found = None if of is None else of.get(name) or {}
    return found if isinstance(found, dict) else None
