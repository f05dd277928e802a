"""Saying that an experiment cannot be carried out: once, in its Accepted condition, and nothing else stops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import Condition
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.reconcile.ports import Conflict, Invalid, Object
from trialkeeper_operator.reconcile.world import World

_KEPT = ("templateHash", "restored", "trials")  # what would be done twice if it were forgotten


def _with(status: Mapping[str, Any], condition: Condition) -> dict[str, Any]:
    """A status that says so beside all that it has said; an experiment that is over stays what it came to."""
    others = [c for c in status.get("conditions") or () if isinstance(c, dict) and c.get("type") != names.ACCEPTED]
    over = any(c.get("type") == names.SUCCEEDED and c.get("status") in ("True", "False") for c in others)
    phase = status.get("phase") if over else "Invalid"
    return {**status, "phase": phase, "conditions": [*others, condition.to_object()]}


async def refuse(world: World, raw: Object, reason: str, message: str) -> None:
    """Say it, unless it has been said."""
    message = message[:1024]
    status = raw.get("status") or {}
    known = status.get("conditions") or ()
    if any(c.get("type") == names.ACCEPTED and c.get("message") == message for c in known if isinstance(c, dict)):
        return
    condition = Condition(
        type=names.ACCEPTED,
        status="False",
        reason=reason,
        message=message,
        last_transition_time=stamp(world.now()),
    )
    try:
        try:
            await world.put_status(raw, _with(status, condition))
        except Invalid:
            # What stands there is no status of ours; what must not be forgotten is kept.
            kept = {field: status[field] for field in _KEPT if field in status}
            await world.put_status(raw, {**kept, "phase": "Invalid", "conditions": [condition.to_object()]})
    except Conflict:
        await world.look(names.EXPERIMENT, (raw["metadata"].get("namespace", ""), raw["metadata"]["name"]))
