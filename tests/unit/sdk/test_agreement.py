"""Ranks agree: the same answer at the same call, in any order of events."""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest

from trialkeeper.ranks.agreement import REACTION, REPORT, Follower, Gone, Leader, OutOfTime, Word

DUE, PREEMPTION = "due", "preemption"
SEEDS = int(os.environ.get("TRIALKEEPER_SEEDS", "0")) or 400


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A leader and its followers, with every word on its way in a queue that the test moves."""

    size: int
    clock: Clock = field(default_factory=Clock)
    warned: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.leader = Leader(self.size, self.clock)
        self.followers = {
            rank: Follower(lambda: None, lambda about, words: self.warned.append(words)) for rank in range(1, self.size)
        }
        self.down: dict[int, deque[Word]] = {rank: deque() for rank in self.followers}
        self.up: dict[int, deque[Word]] = {rank: deque() for rank in self.followers}
        self.joined: set[int] = set()

    def join(self, rank: int) -> None:
        self.joined.add(rank)
        assert self.leader.join(rank, self.down[rank].append) is None

    def deliver_down(self, rank: int) -> None:
        answer = self.followers[rank].receive(self.down[rank].popleft())
        if answer is not None:
            self.up[rank].append(answer)

    def deliver_up(self, rank: int) -> None:
        self.leader.receive(rank, self.up[rank].popleft())

    def settle(self) -> None:
        while any(self.down.values()) or any(self.up.values()):
            for rank in self.followers:
                while self.down[rank]:
                    self.deliver_down(rank)
                while self.up[rank]:
                    self.deliver_up(rank)


def joined(size: int = 2) -> World:
    world = World(size)
    for rank in world.followers:
        world.join(rank)
    world.settle()
    return world


def never() -> None:
    return None


def fast(world: World, kind: str, calls: int) -> None:
    """Calls that come to nothing, a millisecond apart, so that a promise is made."""
    for _ in range(calls):
        world.clock.now += 0.001
        assert world.leader.ask(kind, never) is None


def test_a_follower_waits_for_the_leaders_call_and_gets_its_answer() -> None:
    world = joined()
    follower = world.followers[1]
    assert follower.look(DUE) is None
    assert world.leader.ask(DUE, lambda: True, step=7) is True
    world.settle()
    assert follower.ask(DUE, step=7) is True
    assert follower.look(DUE) is None
    assert world.warned == []


def test_most_calls_are_answered_from_a_promise() -> None:
    world = joined()
    fast(world, DUE, 1000)
    said = len(world.down[1])
    world.settle()
    answers = [world.followers[1].look(DUE) for _ in range(1000)]
    assert answers == [{"value": None}] * 1000
    assert said <= 1000 * 0.001 / REACTION * 2 + 5


def test_slow_calls_are_never_promised() -> None:
    world = joined()
    for _ in range(5):
        world.clock.now += REACTION * 2
        world.leader.ask(DUE, never)
    world.settle()
    for _ in range(5):
        assert world.followers[1].look(DUE) == {"value": None}
    assert world.followers[1].look(DUE) is None


def test_a_promise_is_kept_until_it_is_revoked() -> None:
    world = joined()
    fast(world, DUE, 50)
    world.settle()
    for _ in range(80):  # 30 calls ahead of the leader
        assert world.followers[1].look(DUE) == {"value": None}
    assert world.leader.ask(DUE, lambda: True) is None  # call 50, which the follower has made
    world.settle()
    assert world.followers[1].look(DUE) is None  # it answers none more by itself
    assert [world.leader.ask(DUE, lambda: True) for _ in range(30)] == [None] * 29 + [True]
    world.settle()
    assert world.followers[1].ask(DUE) is True


def test_hurry_shrinks_a_promise_before_the_leaders_next_call() -> None:
    world = joined()
    fast(world, PREEMPTION, 50)
    world.leader.hurry()
    world.settle()
    assert world.leader.ask(PREEMPTION, lambda: {"left": 3.0}) == {"left": 3.0}


def test_a_report_ends_every_promise() -> None:
    world = joined()
    fast(world, DUE, 50)
    world.leader.report({"save": None})
    world.settle()
    assert world.leader.ask(DUE, lambda: True) is True
    world.settle()
    follower = world.followers[1]
    for _ in range(50):
        assert follower.look(DUE) == {"value": None}
    assert follower.report() == {"save": None}
    assert follower.ask(DUE) is True


def test_who_comes_late_hears_everything() -> None:
    world = World(3)
    world.join(1)
    fast(world, DUE, 20)
    world.leader.report("first")
    world.leader.hurry()
    world.leader.ask(DUE, lambda: True)
    world.join(2)
    world.settle()
    for follower in world.followers.values():
        assert [follower.ask(DUE) for _ in range(20)] == [None] * 20
        assert follower.report() == "first"
        assert follower.ask(DUE) is True


def test_nothing_is_answered_before_all_that_was_said_has_come() -> None:
    world = World(2)
    fast(world, DUE, 20)
    world.leader.report(1)
    world.join(1)
    while len(world.down[1]) > 1:
        world.deliver_down(1)
        assert world.followers[1].look(DUE) is None
    world.settle()
    assert world.followers[1].look(DUE) == {"value": None}


def test_calls_that_only_one_makes_are_said_and_lined_up_at_the_next_report() -> None:
    world = joined()
    follower = world.followers[1]
    world.leader.ask(DUE, never)
    world.leader.report(1)
    world.leader.ask(DUE, lambda: True)
    world.settle()
    assert follower.ask(DUE) is None
    assert follower.ask(DUE) is None  # the leader has not made it
    assert "do not make the same calls before report number 0 (due)" in world.warned[0]
    assert follower.report() == 1
    assert follower.ask(DUE) is True


def test_another_step_at_the_same_call_is_said() -> None:
    world = joined()
    world.leader.ask(DUE, lambda: True, step=7)
    world.settle()
    assert world.followers[1].ask(DUE, step=8) is True
    assert world.warned == ["this process is at step 8 where rank 0 is at 7"]


def test_a_rank_that_dies_does_not_keep_a_promise_alive() -> None:
    world = joined(3)
    fast(world, DUE, 50)
    world.leader.hurry()
    for _ in range(len(world.down[1])):
        world.deliver_down(1)
    while world.up[1]:
        world.deliver_up(1)
    world.leader.leave(2)
    assert world.leader.ask(DUE, lambda: True) is True


def test_an_answer_to_an_older_revocation_is_none_to_a_newer_one() -> None:
    world = joined()
    fast(world, DUE, 50)
    world.leader.hurry()
    while world.down[1]:
        world.deliver_down(1)
    fast(world, DUE, 400)  # beyond the old promise: the revocation is over, and a new promise made
    world.leader.hurry()
    world.deliver_up(1)
    world.clock.now += 1.0
    assert world.leader.ask(DUE, lambda: True) is None


def test_what_is_kept_for_a_late_rank_is_short() -> None:
    world = World(2)
    fast(world, DUE, 100_000)
    world.join(1)
    assert len(world.down[1]) == 2


def test_what_was_said_before_the_end_still_counts() -> None:
    world = joined()
    world.leader.report("stop")
    world.leader.bye()
    world.settle()
    assert world.followers[1].report() == "stop"
    with pytest.raises(Gone) as gone:
        world.followers[1].report()
    assert gone.value.complete


def test_a_broken_connection_is_no_clean_end() -> None:
    world = joined()
    world.followers[1].end("rank 0 is gone")
    with pytest.raises(Gone, match="rank 0 is gone") as gone:
        world.followers[1].ask(DUE)
    assert not gone.value.complete


def test_nobody_waits_beyond_the_moment_to_leave() -> None:
    follower = Follower(lambda: 0.0, lambda about, words: None)
    with pytest.raises(OutOfTime, match=r"rank 0 has not come to its report\(\) in time"):
        follower.report()


@pytest.mark.parametrize("rank", [0, 1, 3, -1])
def test_only_a_rank_that_is_missing_may_join(rank: int) -> None:
    world = World(3)
    world.join(1)
    assert world.leader.join(rank, deque[Word]().append) == f"rank {rank} is none, or is here already"


def test_notes_are_gathered_from_those_who_live() -> None:
    world = joined(4)
    world.leader.receive(1, {"w": "note", "name": "whole a", "value": True})
    world.leader.receive(2, {"w": "note", "name": "whole a", "value": False})
    world.leader.leave(3)
    assert world.leader.gather("whole a", [1, 2, 3], lambda: 1e9) == {1: True, 2: False}
    assert world.leader.gather("whole b", [1, 2, 3], lambda: 0.0) == {}


@dataclass
class Story:
    """A schedule drawn from a seed: who does what next, when which rank is asked to go, how fast calls are."""

    seed: int

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.world = World(self.random.choice([2, 3, 4, 6]))
        draw = self.random
        self.program: list[str] = []
        for _ in range(draw.randint(1, 6)):
            inner = draw.choice([[DUE], [PREEMPTION], [DUE, PREEMPTION], [PREEMPTION, DUE, DUE]])
            self.program += inner * draw.choice([0, 1, 3, 40]) + [REPORT]
        self.program += [DUE] * draw.choice([0, 10])
        self.pace = {rank: draw.choice([0.2, 1.0, 5.0]) for rank in range(self.world.size)}
        self.step_time = draw.choice([0.0005, 0.01, 0.3])
        self.at = dict.fromkeys(range(self.world.size), 0)
        self.answers: dict[int, list[Any]] = {rank: [] for rank in range(self.world.size)}
        self.asked_at = draw.choice([None, *range(0, 200, 10)])
        self.wanted = False

    def decide(self) -> Any:
        return True if self.wanted or self.random.random() < 0.01 else None

    def done(self, rank: int) -> bool:
        return self.at[rank] >= len(self.program) or "leave" in self.answers[rank][-1:]

    def lead(self) -> None:
        self.world.clock.now += self.step_time * self.random.choice([1, 1, 1, 50])
        call = self.program[self.at[0]]
        if call == REPORT:
            answer = "leave" if self.wanted else self.random.random()
            self.world.leader.report(answer)
        else:
            answer = self.world.leader.ask(call, self.decide)
        self.answers[0].append(answer)
        self.at[0] += 1

    def follow(self, rank: int) -> bool:
        follower, call = self.world.followers[rank], self.program[self.at[rank]]
        if call == REPORT:
            if (REPORT, follower._made(REPORT)) not in follower._words:
                return False
            answer = follower.report()
        else:
            word = follower.look(call)
            if word is None:
                return False
            answer = word["value"]
        self.answers[rank].append(answer)
        self.at[rank] += 1
        return True

    def moves(self) -> list[tuple[str, int]]:
        world = self.world
        found = [("join", r) for r in world.followers if r not in world.joined]
        found += [("down", r) for r in world.followers if world.down[r]]
        found += [("up", r) for r in world.followers if world.up[r]]
        found += [("call", r) for r in range(world.size) if not self.done(r)]
        return found

    def tell(self) -> None:
        idle, turns = 0, 0
        while moves := self.moves():
            turns += 1
            if turns == self.asked_at:
                self.wanted = True
                self.world.leader.hurry()
            weights = [self.pace[rank] if what == "call" else 1.0 for what, rank in moves]
            what, rank = self.random.choices(moves, weights)[0]
            idle += 1
            if what == "join":
                self.world.join(rank)
            elif what == "down":
                self.world.deliver_down(rank)
            elif what == "up":
                self.world.deliver_up(rank)
            elif rank == 0:
                self.lead()
            elif not self.follow(rank):
                if idle > 5000:
                    raise AssertionError(f"rank {rank} waits for ever at call {self.at[rank]} of {self.program}")
                continue
            idle = 0


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_rank_gets_the_same_answers_in_any_order_of_events(seed: int) -> None:
    story = Story(seed)
    story.tell()
    assert all(answers == story.answers[0] for answers in story.answers.values())
    assert story.world.warned == []
    if story.wanted and "leave" not in story.answers[0]:
        assert REPORT not in story.program[story.at[0] :]
