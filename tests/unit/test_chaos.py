"""What chaos does follows from its seed, and its books find what is owed to nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from chaos.books import by_attempt, counted, unexplained
from chaos.story import AFTER, DEAF, HITS, OUTAGES, Done, draw
from trialkeeper_operator.api.times import stamp

T = 1_000_000.0


def entry(attempt: int, class_: str, reason: str, at: float) -> dict[str, Any]:
    times = {"startTime": stamp(T + at - 30), "endTime": stamp(T + at)}
    return {"attempt": attempt, "class": class_, "reason": reason, "message": "", **times}


def trial(*history: dict[str, Any], disruptions: int = 1) -> dict[str, Any]:
    status = {"phase": "Succeeded", "attempt": len(history), "failures": 0, "disruptions": disruptions}
    return {"metadata": {"name": "t-0"}, "status": {**status, "history": list(history)}}


def told(history: dict[str, Any], *done: Done) -> list[str]:
    histories: dict[str, dict[int, dict[str, Any]]] = {}
    by_attempt([history], histories)
    return counted([history], histories) + unexplained(histories, done)


def test_a_seed_tells_the_same_story_again() -> None:
    assert draw(4711, 600) == draw(4711, 600) != draw(4712, 600)


def test_outages_come_one_at_a_time_and_each_of_them_in_ten_minutes() -> None:
    for seed in range(200):
        story = draw(seed, 600)
        outages = [act for act in story if act.what in OUTAGES]
        assert all(a.at + a.lasts < b.at for a, b in pairwise(outages))
        assert {act.what for act in outages} == set(OUTAGES)
        assert all(act.at + act.lasts <= 600 for act in story)


def test_nothing_is_asked_of_an_api_server_that_is_away() -> None:
    for seed in range(200):
        story = draw(seed, 600)
        hits = [act for act in story if act.what in HITS]
        for away in (act for act in story if act.what in DEAF):
            meanwhile = [hit for hit in hits if away.at <= hit.at <= away.at + away.lasts + AFTER]
            assert {hit.what for hit in meanwhile} <= {"sigkill"}


END = entry(2, "Succeeded", "Completed", 60)


def test_a_hit_that_ended_its_attempt_is_in_order() -> None:
    hit = Done("evict", "t-0-a1", T - 1, T)
    assert told(trial(entry(1, "Preempted", "EvictionByEvictionAPI", 0), END), hit) == []


def test_a_hit_that_came_too_late_is_in_order() -> None:
    assert told(trial(entry(1, "Succeeded", "Completed", 0), disruptions=0), Done("sigkill", "t-0-a1", T, T)) == []


def test_what_a_lost_node_ends_is_owed_to_it_and_to_nothing_much_later() -> None:
    lost = trial(entry(1, "Lost", "NodeLost", 0), END)
    assert told(lost, Done("node-lost", "node1", T - 60, T - 1)) == []
    assert told(lost, Done("node-lost", "node1", T - 300, T - 200)) != []
    assert told(lost, Done("operator-killed", "o", T - 60, T - 1)) != []


def test_a_pod_that_is_deleted_from_a_node_which_does_not_answer_is_lost() -> None:
    lost, frozen = trial(entry(1, "Lost", "NodeLost", 0), END), Done("kubelet-frozen", "node1", T - 20, T + 5)
    assert told(lost, frozen, Done("delete", "t-0-a1", T, T)) == []
    assert told(lost, frozen) != [], "nobody would have ended it so soon"


def test_an_attempt_that_finds_no_node_is_owed_to_the_kill_before_it() -> None:
    none = entry(2, "Infrastructure", "Unschedulable", 60)
    hit = Done("sigkill", "t-0-a1", T, T)
    killed = trial(entry(1, "Infrastructure", "Killed", 0), none, {**END, "attempt": 3}, disruptions=2)
    assert told(killed, hit) == []
    evicted = trial(entry(1, "Preempted", "Deleted", 0), none, {**END, "attempt": 3}, disruptions=2)
    assert "was not hit" in told(evicted, Done("delete", "t-0-a1", T, T))[0]


def test_endings_that_nobody_owes_and_hits_without_an_ending_are_found() -> None:
    alone = trial(entry(1, "Preempted", "Deleted", 0), END)
    assert "was not hit" in told(alone)[0]
    assert "t-0-a3 was hit" in told(alone, Done("delete", "t-0-a1", T, T), Done("delete", "t-0-a3", T, T))[0]
    assert "was sigkill" in told(alone, Done("sigkill", "t-0-a1", T, T))[0]


def test_counters_are_the_endings() -> None:
    hit = Done("delete", "t-0-a1", T, T)
    history = entry(1, "Preempted", "Deleted", 0), END
    assert "counts 2 disruptions, and 1" in told(trial(*history, disruptions=2), hit)[0]
    failed = trial(entry(1, "Failed", "Exception", 0), END, disruptions=0)
    failed["status"]["failures"] = 1
    assert any("counts 1 failures" in line for line in told(failed))
