"""Ranks over real sockets: how they meet, what garbage does, and what a death looks like."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trialkeeper.ranks import Place, meeting, place, wire
from trialkeeper.ranks.agreement import Follower, Gone, Leader, Word
from trialkeeper.ranks.wire import Address, Client, Departed, Server
from trialkeeper.store.directory import DirectoryStore

DUE = "due"
SEEDS = int(os.environ.get("TRIALKEEPER_SEEDS", "0")) or 12


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, Place()),
        ({"RANK": "0"}, Place()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Place()),
        ({"RANK": "2", "WORLD_SIZE": "2"}, Place()),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, Place()),
        ({"RANK": "one", "WORLD_SIZE": "2"}, Place()),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Place(1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, Place(1, 2)),
        (
            {
                "RANK": "3",
                "WORLD_SIZE": "4",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "2",
                "TORCHELASTIC_RESTART_COUNT": "1",
                "MASTER_ADDR": "h",
            },
            Place(3, 4, 1, 2, 1, "h"),
        ),
    ],
)
def test_a_place_is_what_a_launcher_says_and_makes_sense(env: dict[str, str], expected: Place) -> None:
    assert place(env) == expected


def soon() -> float | None:
    return time.monotonic() + 30


@contextmanager
def served(world: int, heard: Callable[[int, Word], None] = lambda rank, word: None) -> Iterator[tuple[Leader, Server]]:
    leader = Leader(world)
    server = Server(leader, attempt=1, world=world, local=True, heard=heard)
    try:
        yield leader, server
    finally:
        server.close()


@contextmanager
def following(
    server: Server, rank: int, world: int, asked: Callable[[], dict[str, Any] | None] = lambda: None, attempt: int = 1
) -> Iterator[tuple[Follower, Client]]:
    follower = Follower(soon, lambda about, words: None)
    address = Address(("127.0.0.1",), server.port, server.token)
    client = Client(follower, rank=rank, attempt=attempt, world=world, find=lambda: address, asked=asked)
    try:
        yield follower, client
    finally:
        client.close()


def test_words_go_both_ways() -> None:
    asked: list[tuple[int, Word]] = []
    said: list[dict[str, Any]] = []
    with served(2, lambda rank, word: asked.append((rank, word))) as (leader, server):
        with following(server, 1, 2, lambda: said[0] if said else None) as (follower, client):
            client.say({"w": "note", "name": "whole", "value": True})
            leader.report({"save": "periodic"})
            assert follower.report() == {"save": "periodic"}
            assert leader.gather("whole", [1], lambda: time.monotonic() + 10) == {1: True}
            said.append({"left": 12.0})
            deadline = time.monotonic() + 10
            while not asked and time.monotonic() < deadline:
                time.sleep(0.01)
            assert asked == [(1, {"w": "asked", "left": 12.0})]
            leader.report("last")
        assert leader.gather("gone", [1], lambda: time.monotonic() + 10) == {}


def test_a_clean_end_is_told_and_comes_after_what_was_said() -> None:
    with served(2) as (leader, server), following(server, 1, 2) as (follower, _):
        leader.report("last")
        assert follower.report() == "last"
        server.close()
        with pytest.raises(Gone) as gone:
            follower.report()
        assert gone.value.complete


@pytest.mark.parametrize(("rank", "world", "attempt"), [(1, 3, 1), (1, 2, 2), (5, 2, 1)])
def test_who_does_not_belong_here_is_told(rank: int, world: int, attempt: int) -> None:
    with (
        served(2) as (_, server),
        following(server, rank, world, attempt=attempt) as (follower, _),
        pytest.raises(Gone, match="does not take this process"),
    ):
        follower.report()


GARBAGE = {
    "no token": b'{"w":"hello","rank":1,"attempt":1,"world":2}\n',
    "another token": b'{"w":"hello","rank":1,"attempt":1,"world":2,"token":"0123"}\n',
    "a request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no line": b"x" * (1 << 20),
    "nested": b"[" * 60000 + b"\n",
    "binary": bytes(range(256)) * 100 + b"\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_dropped_and_harms_nobody(name: str) -> None:
    with served(2) as (leader, server), following(server, 1, 2) as (follower, _):
        with socket.create_connection(("127.0.0.1", server.port)) as other:
            other.settimeout(10)
            with contextlib.suppress(OSError):
                other.sendall(GARBAGE[name])
                other.shutdown(socket.SHUT_WR)
                assert other.recv(100) == b""
        leader.report(1)
        assert follower.report() == 1


@pytest.mark.parametrize(
    "word",
    ['{"w":"calls","kind":"due","n":"x","revocation":1}', '{"w":"calls"}', '{"w":"note"}', "{}", "7", '{"w":"note",'],
)
def test_a_member_that_talks_nonsense_is_let_go(word: str) -> None:
    with served(3) as (leader, server), following(server, 2, 3) as (follower, _):
        with socket.create_connection(("127.0.0.1", server.port)) as other:
            other.settimeout(10)
            hello = {"w": "hello", "rank": 1, "attempt": 1, "world": 3, "token": server.token}
            other.sendall(json.dumps(hello).encode() + b"\n")
            assert b"welcome" in other.recv(1000)
            other.sendall(word.encode() + b"\n")
            assert other.recv(100) == b""
        assert leader.gather("x", [1], lambda: time.monotonic() + 10) == {}
        leader.report(1)
        assert follower.report() == 1


def test_who_listens_at_an_old_address_is_not_taken_for_rank_0(tmp_path: Path) -> None:
    """The port may be another program's by now: it is looked on until rank 0 is found."""
    with served(2) as (leader, server), socket.create_server(("127.0.0.1", 0)) as stranger:
        addresses = iter([None, Address(("127.0.0.1",), stranger.getsockname()[1], server.token)])
        right = Address(("", "127.0.0.1"), server.port, server.token)
        follower = Follower(soon, lambda about, words: None)
        client = Client(follower, rank=1, attempt=1, world=2, find=lambda: next(addresses, right), asked=lambda: None)
        talking, _ = stranger.accept()
        talking.sendall(b'{"w":"word","kind":"report","n":0,"value":1,"step":null,"calls":{}}\n')
        leader.report("right")
        assert follower.report() == "right"
        talking.close()
        client.close()


