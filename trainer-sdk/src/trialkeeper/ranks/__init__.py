"""Several processes of one trial: rank 0 decides, the others do the same at the same call.

`agreement` is what is said, without sockets and threads of its own; `wire` carries it; `meeting` is how the others
find rank 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
MASTER = "MASTER_ADDR"
RESTARTS = "TORCHELASTIC_RESTART_COUNT"


@dataclass(frozen=True)
class Place:
    """This process among those of its trial. `life` counts how often a launcher has started all of them anew."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    life: int = 0
    master: str = ""


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 8 else None


def place(env: Mapping[str, str]) -> Place:
    """The place that torchrun, or whoever sets the same variables, has given this process."""
    rank, world = _number(env, RANK), _number(env, WORLD_SIZE)
    if rank is None or world is None or not rank < world or world < 2:
        return Place()
    local, size = _number(env, LOCAL_RANK), _number(env, LOCAL_WORLD_SIZE)
    if local is None or size is None or not local < size <= world or local > rank:
        local, size = 0, 1
    return Place(rank, world, local, size, _number(env, RESTARTS) or 0, env.get(MASTER, ""))


class Alone:
    """The other ranks of a trial that has none; as rank 0 knows them, see `leading`."""

    alone = True

    def ask(self, kind: str, decide: Callable[[], Any], *, step: int | None = None) -> Any:
        """What comes of a call at which mostly nothing happens: what `decide` says, once the others can be told."""
        return decide() or None

    def say(self, kind: str, value: Any) -> None:
        """Tell what comes of a call."""

    def report(self, value: Any) -> None:
        """Tell what comes of a report."""

    def vouched(self, name: str, ranks: frozenset[int]) -> bool:
        """Whether these ranks, too, have their part of a checkpoint, whole."""
        return True

    def close(self, *, complete: bool) -> None:
        """Say goodbye; `complete` if the trial was through."""

    def forked(self) -> None:
        """In a forked child: let go of what is the parent's."""
