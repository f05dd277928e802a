"""Which replica should lead, as its pods look."""

from __future__ import annotations

from typing import Any

import pytest

from trialkeeper_operator.serve.endpoint import better, ready


def pod(name: str, status: str | None = "True", *, leaving: bool = False) -> dict[str, Any]:
    conditions = [{"type": "PodScheduled", "status": "True"}]
    if status is not None:
        conditions.append({"type": "Ready", "status": status})
    meta = {"name": name} | ({"deletionTimestamp": "2026-11-24T12:00:00Z"} if leaving else {})
    return {"metadata": meta, "status": {"conditions": conditions}}


@pytest.mark.parametrize(
    ("found", "is_ready"),
    [
        (pod("a"), True),
        (pod("a", "False"), False),
        (pod("a", "Unknown"), False),
        (pod("a", None), False),
        (pod("a", leaving=True), False),
        ({"metadata": {"name": "a"}}, False),
    ],
)
def test_a_pod_is_ready_as_a_service_sees_it(found: dict[str, Any], is_ready: bool) -> None:
    assert ready(found) is is_ready


@pytest.mark.parametrize(
    ("pods", "leads"),
    [
        ([pod("own"), pod("other")], None),
        ([pod("own", "False"), pod("other")], "other"),
        ([pod("own", leaving=True), pod("other")], "other"),
        ([pod("own", "False"), pod("other", "False")], None),
        ([pod("own", "False"), pod("other", leaving=True), pod("third")], "third"),
        ([pod("own", "False")], None),
        ([pod("other")], None),
        ([], None),
    ],
    ids=["both", "not ready", "leaving", "nobody", "a third one", "alone", "outside of any pod", "none"],
)
def test_a_replica_yields_only_to_one_that_hears(pods: list[dict[str, Any]], leads: str | None) -> None:
    assert better(pods, "own") == leads
