"""Words between ranks over TCP: a JSON object a line, after a greeting that proves who speaks.

Rank 0 listens; its thread takes in what the others say, while what rank 0 says leaves with the call that says it.
Every other rank has one connection and one thread. A connection that breaks is not made again: whoever cannot hear
rank 0 cannot know what was agreed upon meanwhile.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from trialkeeper.ranks.agreement import Follower, Leader, Word

LINE_LIMIT = 1 << 16  # bytes of one word
UNSENT_LIMIT = 8 << 20  # bytes that wait for a rank which does not read
GREETING_TIMEOUT = 5.0  # seconds to say who one is
GREETERS = 64  # connections beyond the world's that may have not said it yet
CONNECT_TIMEOUT = 2.0
POLL_INTERVAL = 0.1  # seconds between two looks whether this process was asked to go
LOOK_INTERVAL, LOOK_LIMIT = 0.1, 2.0  # seconds between two looks for rank 0's address, doubled each time, and at most
CLOSE_TIMEOUT = 1.0  # seconds for the last words to leave
REFUSED = 20.0  # seconds of trying one address in vain after which rank 0 is taken to be dead
ABSENCE = 600.0  # seconds without any address after which rank 0 is taken never to come
SILENCE = 30  # seconds after which the kernel gives up a peer that does not acknowledge


@dataclass(frozen=True)
class Address:
    """Where rank 0 listens: hosts to try in this order, and what proves that one may speak there."""

    hosts: tuple[str, ...]
    port: int
    token: str


@dataclass(frozen=True)
class Departed:
    """Rank 0 has listened, and has gone; `complete` if the trial was through."""

    complete: bool


def _settle(connection: socket.socket) -> None:
    """Send at once, and have the kernel notice a peer whose machine is gone; Python may be busy for minutes."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", SILENCE // 3),
        ("TCP_KEEPINTVL", SILENCE // 6),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", SILENCE * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _line(word: Word) -> bytes:
    return json.dumps(word, separators=(",", ":")).encode() + b"\n"


class _Lines:
    """Whole words out of what has arrived."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def take(self, data: bytes) -> Iterator[Word]:
        """:raises ValueError: if something is no word."""
        self._rest += data
        while (end := self._rest.find(b"\n")) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            try:
                word = json.loads(line)
            except RecursionError:
                raise ValueError("a word is too deep") from None
            if len(line) > LINE_LIMIT or not isinstance(word, dict) or not isinstance(word.get("w"), str):
                raise ValueError("that is no word")
            yield word
        if len(self._rest) > LINE_LIMIT:
            raise ValueError("a word is too long")


class _Member:
    """One connection of rank 0's; `rank` is None until it has said which it is."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.rank: int | None = None
        self.since = time.monotonic()
        self.lines = _Lines()
        self.unsent = bytearray()
        self.broken = False
        self.lock = threading.Lock()

    def send(self, word: Word) -> bool:
        """Send what can be sent without waiting; whether the rest, if any, is still to be sent."""
        with self.lock:
            self.unsent += _line(word)
            self.flush()
            if len(self.unsent) > UNSENT_LIMIT:
                self.broken = True
            return bool(self.unsent) or self.broken

    def flush(self) -> None:
        try:
            while self.unsent:
                del self.unsent[: self.connection.send(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.broken = True


class Server:
    """Rank 0's ear and mouth. `heard` gets a rank and what it says, unless that is for the leader.

    It raises ValueError, KeyError or TypeError for what makes no sense. `left` gets a rank that is gone.
    """

    def __init__(
        self,
        leader: Leader,
        *,
        attempt: int,
        world: int,
        local: bool,
        heard: Callable[[int, Word], None],
        left: Callable[[int], None] = lambda rank: None,
    ) -> None:
        self._leader, self._attempt, self._world, self._heard, self._left = leader, attempt, world, heard, left
        self.token = secrets.token_hex(16)
        self._listener = _listen(local)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._members: set[_Member] = set()
        self._woken, self._wake = socket.socketpair()
        for one in (self._listener, self._woken, self._wake):
            one.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="trialkeeper-ranks", daemon=True)
        self._thread.start()

    def close(self, *, complete: bool = True) -> None:
        """Say goodbye, and let what was said leave."""
        self._leader.bye(complete=complete)
        self._closing = True
        self._rouse()
        self._thread.join(CLOSE_TIMEOUT + 0.5)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connections, so that its death can be noticed."""
        self._selector.close()
        for one in (self._listener, self._woken, self._wake, *(m.connection for m in list(self._members))):
            with contextlib.suppress(OSError):
                os.close(one.detach())

    def _rouse(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b".")

    def _run(self) -> None:
        by = float("inf")
        while True:
            if self._closing:
                by = min(by, time.monotonic() + CLOSE_TIMEOUT)
                if time.monotonic() >= by or not any(m.unsent for m in self._members):
                    break
            for key, _ in self._selector.select(0.05 if self._closing else 1.0):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._woken:
                    with contextlib.suppress(OSError):
                        self._woken.recv(4096)
                else:
                    self._hear(key.data)
            self._look_after()
        for member in list(self._members):
            self._drop(member)
        self._selector.close()
        for one in (self._listener, self._woken, self._wake):
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            if len(self._members) >= self._world + GREETERS:
                connection.close()
                return
            _settle(connection)
            member = _Member(connection)
            self._members.add(member)
            self._selector.register(connection, selectors.EVENT_READ, member)

    def _hear(self, member: _Member) -> None:
        try:
            data = member.connection.recv(1 << 16)
            if not data:
                member.broken = True
            for word in member.lines.take(data):
                if member.rank is None:
                    self._greet(member, word)
                elif word["w"] in ("calls", "note"):
                    self._leader.receive(member.rank, word)
                else:
                    self._heard(member.rank, word)
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            member.broken = True

    def _greet(self, member: _Member, word: Word) -> None:
        """:raises ValueError: if whoever speaks is none of this attempt's."""
        said = str(word.get("token", "")).encode()
        if word["w"] != "hello" or not hmac.compare_digest(said, self.token.encode()):
            raise ValueError("no token")
        rank, other = word["rank"], (word["attempt"], word["world"]) != (self._attempt, self._world)
        why = "it belongs to another attempt or another number of processes" if other else None
        if not isinstance(rank, int):
            raise ValueError("no rank")

        def send(said: Word) -> None:
            if member.send(said):
                self._rouse()

        member.rank = rank
        why = why or self._leader.join(rank, send)
        if why is not None:
            member.rank = None
            member.send({"w": "refused", "why": why})
            raise ValueError(why)

    def _look_after(self) -> None:
        now = time.monotonic()
        for member in list(self._members):
            if member.broken or (member.rank is None and now - member.since > GREETING_TIMEOUT):
                self._drop(member)
                continue
            with member.lock:
                member.flush()
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if member.unsent else 0)
            self._selector.modify(member.connection, wanted, member)

    def _drop(self, member: _Member) -> None:
        self._members.discard(member)
        with contextlib.suppress(OSError, ValueError, KeyError):
            self._selector.unregister(member.connection)
        member.connection.close()
        if member.rank is not None:
            self._leader.leave(member.rank)
            self._left(member.rank)


def _listen(local: bool) -> socket.socket:
    """A listening socket: on this machine's own address alone, or on all."""
    if local:
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


class Client:
    """Another rank's ear and mouth. `find` looks for rank 0, `asked` says what is to be told once it is not None."""

    def __init__(
        self,
        follower: Follower,
        *,
        rank: int,
        attempt: int,
        world: int,
        find: Callable[[], Address | Departed | None],
        asked: Callable[[], dict[str, Any] | None],
    ) -> None:
        self._follower, self._find, self._asked = follower, find, asked
        self._hello = {"w": "hello", "rank": rank, "attempt": attempt, "world": world}
        self._connection: socket.socket | None = None
        self._sending = threading.Lock()
        self._waiting: list[Word] = []  # to be said once there is a connection
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trialkeeper-ranks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take leave of rank 0."""
        self.say({"w": "gone"})
        self._closing.set()
        self._thread.join(POLL_INTERVAL * 5)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connection."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                os.close(self._connection.detach())

    def say(self, word: Word) -> None:
        """Tell rank 0 something, as soon as there is a connection."""
        with self._sending:
            if self._connection is None:
                self._waiting.append(word)
                return
            with contextlib.suppress(OSError):  # the thread notices it, too
                self._connection.sendall(_line(word))

    def _run(self) -> None:
        why = "this process has come to its end"
        try:
            met = self._meet()
            if met is not None:
                with met[0]:
                    why = self._listen(*met)
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"rank 0 cannot be understood ({error})"
        self._follower.end(why)

    def _meet(self) -> tuple[socket.socket, _Lines, list[Word]] | None:
        """Look for rank 0 until it is found, or is known not to be there: a connection, and the first that it says."""
        pause, since, found = LOOK_INTERVAL, time.monotonic(), None
        while not self._closing.is_set():
            before, found = found, self._find()
            if found != before:
                since = time.monotonic()
            if isinstance(found, Departed):
                self._follower.end("rank 0 has come to its end", complete=found.complete)
                return None
            for host in found.hosts if found else ():
                met = self._greet(host, found) if found else None
                if met is not None:
                    return met
            if time.monotonic() - since > (REFUSED if found else ABSENCE):
                self._follower.end("rank 0 cannot be reached" if found else "rank 0 has not come")
                return None
            self._closing.wait(pause)
            pause = min(2 * pause, LOOK_LIMIT)
        return None

    def _greet(self, host: str, address: Address) -> tuple[socket.socket, _Lines, list[Word]] | None:
        """Connect, unless whoever listens there is not rank 0 (any more)."""
        lines, words = _Lines(), list[Word]()
        connection = None
        try:
            connection = socket.create_connection((host, address.port), CONNECT_TIMEOUT)
            connection.settimeout(GREETING_TIMEOUT)
            _settle(connection)
            connection.sendall(_line({**self._hello, "token": address.token}))
            while not words:
                data = connection.recv(1 << 16)
                if not data:
                    raise ValueError("nothing is said")
                words += lines.take(data)
            if words[0]["w"] not in ("welcome", "refused"):
                raise ValueError("that is no greeting")
        except (OSError, ValueError):
            if connection is not None:
                connection.close()
            return None
        with self._sending:
            self._connection = connection
            for word in self._waiting:
                connection.sendall(_line(word))
        return connection, lines, words

    def _listen(self, connection: socket.socket, lines: _Lines, words: Iterable[Word]) -> str:
        """Take in words until none comes any more; why that is."""
        told = False
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            while True:
                for word in words:
                    if word["w"] == "refused":
                        return f"rank 0 does not take this process: {word.get('why')}"
                    answer = self._follower.receive(word)
                    if answer is not None:
                        self.say(answer)
                if self._closing.is_set():
                    return "this process has come to its end"
                if not told and (said := self._asked()) is not None:
                    told = True
                    self.say({"w": "asked", **said})
                words = ()
                if selector.select(POLL_INTERVAL):
                    data = connection.recv(1 << 16)
                    if not data:
                        return "rank 0 is gone"
                    words = lines.take(data)


def hosts_of_this_machine(first: Iterable[str]) -> tuple[str, ...]:
    """Names and addresses under which other pods may reach this one, those of `first` before all others."""
    found = dict.fromkeys(host for host in first if host)
    with contextlib.suppress(OSError):
        name = socket.gethostname()
        for *_, place in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
            found.setdefault(str(place[0]))
    found.setdefault("127.0.0.1")
    return tuple(found)
