"""Another rank's connection to rank 0."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trialkeeper import signals
from trialkeeper.ranks import meeting
from trialkeeper.ranks.agreement import Follower
from trialkeeper.ranks.wire import Client
from trialkeeper.store.opening import open_store

if TYPE_CHECKING:
    from trialkeeper.session import Session


class Follow:
    """What rank 0 says, and what it is told. `ask`, `hear` and `report` are those of `agreement.Follower`."""

    def __init__(self, current: Session) -> None:
        env = current.env
        self._session = current
        self._follower = Follower(self._leave_by, current.warn_once)
        self.ask, self.hear, self.report = self._follower.ask, self._follower.hear, self._follower.report
        store = None if env.one_pod else lambda: open_store(env, current.leave_by)
        self._client = Client(
            self._follower,
            rank=env.rank,
            attempt=env.attempt,
            world=env.world,
            find=meeting.finder(env.scratch, store, env.attempt, env.life),
            asked=self._asked,
        )

    def _leave_by(self) -> float | None:
        return self._session.leave_by() if signals.asked_to_go(self._session) else None

    def _asked(self) -> dict[str, Any] | None:
        by = self._leave_by()
        return None if by is None else {"left": max(by - time.monotonic(), 0.0), "source": self._session.source}

    def tell(self, kind: str, value: Any) -> None:
        """Tell rank 0 something."""
        self._client.say({"w": kind, "value": value})

    def vouch(self, name: str, whole: bool) -> None:
        """Tell rank 0 whether this rank's part of a checkpoint is whole."""
        self._client.say({"w": "note", "name": f"whole {name}", "value": whole})

    def part(self, nonce: str, what: str) -> None:
        """Tell rank 0 that this rank has no files for a save (`empty`), or could not save (`failed`)."""
        self._client.say({"w": "part", "nonce": nonce, "is": what})

    def await_end(self, by: Callable[[], float]) -> bool:
        """Wait until rank 0 is gone, or a moment comes; whether it is gone."""
        return self._follower.await_end(by)

    def close(self) -> None:
        """Let go of rank 0."""
        self._client.close()

    def forked(self) -> None:
        """In a forked child: let go of the parent's connection."""
        self._client.abandon()
