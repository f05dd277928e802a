"""What rank 0 says and what the others make of it: the same answer at the same call, whoever comes there first.

All ranks make the same calls in the same order, so a call is known by its kind and its number. Rank 0 decides when
it makes the call itself and waits for nobody; the others wait for its word. Three rules keep that cheap and prompt:

* For calls that happen all the time and mostly come to nothing, rank 0 *promises*: nothing comes of the calls below
  number h. The others answer those without waiting, and rank 0 keeps its promise.
* When rank 0 wants something sooner than it has promised, it *revokes*: each rank says how many calls it has made,
  answers none more by itself, and the promise shrinks to the first call that nobody has made.
* A report ends every promise, so whatever depends on the number of reports is decided anew, and exactly, after each.

No sockets here: a word is a dict that JSON can carry, and comes in the order in which it was said.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Word = dict[str, Any]
Send = Callable[[Word], None]  # neither waits nor raises

REPORT = "report"
REACTION = 0.25  # seconds of rank 0's calls that a promise covers
FURTHEST = 10_000  # calls that a promise covers at most
BACKLOG = 20_000  # words that are kept for a rank that has not come yet
PATIENCE = 60.0  # seconds of waiting after which it is said once


class Gone(Exception):
    """Raised when rank 0 is not there any more: `complete` if it has said that the trial was through."""

    def __init__(self, why: str, *, complete: bool) -> None:
        super().__init__(why)
        self.complete = complete


class OutOfTime(Exception):
    """Raised when rank 0's word has not come by the moment at which this process must leave."""


