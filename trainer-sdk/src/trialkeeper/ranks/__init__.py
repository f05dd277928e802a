"""Several processes of one trial: rank 0 decides, the others do the same at the same call.

`agreement` is what is said, without sockets and threads of its own; `wire` carries it; `meeting` is how the others
find rank 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
MASTER = "MASTER_ADDR"
RESTARTS = "TORCHELASTIC_RESTART_COUNT"


@dataclass(frozen=True)
class Place:
    """This process among those of its trial. `life` counts how often a launcher has started all of them anew."""

    rank: int = 0
    world: int = 1
    local_world: int = 1
    life: int = 0
    master: str = ""

    @property
    def alone(self) -> bool:
        """Whether this trial is one process."""
        return self.world == 1

    @property
    def one_node(self) -> bool:
        """Whether all processes are in this pod."""
        return self.local_world >= self.world


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 8 else None


def place(env: Mapping[str, str]) -> Place:
    """The place that torchrun, or whoever sets the same variables, has given this process."""
    rank, world = _number(env, RANK), _number(env, WORLD_SIZE)
    if rank is None or world is None or not rank < world or world < 2:
        return Place()
    local = _number(env, LOCAL_WORLD_SIZE)
    return Place(rank, world, 1 if local is None else local, _number(env, RESTARTS) or 0, env.get(MASTER, ""))
