"""Where the next attempt may run: whose turn it is, and which nodes it stays away from."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, experiment, trial
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import Trial, TrialStatus
from trialkeeper_operator.decide import placement
from trialkeeper_operator.decide.pods import Site, render

SPOT = {
    "name": "spot",
    "maxDisruptions": 2,
    "nodeSelector": {"pool": "spot"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
}
ON_DEMAND = {"name": "on-demand", "nodeSelector": {"pool": "on-demand"}}


def of(*placements: dict[str, Any], **spec: Any) -> Experiment:
    spec |= {"placements": list(placements)} if placements else {}
    return Experiment.from_object(experiment(**spec))


def stood(placed: tuple[str, int] | None, *history: dict[str, Any]) -> TrialStatus:
    """The status of a trial with these closed attempts, whose last one had this placement."""
    records = [
        {"attempt": n, "startTime": stamp(NOW), "endTime": stamp(NOW + 60), **record}
        for n, record in enumerate(history, 1)
    ]
    where = {"placement": {"name": placed[0], "disruptions": placed[1]}} if placed else {}
    return TrialStatus.model_validate({"attempt": len(records), "closed": len(records), "history": records, **where})


def infrastructure(node: str, reason: str = "Killed") -> dict[str, Any]:
    return {"class": "Infrastructure", "reason": reason, "node": node}


PREEMPTED = {"class": "Preempted", "reason": "Deleted"}
UNSCHEDULABLE = {"class": "Infrastructure", "reason": "Unschedulable"}


def pod(status: TrialStatus, *placements: dict[str, Any], **template: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "trainer", "image": "t"}], **template}
    owner = of(*placements, template={"spec": spec})
    one = Trial.from_object(trial()).model_copy(update={"status": status})
    found: dict[str, Any] = render(owner, one, status.attempt + 1, Site())["spec"]
    return found


@pytest.mark.parametrize(
    ("placed", "last", "expected"),
    [
        (("spot", 0), PREEMPTED, ("spot", 1)),
        (("spot", 1), PREEMPTED, ("on-demand", 0)),
        (("spot", 0), {"class": "Lost", "reason": "NodeLost"}, ("spot", 1)),
        (("spot", 1), {"class": "Failed", "reason": "ExitCode"}, ("spot", 1)),
        (("spot", 0), UNSCHEDULABLE, ("on-demand", 0)),
        (("on-demand", 7), PREEMPTED, ("on-demand", 8)),
        (("on-demand", 0), UNSCHEDULABLE, ("on-demand", 1)),
        (("edited away", 0), UNSCHEDULABLE, ("edited away", 0)),
    ],
)
def test_the_next_placement_has_its_turn_after_disruptions_or_for_want_of_room(
    placed: tuple[str, int], last: dict[str, Any], expected: tuple[str, int]
) -> None:
    found = placement.closed(of(SPOT, ON_DEMAND).spec, stood(placed, last)).placement
    assert found is not None
    assert (found.name, found.disruptions) == expected


def test_a_store_that_is_away_is_as_far_from_any_placement() -> None:
    status = stood(("spot", 1), infrastructure("node-1", "StoreUnreachable"))
    assert placement.closed(of(SPOT, ON_DEMAND).spec, status) == status


def test_want_of_room_for_a_pod_that_avoids_nodes_is_no_want_of_room() -> None:
    status = stood(("spot", 0), infrastructure("node-1"), UNSCHEDULABLE)
    found = placement.closed(of(SPOT, ON_DEMAND).spec, status).placement
    assert found is not None
    assert found.name == "spot"
    assert placement.avoided(status) == []


@pytest.mark.parametrize(
    ("placements", "placed", "expected"),
    [
        ([], None, None),
        ([SPOT, ON_DEMAND], None, "spot"),
        ([SPOT, ON_DEMAND], ("on-demand", 3), "on-demand"),
        ([SPOT, ON_DEMAND], ("edited away", 3), "spot"),
        ([], ("edited away", 3), None),
    ],
)
def test_an_attempt_is_opened_with_its_placement(
    placements: list[dict[str, Any]], placed: tuple[str, int] | None, expected: str | None
) -> None:
    found = placement.opened(of(*placements).spec, stood(placed)).placement
    assert (found.name if found else None) == expected
    if placed and placed[0] == expected:
        assert found is not None
        assert found.disruptions == placed[1]


def test_a_placement_reaches_the_pod_and_leaves_the_rest_of_it() -> None:
    found = pod(stood(("spot", 0)), SPOT, nodeSelector={"arch": "arm64", "pool": "any"}, tolerations=[{"key": "gpu"}])
    assert found["nodeSelector"] == {"arch": "arm64", "pool": "spot"}
    assert found["tolerations"][:2] == [{"key": "gpu"}, {"key": "spot", "operator": "Exists"}]
    bare = pod(stood(None))
    assert "nodeSelector" not in bare
    assert "affinity" not in bare


def test_nodes_with_trouble_of_their_own_are_avoided_the_newest_three() -> None:
    nodes = ["a", "b", "b", "c", "d"]
    assert placement.avoided(stood(None, *map(infrastructure, nodes))) == ["d", "c", "b"]
    assert placement.avoided(stood(None, PREEMPTED | {"node": "a"}, infrastructure("b", "StoreUnreachable"))) == []
    assert placement.avoided(stood(None, infrastructure("a"), UNSCHEDULABLE, infrastructure("b"))) == ["b"]
    assert placement.avoided(stood(None, infrastructure("a"), PREEMPTED)) == []


FIELDS = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in ("b", "a")]
ZONE = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["x"]}]}


@pytest.mark.parametrize(
    ("own", "terms"),
    [
        (None, [{"matchFields": FIELDS}]),
        ({"podAntiAffinity": {}}, [{"matchFields": FIELDS}]),
        (
            {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [ZONE, ZONE]}}},
            [{**ZONE, "matchFields": FIELDS}] * 2,
        ),
    ],
)
def test_every_term_of_a_node_affinity_says_what_is_avoided(own: Any, terms: list[Any]) -> None:
    found = pod(stood(None, infrastructure("a"), infrastructure("b")), **({"affinity": own} if own else {}))["affinity"]
    assert found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] == terms
    assert {key: found[key] for key in own or () if key != "nodeAffinity"} == {
        key: own[key] for key in own or () if key != "nodeAffinity"
    }


@pytest.mark.parametrize(
    "own",
    [
        "near",
        {"nodeAffinity": ["x"]},
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": 3}},
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": ["x"]}}},
    ],
)
def test_an_affinity_that_no_pod_can_have_is_passed_on(own: Any) -> None:
    assert pod(stood(None, infrastructure("a")), affinity=own)["affinity"] == own


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (stood(None), 0.0),
        (stood(("spot", 0)), 300.0),
        (stood(("on-demand", 0)), 0.0),
        (stood(("on-demand", 0), infrastructure("a")), 60.0),
    ],
)
def test_a_pod_may_wait_for_ever_where_no_other_could_do_better(status: TrialStatus, expected: float) -> None:
    owner = of(SPOT, ON_DEMAND, timeouts={"schedulingSeconds": 300})
    assert placement.movable(owner.spec, status) == expected