class Leader:
    """Rank 0's side. Calls are made by the thread that trains, everything else comes from the wire's."""

    def __init__(self, world: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._world, self._clock = world, clock
        self._lock = threading.RLock()
        self._noted = threading.Condition(self._lock)
        self._members: dict[int, Send] = {}
        self._came: set[int] = set()  # every rank that was ever a member
        self._log: deque[Word] = deque()
        self._forgotten = False  # whether the log has lost its beginning
        self._calls: dict[str, int] = {}
        self._promised: dict[str, int] = {}
        self._shrunk: set[str] = set()  # kinds whose promise is as short as it can be
        self._revoking: dict[str, _Revocation] = {}
        self._revocations = 0
        self._last: dict[str, float] = {}
        self._pace: dict[str, float] = {}  # seconds between two calls
        self._notes: dict[str, dict[int, Any]] = {}

    # Calls.

    def ask(self, kind: str, decide: Callable[[], Any], *, step: int | None = None) -> Any:
        """What comes of this call: what `decide` says, or None, also if nothing was promised for it."""
        window = self._window(kind)
        value = decide() or None
        with self._lock:
            number = self._next(kind)
            promised = self._promised.get(kind, 0)
            if number < promised:
                if value is not None:
                    self._revoke(kind)
                elif kind not in self._revoking and kind not in self._shrunk and number + window // 2 >= promised:
                    self._promise(kind, number + 1 + window)
                return None
            self._revoking.pop(kind, None)
            if value is None:
                self._promise(kind, number + 1 + window)
            else:
                self._promised[kind] = number + 1
                self._shrunk.add(kind)
                self._tell({"w": "word", "kind": kind, "n": number, "value": value, "step": step})
            return value

    def say(self, kind: str, value: Any) -> None:
        """Make a call that always comes to something."""
        with self._lock:
            number = self._next(kind)
            self._promised[kind] = number + 1
            self._tell({"w": "word", "kind": kind, "n": number, "value": value, "step": None})

    def report(self, value: Any) -> None:
        """Make a report, which ends every promise."""
        with self._lock:
            number = self._next(REPORT)
            for kind in self._promised:
                self._promised[kind] = self._calls[kind]
            self._revoking.clear()
            self._shrunk.clear()
            calls = {kind: made for kind, made in self._calls.items() if kind != REPORT}
            self._tell({"w": "word", "kind": REPORT, "n": number, "value": value, "step": None, "calls": calls})

    def hurry(self) -> None:
        """Shrink every promise now, since the next call that is asked will come to something."""
        with self._lock:
            for kind, promised in list(self._promised.items()):
                if promised > self._calls[kind]:
                    self._revoke(kind)

    def bye(self, *, complete: bool = True) -> None:
        """Say that no word comes any more; `complete` if the trial was through."""
        with self._lock:
            self._tell({"w": "bye", "complete": complete})

    def gather(self, name: str, ranks: Iterable[int], by: Callable[[], float]) -> dict[int, Any]:
        """What ranks have noted under a name, as soon as each of them has or is gone, or the moment `by` has come."""
        wanted = set(ranks)
        with self._lock:
            while True:
                notes = self._notes.get(name, {})
                missing = {r for r in wanted - notes.keys() if r in self._members or r not in self._came}
                left = by() - self._clock()
                if not missing or left <= 0:
                    return {r: notes[r] for r in wanted if r in notes}
                self._noted.wait(min(left, 0.2))

    def absent(self) -> list[int]:
        """The ranks that have never come."""
        with self._lock:
            return [rank for rank in range(1, self._world) if rank not in self._came]

    def await_all(self, by: float) -> None:
        """Wait until every rank has come, and so has heard all, or a moment (monotonic)."""
        with self._lock:
            while len(self._came) < self._world - 1 and (left := by - self._clock()) > 0:
                self._noted.wait(min(left, 0.2))

    # From the wire.

    def join(self, rank: int, send: Send) -> str | None:
        """Make a rank a member and tell it all that was said; why not, if that cannot be."""
        with self._lock:
            if not 0 < rank < self._world or rank in self._came:
                return f"rank {rank} is none, or is here already"
            if self._forgotten:
                return f"rank {rank} comes too late: more has been said than is kept"
            self._members[rank] = send
            self._came.add(rank)
            send({"w": "welcome", "words": len(self._log)})
            for word in self._log:
                send(word)
            if len(self._came) == self._world - 1:
                self._log.clear()
            self._noted.notify_all()
            return None

    def leave(self, rank: int) -> None:
        """A member is gone; it makes no calls any more."""
        with self._lock:
            if self._members.pop(rank, None) is None:
                return
            for kind in list(self._revoking):
                self._acknowledged(kind, rank)
            self._noted.notify_all()

    def receive(self, rank: int, word: Word) -> None:
        """Take in what a member says.

        :raises ValueError: if it makes no sense.
        """
        with self._lock:
            if word["w"] == "calls":
                kind, made = word["kind"], word["n"]
                if not isinstance(made, int) or made < 0:
                    raise ValueError("a number of calls is none")
                revoking = self._revoking.get(kind)
                if revoking is not None and revoking.number == word["revocation"]:
                    revoking.furthest = max(revoking.furthest, made)
                    self._acknowledged(kind, rank)
            elif word["w"] == "note":
                if len(self._notes) < BACKLOG:
                    self._notes.setdefault(str(word["name"]), {})[rank] = word["value"]
                self._noted.notify_all()

    # Inside, under the lock.

    def _next(self, kind: str) -> int:
        number = self._calls.get(kind, 0)
        self._calls[kind] = number + 1
        return number

    def _window(self, kind: str) -> int:
        now = self._clock()
        last, self._last[kind] = self._last.get(kind), now
        if last is None:
            return 0
        took = max(now - last, 1e-6)
        self._pace[kind] = took if kind not in self._pace else 0.8 * self._pace[kind] + 0.2 * took
        return min(FURTHEST, int(REACTION / max(took, self._pace[kind])))

    def _promise(self, kind: str, until: int) -> None:
        self._promised[kind] = until
        self._shrunk.discard(kind)
        self._tell({"w": "until", "kind": kind, "n": until})

    def _revoke(self, kind: str) -> None:
        if kind in self._revoking or kind in self._shrunk:
            return
        self._revocations += 1
        self._revoking[kind] = _Revocation(self._revocations, set(self._members))
        self._tell({"w": "revoke", "kind": kind, "revocation": self._revocations})
        self._acknowledged(kind, 0)

    def _acknowledged(self, kind: str, rank: int) -> None:
        revoking = self._revoking[kind]
        revoking.waiting.discard(rank)
        if revoking.waiting:
            return
        del self._revoking[kind]
        self._promise(kind, min(self._promised[kind], max(revoking.furthest, self._calls[kind])))
        self._shrunk.add(kind)

    def _tell(self, word: Word) -> None:
        if len(self._came) < self._world - 1:
            last = self._log[-1] if self._log else {}
            if word["w"] == last.get("w") == "until" and word["kind"] == last["kind"]:
                self._log.pop()  # the newer one stands in its place
            self._log.append(word)
            if len(self._log) > BACKLOG:
                self._log.popleft()
                self._forgotten = True
        for send in list(self._members.values()):
            send(word)


class _Revocation:
    def __init__(self, number: int, waiting: set[int]) -> None:
        self.number, self.waiting, self.furthest = number, waiting, 0


class Follower:
    """Another rank's side. `receive` and `end` are called by the wire, in the order of what was said."""

    def __init__(self, leave_by: Callable[[], float | None], warn_once: Callable[[str, str], None]) -> None:
        self._leave_by, self._warn_once = leave_by, warn_once
        self._news = threading.Condition()
        self._calls: dict[str, int] = {}
        self._promised: dict[str, int] = {}
        self._words: dict[tuple[str, int], Word] = {}
        self._awaited: int | None = None  # words of the backlog that have not come yet; None before the welcome
        self._ended: tuple[str, bool] | None = None

    # Calls.

    def ask(self, kind: str, *, step: int | None = None) -> Any:
        """What comes of this call, None for nothing.

        :raises Gone: if rank 0 is, and has not said it.
        :raises OutOfTime: if it has not said it in time.
        """
        word = self._await(lambda: self.look(kind), f"its {kind} call")
        said = word.get("step")
        if step is not None and said is not None and step != said:
            self._warn_once(f"step {kind}", f"this process is at step {step} where rank 0 is at {said}")
        return word["value"]

    def hear(self, kind: str) -> Any:
        """What rank 0 says at a call that always comes to something; errors are those of `ask`."""
        return self._await(lambda: self._take(kind), f"its {kind} call")["value"]

    def report(self) -> Any:
        """What rank 0 says of this report; errors are those of `ask`."""
        word = self._await(lambda: self._take(REPORT), "its report()")
        with self._news:
            self._line_up(word["calls"])
        return word["value"]

    def look(self, kind: str) -> Word | None:
        """As `ask` without waiting: the word, with a value of None for nothing; or None if it is to be waited for."""
        with self._news:
            word = self._take(kind)
            if word is None and self._awaited == 0 and self._made(kind) < self._promised.get(kind, 0):
                self._calls[kind] = self._made(kind) + 1
                return {"value": None}
            return word

    # From the wire.

    def receive(self, word: Word) -> Word | None:
        """Take in what rank 0 says; what is to be answered, if anything.

        :raises KeyError, TypeError: if it makes no sense.
        """
        with self._news:
            if self._awaited:
                self._awaited -= 1
            answer = self._received(word)
            self._news.notify_all()
            return answer

    def end(self, why: str, *, complete: bool = False) -> None:
        """No word comes any more."""
        with self._news:
            if self._ended is None:
                self._ended = (why, complete)
            self._news.notify_all()

    def await_end(self, by: Callable[[], float]) -> bool:
        """Wait until rank 0 is gone, or a moment comes; whether it is gone."""
        with self._news:
            while self._ended is None and (left := by() - time.monotonic()) > 0:
                self._news.wait(min(left, 0.2))
            return self._ended is not None

    # Inside, under the condition's lock.

    def _received(self, word: Word) -> Word | None:
        what = word["w"]
        if what == "welcome":
            self._awaited = int(word["words"])
        elif what == "bye":
            self._ended = ("rank 0 has come to its end", bool(word["complete"]))
        elif what == "until":
            self._promised[word["kind"]] = int(word["n"])
        elif what == "word":
            kind, number = str(word["kind"]), int(word["n"])
            self._words[kind, number] = {"value": word["value"], "step": word["step"], "calls": word.get("calls", {})}
            if kind == REPORT:
                self._promised.update(word["calls"])
            else:
                self._promised[kind] = number + 1
        elif what == "revoke":
            kind = word["kind"]
            self._promised[kind] = min(self._promised.get(kind, 0), self._made(kind))
            return {"w": "calls", "kind": kind, "n": self._made(kind), "revocation": word["revocation"]}
        return None

    def _made(self, kind: str) -> int:
        return self._calls.get(kind, 0)

    def _take(self, kind: str) -> Word | None:
        with self._news:
            number = self._made(kind)
            word = self._words.pop((kind, number), None) if not self._passed(kind) else {"value": None}
            if word is not None:
                self._calls[kind] = number + 1
            return word

    def _passed(self, kind: str) -> bool:
        """Whether rank 0 is beyond the next report and has not made this call before: nothing can come of it."""
        report = self._words.get((REPORT, self._made(REPORT)))
        if report is None or kind == REPORT or self._made(kind) < report["calls"].get(kind, 0):
            return False
        self._warn_once("calls", self._unlike(kind))
        return True

    def _line_up(self, calls: Mapping[str, int]) -> None:
        """Go on from rank 0's numbers: calls that one of the two has made and the other has not are over."""
        for kind, made in self._calls.items():
            if kind != REPORT and made not in (calls.get(kind, 0), 0):
                self._warn_once("calls", self._unlike(kind))
        self._calls = {**calls, REPORT: self._made(REPORT)}
        self._words = {
            key: word for key, word in self._words.items() if key[0] == REPORT or key[1] >= self._made(key[0])
        }

    def _unlike(self, kind: str) -> str:
        return (
            f"this process and rank 0 do not make the same calls before report number {self._made(REPORT)} ({kind}): "
            "every process must make them all, in the same order"
        )

    def _await(self, look: Callable[[], Word | None], call: str) -> Word:
        since = time.monotonic()
        with self._news:
            while True:
                word = look()
                if word is not None:
                    return word
                if self._ended is not None:
                    raise Gone(self._ended[0], complete=self._ended[1])
                now, by = time.monotonic(), self._leave_by()
                if by is not None and now >= by:
                    raise OutOfTime(f"rank 0 has not come to {call} in time")
                if now - since > PATIENCE:
                    self._warn_once(
                        f"waiting for {call}",
                        f"this process has been waiting for rank 0 to come to {call} for {PATIENCE:.0f} s: "
                        "every process must make the same calls",
                    )
                self._news.wait(0.2 if by is None else max(min(by - now, 0.2), 0.001))
