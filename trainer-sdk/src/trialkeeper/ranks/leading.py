"""Rank 0 among the others: it listens, says where, and knows what they have to tell it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trialkeeper import contract
from trialkeeper.environment import told_file
from trialkeeper.ranks import Alone, meeting, shards
from trialkeeper.ranks.agreement import Leader
from trialkeeper.ranks.wire import Address, Departed, Server, hosts_of_this_machine
from trialkeeper.store.opening import open_store

if TYPE_CHECKING:
    from trialkeeper.session import Session

PATIENCE = 600.0  # seconds for ranks of other pods to fetch their part of a checkpoint
ABSENCE = 60.0  # seconds after rank 0's start after which it is said that a rank has not come
LATE = 20.0  # seconds after rank 0's start until which it waits at its end for ranks that are still starting
PAUSE = 5.0  # seconds between two tries to tell other pods where rank 0 is


class Lead(Alone):
    """Rank 0's side of what all ranks agree upon."""

    alone = False

    def __init__(self, current: Session) -> None:
        env = current.env
        self._session, self._env = current, env
        self._leader = Leader(env.world)
        self._parted: set[int] = set()  # ranks that have said that they go
        self._server = Server(
            self._leader,
            attempt=env.attempt,
            world=env.world,
            local=env.one_pod,
            heard=self._heard,
            left=self._left,
        )
        hosts = ("127.0.0.1",) if env.one_pod else hosts_of_this_machine((env.master,))
        self._address = Address(hosts, self._server.port, self._server.token)
        self._told = told_file(env.life) if env.plain else None  # at the end the script's name is not known any more
        self._ended = threading.Event()
        try:
            meeting.publish_here(self._address, env.scratch, env.attempt, env.life)
        except OSError as error:
            current.warn_once("ranks", f"the other processes cannot be told where rank 0 is: {error}")
        if not env.one_pod:
            threading.Thread(target=self._publish, name="trialkeeper-address", daemon=True).start()

    def _publish(self) -> None:
        while not self._ended.is_set():
            try:
                store = open_store(self._env, self._session.leave_by)
                meeting.publish_everywhere(self._address, store, self._env.attempt, self._env.life)
                return
            except OSError as error:
                self._session.warn_once("ranks", f"other pods cannot be told yet where rank 0 is: {error}")
            self._ended.wait(PAUSE)

    def ask(self, kind: str, decide: Callable[[], Any], *, step: int | None = None) -> Any:
        return self._leader.ask(kind, decide, step=step)

    def say(self, kind: str, value: Any) -> None:
        self._leader.say(kind, value)

    def report(self, value: Any) -> None:
        self._leader.report(value)
        if time.monotonic() - self._session.opened_at > ABSENCE and (absent := self._leader.absent()):
            self._session.warn_once(
                "absent",
                f"rank {absent[0]} has not called trialkeeper yet, and nothing can be saved without it: every process "
                "must make the same calls, with checkpoint=None if it has nothing to save",
            )

    def vouched(self, name: str, ranks: frozenset[int]) -> bool:
        """:raises Unvouched: if not all of them have said so in time."""
        end = time.monotonic() + PATIENCE
        self._leader.say("base", {"try": name})

        def by() -> float:
            leave = self._session.leave_by()
            return end if leave is None else min(end, leave)

        said = self._leader.gather(f"whole {name}", ranks, by)
        if missing := sorted(ranks - said.keys()):
            raise shards.Unvouched(
                f"rank {missing[0]} has not said whether its part of {name} is whole: "
                "every process must call get_checkpoint() before its first report()"
            )
        return all(said.values())

    def close(self, *, complete: bool) -> None:
        self._ended.set()
        by = self._session.leave_by()
        late = self._session.opened_at + LATE  # a rank that needs longer to come than this one has lived is none
        self._leader.await_all(late if by is None else min(late, by))
        self._server.close(complete=complete)
        env, gone = self._env, Departed(complete)
        with contextlib.suppress(OSError):
            meeting.publish_here(gone, env.scratch, env.attempt, env.life)
            if not env.one_pod:
                meeting.publish_everywhere(gone, open_store(env, self._session.leave_by), env.attempt, env.life)
            if self._told is not None:
                self._told.unlink(missing_ok=True)

    def forked(self) -> None:
        self._server.abandon()

    def _left(self, rank: int) -> None:
        """In the server's thread: a rank is gone. If without a word, that is what a launcher ends all others for."""
        shards.mark_gone(self._env, rank)
        if rank in self._parted or self._session.signalled or self._ended.is_set() or not self._env.one_pod:
            return
        text = "it died without a word: killed, perhaps for lack of memory, or crashed in native code"
        self._session.failed_rank = (rank, contract.END_ERROR, contract.REASON_RANK, text)

    def _heard(self, rank: int, word: dict[str, Any]) -> None:
        """In the server's thread, what a rank tells that is not for the leader alone.

        :raises ValueError: if it makes no sense.
        """
        what = word["w"]
        if what == "asked":
            left = float(word["left"])
            if not 0 <= left <= contract.TIME_LIMIT:
                raise ValueError("seconds that are none")
            self._session.asked(left, str(word["source"])[:64])
            self._leader.hurry()
        elif what == "part":
            shards.mark(self._env, rank, str(word["nonce"]), str(word["is"]))
        elif what == "gone":
            self._parted.add(rank)
        elif what == "failure":
            end, reason, text = (str(part)[: contract.ERROR_LIMIT] for part in word["value"])
            if end in contract.ENDS:
                self._session.failed_rank = (rank, end, reason, text)
