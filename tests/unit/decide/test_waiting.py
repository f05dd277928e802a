"""What a pod that does not start waits for."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.decide.waiting import waiting


def held(reason: str, message: str = "m", **entry: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"name": "trainer", "image": "img", "state": state, **entry}]}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (held("ErrImagePull"), "ImageNotPulled"),
        (held("ImagePullBackOff"), "ImageNotPulled"),
        (held("InvalidImageName"), "InvalidImageName"),
        (held("CreateContainerConfigError"), "ContainerConfig"),
        (held("ContainerCreating"), None),
        (held("PodInitializing"), None),
        ({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]}, "Unschedulable"),
        ({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}, None),
        ({"phase": "Running"}, None),
        ({}, None),
        ({"phase": "Pending", "containerStatuses": [None, {"state": "x"}], "conditions": ["y"]}, None),
        ({"phase": "Pending", "containerStatuses": 3, "initContainerStatuses": {"a": 1}, "conditions": 7}, None),
        ({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": ["ErrImagePull"]}}}]}, None),
    ],
)
def test_a_pod_waits_for_what_somebody_has_to_mend(status: dict[str, Any], reason: str | None) -> None:
    found = waiting({"status": status})
    assert (found.reason if found else None) == reason


def test_the_words_are_the_kubelets() -> None:
    found = waiting({"status": held("CreateContainerConfigError", 'secret "keys" not found')})
    assert found is not None
    assert found.message == 'container trainer cannot be made: secret "keys" not found'


@pytest.mark.parametrize(("age", "reason"), [(10.0, None), (61.0, "SlowStart")])
def test_a_pod_that_takes_a_minute_to_start_is_worth_a_word(age: float, reason: str | None) -> None:
    status = {
        "phase": "Pending",
        "containerStatuses": [{"name": "t", "state": {"waiting": {"reason": "PodInitializing"}}}],
    }
    pod = {"metadata": {"name": "p", "creationTimestamp": stamp(NOW)}, "status": status}
    found = waiting(pod, NOW + age)
    assert (found.reason if found else None) == reason
