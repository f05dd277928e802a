"""The last seconds of a pod that was asked to go: what can still be saved, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SAFETY = 1.25  # times what was measured


@dataclass(frozen=True)
class Preemption:
    """This pod was asked to go.

    `source` is `SIGTERM` or `notify file`. `deadline`: seconds that are left for everything. `fits`: whether a fresh
    save would be through by then, as saves of this attempt went until now; True before the first one.
    """

    source: str
    deadline: float
    fits: bool


@dataclass(frozen=True)
class InHand:
    """Seconds: what the saves on their way still need, and what a fresh one would take from its first byte on."""

    sending: float
    fresh: float


Way = Literal["save", "replace", "finish"]
SAVE: Way = "save"


def way_out(left: float, hand: InHand) -> Way:
    """What keeps most in `left` seconds: save afresh behind what is on its way, or in its place, or let that finish."""
    fresh = hand.fresh * SAFETY
    if hand.sending * SAFETY + fresh <= left:
        return "save"
    return "replace" if fresh <= left else "finish"