def test_a_rank_that_does_not_read_holds_nobody_up() -> None:
    with served(3) as (leader, server), following(server, 2, 3) as (follower, _):
        with socket.create_connection(("127.0.0.1", server.port)) as deaf:
            hello = {"w": "hello", "rank": 1, "attempt": 1, "world": 3, "token": server.token}
            deaf.sendall(json.dumps(hello).encode() + b"\n")
            assert b"welcome" in deaf.recv(64)
            for number in range(1000):
                leader.report("x" * 20_000)
                assert follower.report() == "x" * 20_000, number
        assert leader.gather("x", [1], lambda: time.monotonic() + 10) == {}


def test_ranks_of_a_pod_find_a_file_those_of_others_an_object(tmp_path: Path) -> None:
    store, address = DirectoryStore(tmp_path / "store"), Address(("h", "10.0.0.1"), 1234, "t" * 32)
    here = meeting.finder(tmp_path / "here", None, 3, 0)
    there = meeting.finder(tmp_path / "there", lambda: store, 3, 0)
    assert here() is None and there() is None
    meeting.publish_here(address, tmp_path / "here", 3, 0)
    meeting.publish_everywhere(address, store, 3, 0)
    assert here() == there() == address
    assert meeting.finder(tmp_path / "here", lambda: store, 4, 0)() is None
    assert meeting.finder(tmp_path / "here", lambda: store, 3, 1)() is None
    assert (tmp_path / "here" / "ranks-a000003-0.json").stat().st_mode & 0o777 == 0o600
    other = Address(("h",), 4321, "u" * 32)
    meeting.publish_everywhere(other, store, 3, 0)  # the one before is dead
    assert there() == other
    meeting.publish_here(Departed(complete=True), tmp_path / "here", 3, 0)
    meeting.publish_everywhere(Departed(complete=False), store, 3, 0)
    assert (here(), there()) == (Departed(True), Departed(False))


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"attempt": 2},
        {"life": 1},
        {"hosts": "h"},
        {"hosts": [1]},
        {"hosts": [""]},
        {"port": 0},
        {"port": 70000},
        {"port": "1"},
        {"token": None},
    ],
)
def test_what_is_no_address_is_none(change: dict[str, Any]) -> None:
    good = {"v": 1, "attempt": 1, "life": 0, "hosts": ["h"], "port": 1, "token": "t"}
    assert meeting.decode(json.dumps(good).encode(), 1, 0) == Address(("h",), 1, "t")
    assert meeting.decode(json.dumps(good | change).encode(), 1, 0) is None
    assert meeting.decode(b"\xff{", 1, 0) is None


