"""An attempt of several pods: all or nothing, judged over all of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from builders import NOW, experiment, pod, trial
from trialkeeper.contract import Message
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import Trial, TrialStatus
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.decide.trial import plan
from trialkeeper_operator.decide.view import (
    ConfirmAbsence,
    CreatePod,
    CreateService,
    DeletePod,
    DeleteService,
    Plan,
    View,
)

SITE = Site(store="s3://bucket")
RANKS = range(3)


def name(rank: int) -> str:
    return f"exp-0-a1-r{rank}"


def of(rank: int, **state: Any) -> dict[str, Any]:
    """The pod of a rank, bound to a node of its own."""
    found = pod(name=name(rank), uid=f"pod-{rank}", **state)
    found["spec"]["nodeName"] = f"node-{rank}"
    return found


def running(**record: Any) -> dict[str, Any]:
    known = {"name": name(0), "uid": "pod-0", "others": ["pod-1", "pod-2"], "startTime": stamp(NOW)}
    return {"attempt": 1, "closed": 0, "phase": "Running", "pod": known | record}


OPEN = {"attempt": 1, "closed": 0, "phase": "Pending"}


def planned(status: dict[str, Any], *pods: dict[str, Any], desired: str = "Run", **known: Any) -> Plan:
    owner = experiment(nodes=3, **known.pop("experiment", {}))
    now = known.pop("now", NOW + 10)
    view = View(
        Experiment.from_object(owner),
        Trial.from_object(trial(spec={"desired": desired}, **status)),
        {p["metadata"]["name"]: p for p in pods},
        site=SITE,
        **known,
    )
    return plan(view, now)


def after(found: Plan) -> TrialStatus:
    assert found.status is not None
    return found.status


def left(found: Plan) -> list[str]:
    return [action.name for action in found.actions if isinstance(action, DeletePod)]


def story(*states: dict[str, Any], then: dict[int, dict[str, Any] | None], **known: Any) -> TrialStatus:
    """What comes of the attempt when its pods are first seen like this, and `then`, after our deletes, like that.

    A pod that becomes None has gone, and its end was not watched.
    """
    pods = {rank: of(rank, **state) for rank, state in enumerate(states)}
    first = planned(running(), *pods.values(), **known)
    deleted = {rank for rank in RANKS if name(rank) in left(first)}
    assert deleted == {rank for rank in RANKS if rank in then and not pods[rank]["metadata"].get("deletionTimestamp")}
    for rank, state in then.items():
        if state is None:
            del pods[rank]
        else:
            pods[rank] = of(rank, **({"deleted": True} if rank in deleted else {}), **state)
    return after(planned(after(first).to_object(), *pods.values(), gone=True, **known))


def ended(status: TrialStatus) -> tuple[str, str, int | None, str | None]:
    assert status.closed == 1, "the attempt is open"
    last = status.history[-1]
    return last.class_, last.reason, last.rank, last.node


# Coming to be.


def test_the_service_comes_first_and_then_every_pod() -> None:
    found = planned(OPEN)
    service, *pods = found.actions
    assert isinstance(service, CreateService)
    assert [p.body["metadata"]["name"] for p in pods if isinstance(p, CreatePod)] == [name(r) for r in RANKS]
    assert service.body["metadata"]["name"] == "exp-0"
    assert service.body["spec"]["selector"].items() <= pods[0].body["metadata"]["labels"].items()  # type: ignore[union-attr]


def test_what_is_there_of_half_a_group_is_noted_and_the_rest_is_made() -> None:
    found = planned(OPEN, of(0), of(2))
    record = after(found).pod
    assert record is not None
    assert (record.uids, after(found).phase) == (["pod-0", "", "pod-2"], "Pending")
    assert [type(a) for a in found.actions] == [CreatePod]
    again = planned(after(found).to_object(), of(0), of(1), of(2))
    assert after(again).pod is not None
    assert (after(again).pod.uids, after(again).phase) == (["pod-0", "pod-1", "pod-2"], "Running")  # type: ignore[union-attr]
    assert again.actions == ()


def test_half_a_group_that_waits_for_room_says_so_as_long_as_it_waits() -> None:
    waits = {**running(others=["pod-1", ""]), "phase": "Waiting", "reason": "QuotaExceeded", "message": "no room"}
    found = planned(waits, of(0), of(1))
    assert found.status is None or (found.status.phase, found.status.reason) == ("Waiting", "QuotaExceeded")
    assert [type(a) for a in found.actions] == [CreatePod]


def test_a_pod_that_ends_before_the_group_is_complete_ends_it() -> None:
    partial = running(others=["pod-1", ""])
    first = planned(partial, of(0), of(1, exit_code=1))
    assert left(first) == [name(0)]
    assert not any(isinstance(action, CreatePod) for action in first.actions)
    status = after(first).to_object()
    second = planned(status, of(1, exit_code=1), of(0, exit_code=143, deleted=True))
    assert second == Plan(actions=(ConfirmAbsence(name(2)),))  # an answer may have been lost
    assert ended(after(planned(status, of(1, exit_code=1), gone=True))) == ("Failed", "ExitCode", 1, "node-1")


def test_a_group_that_is_not_wanted_any_more_before_it_is_made() -> None:
    assert planned(OPEN, desired="Stop") == Plan(actions=tuple(ConfirmAbsence(name(r)) for r in RANKS))
    assert after(planned(OPEN, desired="Stop", gone=True)).phase == "Stopped"


def test_absence_of_one_is_looked_for_and_not_that_of_the_others() -> None:
    assert planned(running(), of(0), of(2)) == Plan(actions=(ConfirmAbsence(name(1)),))


# The end.

WORDS = {"attempt": 1, "iteration": 7, "firstReport": NOW + 2}


def said(end: str, **more: Any) -> str:
    return json.dumps(asdict(Message(end=end, **{**WORDS, **more})))


FINE: dict[str, Any] = {}
LEFT = {"exit_code": 143}
NCCL = {"exit_code": 1, "message": "NCCL error: unhandled system error"}
DRAINED = {"exit_code": 143, "deleted": True, "condition": ("DisruptionTarget", "EvictionByEvictionAPI")}
SAVED = {"exit_code": 143, "message": said("preempted")}

ENDS: dict[str, tuple[tuple[dict[str, Any], ...], dict[int, dict[str, Any] | None], tuple[Any, ...]]] = {
    "one fails": ((FINE, {"exit_code": 3}, FINE), {0: LEFT, 2: LEFT}, ("Failed", "ExitCode", 1, "node-1")),
    "one is evicted, saves with the others, and all leave": (
        (SAVED, DRAINED, LEFT),
        {},
        ("Preempted", "EvictionByEvictionAPI", 1, "node-1"),
    ),
    "one is evicted, the others fail first": (
        (NCCL, {"condition": ("DisruptionTarget", "EvictionByEvictionAPI"), "deleted": True}, NCCL),
        {1: {"exit_code": 137, "deleted": True}},
        ("Preempted", "EvictionByEvictionAPI", 1, "node-1"),
    ),
    "one is deleted by somebody, another fails first": (
        (NCCL, {"deleted": True}, FINE),
        {1: None, 2: None},
        ("Preempted", "Deleted", 1, "node-1"),
    ),
    "the others are deleted by us, and are not the reason": (
        (NCCL, FINE, FINE),
        {1: {"exit_code": 137}, 2: None},
        ("Failed", "ExitCode", 0, "node-0"),
    ),
    "a node went down, as is known after the others failed": (
        (NCCL, NCCL, FINE),
        {2: {"pod_reason": "Terminated", "phase": "Failed", "exit_code": 137}},
        ("Preempted", "Terminated", 2, "node-2"),
    ),
    "the pod of a node that is gone": (
        (FINE, NCCL, FINE),
        {0: {"condition": ("DisruptionTarget", "DeletionByPodGC"), "phase": "Failed"}, 2: LEFT},
        ("Preempted", "DeletionByPodGC", 0, "node-0"),
    ),
    "out of memory, and the others fail": (
        (NCCL, {"exit_code": 137, "reason": "OOMKilled"}, NCCL),
        {},
        ("Failed", "OutOfMemory", 1, "node-1"),
    ),
    "rank 0 raises, and the others find it gone": (
        ({"exit_code": 1, "message": said("error", reason="Exception", text="ValueError: x")}, {"exit_code": 75}, LEFT),
        {},
        ("Failed", "Exception", 0, "node-0"),
    ),
    "another rank raises, and rank 0 tells what it heard of it": (
        (FINE, NCCL, FINE),
        {0: {"exit_code": 143, "message": said("error", reason="Exception", text="rank 1: ValueError: x")}, 2: LEFT},
        ("Failed", "Exception", 0, "node-0"),
    ),
    "rank 0 is through, the others still at work": (
        ({"exit_code": 0, "message": said("complete")}, FINE, FINE),
        {1: {"exit_code": 137}, 2: None},
        ("Succeeded", "Completed", 0, "node-0"),
    ),
    "rank 0 is through, and another is disrupted": (
        ({"exit_code": 0, "message": said("complete")}, DRAINED, NCCL),
        {},
        ("Succeeded", "Completed", 0, "node-0"),
    ),
    "rank 0 of a plain container is through, another has failed": (
        ({"exit_code": 0}, {"exit_code": 2}, {"exit_code": 0}),
        {},
        ("Failed", "ExitCode", 1, "node-1"),
    ),
    "the verdict that rank 0 has obeyed": (
        ({"exit_code": 0, "message": said("stopped", reason="NonFinite")}, FINE, {"exit_code": 75}),
        {1: LEFT},
        ("Stopped", "NonFinite", 0, "node-0"),
    ),
    "a user's error beats failures": (
        (NCCL, {"exit_code": 78}, NCCL),
        {},
        ("UserError", "UserError", 1, "node-1"),
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_end_of_a_group(case: str) -> None:
    states, then, expected = ENDS[case]
    if then:
        found = story(*states, then=then)
    else:
        found = after(planned(running(), *(of(rank, **state) for rank, state in enumerate(states))))
    assert ended(found) == expected


def test_a_rank_that_is_through_waits_for_rank_0() -> None:
    found = planned(running(), of(0), of(1, exit_code=0), of(2, exit_code=0))
    assert left(found) == []
    assert after(found).closed == 0


def test_the_sentence_names_the_rank_and_the_words_of_rank_0_are_heard() -> None:
    found = story(FINE, {"exit_code": 3}, FINE, then={0: SAVED, 2: LEFT})
    assert found.history[-1].message == "rank 1: the trainer exited with code 3"
    assert (found.iteration, found.history[-1].to_iteration) == (7, 7)


def test_why_it_ends_is_stored_before_anything_is_deleted_and_outlives_the_pod() -> None:
    first = planned(running(), of(0, **NCCL), of(1, **DRAINED), of(2))
    record = after(first).pod
    assert record is not None
    assert record.ended is not None
    assert (record.ended.rank, record.ended.reason) == (1, "EvictionByEvictionAPI")
    # The evicted pod has gone since, and an operator that has just come up never saw it.
    found = planned(after(first).to_object(), of(0, **NCCL), of(2, deleted=True, **LEFT), gone=True)
    assert ended(after(found)) == ("Preempted", "EvictionByEvictionAPI", 1, "node-1")


def test_the_others_are_left_alone_for_a_moment_since_their_ends_may_say_more() -> None:
    failed = of(0, **NCCL, finished=stamp(NOW + 8))
    first = planned(running(), failed, of(1), of(2))
    assert first.actions == ()
    assert first.after == pytest.approx(3)
    later = planned(running(), failed, of(1), of(2), now=NOW + 14)
    assert left(later) == [name(1), name(2)]
    killed = planned(running(), failed, of(1, exit_code=137, finished=stamp(NOW + 8)), of(2))
    assert left(killed) == [name(2)]
    assert after(killed).pod is not None
    assert after(killed).pod.ended.reason == "Killed"  # type: ignore[union-attr]


def test_what_is_seen_later_and_weighs_more_is_stored_at_once() -> None:
    first = planned(running(), of(0, **NCCL), of(1), of(2))
    second = planned(
        after(first).to_object(),
        of(0, **NCCL),
        of(1, pod_reason="Shutdown", phase="Failed", exit_code=143),
        of(2, deleted=True),
    )
    record = after(second).pod
    assert record is not None
    assert record.ended is not None
    assert record.ended.reason == "Shutdown"
    third = planned(after(second).to_object(), of(0, **NCCL), of(2, deleted=True), gone=True)
    assert third.status is None  # nothing new


def test_a_lost_node_is_the_reason_and_its_pod_is_not_waited_for() -> None:
    first = planned(running(), of(0, **NCCL), of(1, **NCCL), of(2))
    assert left(first) == [name(2)]
    pods = (of(0, **NCCL), of(1, **NCCL), of(2, deleted=True))
    waiting = planned(after(first).to_object(), *pods)
    assert (waiting.status, waiting.actions, waiting.after) == (None, (), 5.0)
    found = planned(after(first).to_object(), *pods, silent={name(2)})
    assert ended(after(found)) == ("Lost", "NodeLost", 2, "node-2")
    following = planned(after(found).to_object(), *pods, silent={name(2)})
    assert after(following).attempt == 2


def test_the_next_attempt_waits_for_every_pod() -> None:
    first = after(planned(running(), *(of(rank, exit_code=1) for rank in RANKS))).to_object()
    status = {**first, "nextAttemptTime": stamp(NOW)}
    found = planned(status, of(0, exit_code=1), of(1, deleted=True))
    assert (found.status, found.after) == (None, 5.0)
    assert after(planned(status)).attempt == 2


def test_pods_that_are_left_of_a_group_that_failed_for_good_but_the_one_that_did() -> None:
    last = {"attempt": 1, "class": "Failed", "rank": 1, "startTime": stamp(NOW), "endTime": stamp(NOW)}
    status = {"attempt": 1, "closed": 1, "phase": "Failed", "history": [last]}
    found = planned(status, *(of(rank, exit_code=1) for rank in RANKS))
    assert left(found) == [name(0), name(2)]
    assert isinstance(found.actions[-1], DeleteService)


# While it lives.


def test_a_pause_ends_all_pods_and_rests_when_the_last_is_gone() -> None:
    first = planned(running(), *(of(rank) for rank in RANKS), desired="Pause")
    assert left(first) == [name(rank) for rank in RANKS]
    half = planned(
        after(first).to_object(), of(0, deleted=True), of(1, deleted=True, **LEFT), of(2, deleted=True), desired="Pause"
    )
    assert (half.status, half.actions) == (None, ())
    gone = planned(after(first).to_object(), gone=True, desired="Pause")
    assert after(gone).phase == "Paused"
    assert ended(after(gone))[:2] == ("Stopped", "Desired")


def pending(rank: int, **condition: str) -> dict[str, Any]:
    found = of(rank, phase="Pending")
    del found["spec"]["nodeName"]
    held = {"type": "PodScheduled", "status": "False", "lastTransitionTime": stamp(NOW), **condition}
    found["status"]["conditions"] = [held]
    return found


def begun(rank: int, at: float) -> dict[str, Any]:
    found = of(rank)
    state = {"running": {"startedAt": stamp(at)}}
    found["status"]["containerStatuses"] = [{"name": "trainer", "state": state}]
    return found


def test_it_waits_as_long_as_one_of_them_does_and_says_which() -> None:
    found = after(
        planned(running(), begun(0, NOW), begun(1, NOW), pending(2, reason="Unschedulable", message="no GPU"))
    )
    assert (found.phase, found.reason) == ("Waiting", "Unschedulable")
    assert found.message == "rank 2: no node takes the pod: no GPU"


def test_the_first_report_is_waited_for_from_when_the_slowest_has_begun() -> None:
    impatient = {"timeouts": {"firstReportSeconds": 100}}
    slow = planned(running(), begun(0, NOW), begun(1, NOW), begun(2, NOW + 500), now=NOW + 550, experiment=impatient)
    assert slow.after == pytest.approx(50)
    hangs = planned(running(), begun(0, NOW), begun(1, NOW), begun(2, NOW + 500), now=NOW + 601, experiment=impatient)
    intent = after(hangs).intent
    assert intent is not None
    assert (intent.action, intent.reason, len(left(hangs))) == ("Restart", "NoReport", 3)


def test_a_rank_without_a_place_gives_the_next_placement_its_turn() -> None:
    placements = {"placements": [{"name": "spot"}, {"name": "rest"}], "timeouts": {"schedulingSeconds": 60}}
    status = running() | {"placement": {"name": "spot"}}
    held = pending(2, reason="Unschedulable", message="no GPU")
    found = planned(status, begun(0, NOW), begun(1, NOW), held, now=NOW + 61, experiment=placements)
    intent = after(found).intent
    assert intent is not None
    assert (intent.action, intent.reason, len(left(found))) == ("Reschedule", "Unschedulable", 3)


def test_a_group_in_a_queue_waits_and_its_place_there_is_not_given_up() -> None:
    placements = {"placements": [{"name": "spot"}, {"name": "rest"}], "timeouts": {"schedulingSeconds": 60}}
    status = running() | {"placement": {"name": "spot"}}
    gated = [pending(rank, reason="SchedulingGated", message="non-empty scheduling gates") for rank in RANKS]
    found = planned(status, *gated, now=NOW + 86_400, experiment=placements)
    assert (after(found).phase, after(found).intent, left(found)) == ("Waiting", None, [])
