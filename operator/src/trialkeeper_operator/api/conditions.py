"""Conditions as Kubernetes has them: a list with one entry a type, whose time moves only with its status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from trialkeeper_operator.api.resource import StatusModel

Verdict = Literal["True", "False", "Unknown"]


class Condition(StatusModel):
    """One observed aspect; `reason` is for programs, `message` for people."""

    type: str = Field(max_length=64)
    status: Verdict
    reason: str = Field(max_length=256)
    message: str = Field(default="", max_length=1024)
    last_transition_time: str = Field(max_length=40)


def find(conditions: Sequence[Condition], kind: str) -> Condition | None:
    """The condition of a type, None if there is none."""
    return next((c for c in conditions if c.type == kind), None)


def holds(conditions: Sequence[Condition], kind: str) -> bool:
    """Whether the condition of a type is there and True."""
    found = find(conditions, kind)
    return found is not None and found.status == "True"


def set_condition(conditions: Sequence[Condition], new: Condition) -> list[Condition]:
    """The list with one type's condition replaced; its time stays unless its status has changed."""
    old = find(conditions, new.type)
    if old is not None and old.status == new.status:
        new = new.model_copy(update={"last_transition_time": old.last_transition_time})
    return sorted([c for c in conditions if c.type != new.type] + [new], key=lambda c: c.type)