def meets(find: Callable[[], Address | Departed | None]) -> Gone:
    """How it ends for a rank that looks for rank 0 in vain."""
    follower = Follower(soon, lambda about, words: None)
    client = Client(follower, rank=1, attempt=1, world=2, find=find, asked=lambda: None)
    with pytest.raises(Gone) as gone:
        follower.report()
    client.close()
    return gone.value


@pytest.mark.parametrize("complete", [True, False])
def test_who_comes_after_rank_0_has_gone_hears_of_it(complete: bool) -> None:
    gone = meets(lambda: Departed(complete))
    assert (str(gone), gone.complete) == ("rank 0 has come to its end", complete)


def test_a_rank_0_that_is_dead_or_never_comes_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "REFUSED", 0.3)
    monkeypatch.setattr(wire, "ABSENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert str(meets(lambda: Address(("127.0.0.1",), port, "t"))) == "rank 0 cannot be reached"
    assert str(meets(lambda: None)) == "rank 0 has not come"


class Schedule:
    """Ranks in threads over real sockets, with pauses, promises, and somebody who asks one of them to go."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = self.random.choice([2, 3, 4])
        self.calls = [self.random.choice([0, 1, 5, 200]) for _ in range(self.random.randint(2, 8))]
        self.pause = self.random.choice([0.0, 0.0005, 0.01])
        self.asked_rank = self.random.randrange(self.world)
        self.asked_at = self.random.uniform(0, 0.6)
        self.begun = time.monotonic()
        self.wanted = threading.Event()

    def asked(self, rank: int) -> bool:
        return rank == self.asked_rank and time.monotonic() - self.begun >= self.asked_at

    def train(self, rank: int, ask: Callable[[], Any], report: Callable[[Any], Any]) -> list[Any]:
        """The program of every rank; rank 0 says at a report whether all leave."""
        own, answers = random.Random(rank), list[Any]()
        for calls in self.calls:
            for _ in range(calls):
                if own.random() < 0.05:
                    time.sleep(self.pause * own.randint(0, 5))
                answers.append(ask())
            answers.append(report({"leave": self.wanted.is_set()}))
            if answers[-1]["leave"]:
                break
        return answers


@pytest.mark.parametrize("seed", range(SEEDS))
def test_threads_over_sockets_agree(seed: int) -> None:
    schedule = Schedule(seed)
    found: dict[int, list[Any]] = {}

    def heard(rank: int, word: Word) -> None:
        schedule.wanted.set()
        leader.hurry()

    with served(schedule.world, heard) as (leader, server):

        def follow(rank: int) -> None:
            time.sleep(random.Random(seed + rank).choice([0, 0, 0.1]))
            with following(server, rank, schedule.world, lambda: {"left": 1.0} if schedule.asked(rank) else None) as (
                follower,
                _,
            ):
                found[rank] = schedule.train(rank, lambda: follower.ask(DUE), lambda _: follower.report())

        threads = [threading.Thread(target=follow, args=(rank,)) for rank in range(1, schedule.world)]
        for thread in threads:
            thread.start()

        def decide() -> Any:
            if schedule.asked(0):
                schedule.wanted.set()
            return True if schedule.wanted.is_set() or schedule.random.random() < 0.01 else None

        def report(value: Any) -> Any:
            leader.report(value)
            return value

        found[0] = schedule.train(0, lambda: leader.ask(DUE, decide), report)
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
    assert all(answers == found[0] for answers in found.values())


RANK_ZERO = """
import os, sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from trialkeeper.ranks import meeting
from trialkeeper.ranks.agreement import Leader
from trialkeeper.ranks.wire import Address, Server
leader = Leader(2)
server = Server(leader, attempt=1, world=2, local=True, heard=lambda rank, word: None)
os.register_at_fork(after_in_child=server.abandon)
meeting.publish_here(Address(("127.0.0.1",), server.port, server.token), Path({scratch!r}), 1, 0)
leader.report("first")
if os.fork() == 0:
    time.sleep(60)  # as a data loader's worker, which outlives its parent for a while
    os._exit(0)
time.sleep(60)
"""


def test_a_killed_rank_0_is_noticed_although_its_workers_live_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", RANK_ZERO.format(path=sys.path, scratch=str(tmp_path))],
        start_new_session=True,
    )
    follower = Follower(soon, lambda about, words: None)
    client = Client(follower, rank=1, attempt=1, world=2, find=meeting.finder(tmp_path, None, 1, 0), asked=lambda: None)
    try:
        assert follower.report() == "first"
        process.kill()
        with pytest.raises(Gone, match="rank 0 is gone") as gone:
            follower.report()
        assert not gone.value.complete
    finally:
        client.close()
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
