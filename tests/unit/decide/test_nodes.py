"""One pod of several: what launchers, schedulers and the other pods are told of it."""

from __future__ import annotations

from typing import Any

import pytest

from builders import experiment, trial
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide import nodes
from trialkeeper_operator.decide.pods import Site, render
from unit.decide.test_pods import template, variables

SITE = Site(store="s3://trialkeeper")
QUEUE = "kueue.x-k8s.io/queue-name"


def rendered(rank: int = 1, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    owner = experiment(**{"nodes": 4, **spec})
    owner["metadata"]["labels"] = labels or {}
    return render(Experiment.from_object(owner), Trial.from_object(trial()), 2, SITE, rank=rank)


def test_each_rank_is_called_by_its_name_in_the_trials_service() -> None:
    pod = rendered()
    assert pod["metadata"]["name"] == "exp-0-a2-r1"
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("exp-0-a2-r1", "exp-0")
    made = nodes.service(Experiment.from_object(experiment(nodes=4)), Trial.from_object(trial()))
    assert made["metadata"]["name"] == pod["spec"]["subdomain"]
    assert made["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert made["spec"]["clusterIP"] == "None"
    assert made["metadata"]["ownerReferences"][0]["uid"] == "trial-uid"


def test_the_same_command_of_torchrun_serves_every_rank() -> None:
    told = variables(rendered(3))
    assert {name: value for name, value in told.items() if name.startswith("PET_")} == {
        "PET_NNODES": "4",
        "PET_NODE_RANK": "3",
        "PET_MASTER_ADDR": "exp-0-a2-r0.exp-0",
        "PET_MASTER_PORT": "29500",
    }
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("exp-0-a2-r0.exp-0", "29500")
    assert (told["RANK"], told["WORLD_SIZE"]) == ("3", "4")


@pytest.mark.parametrize(
    ("limits", "processes"),
    [({"nvidia.com/gpu": 8}, "8"), ({"amd.com/gpu": "2", "cpu": 4}, "2"), ({"cpu": 4}, None), ("all", None)],
)
def test_a_process_for_each_gpu(limits: Any, processes: str | None) -> None:
    pod = rendered(template=template(resources={"limits": limits}))
    assert variables(pod).get("PET_NPROC_PER_NODE") == processes


def test_what_the_template_says_of_it_wins() -> None:
    told = variables(rendered(template=template(env=[{"name": "PET_MASTER_PORT", "value": "1234"}])))
    assert (told["PET_MASTER_PORT"], told["PET_NNODES"]) == ("1234", "4")


def test_schedulers_know_which_pods_belong_together_and_how_many_they_are() -> None:
    meta = rendered()["metadata"]
    groups = ("kueue.x-k8s.io/pod-group-name", "scheduling.x-k8s.io/pod-group", "pod-group.scheduling.sigs.k8s.io/name")
    assert {meta["labels"][name] for name in groups} == {"exp-0-a2"}
    assert meta["labels"]["pod-group.scheduling.sigs.k8s.io/min-available"] == "4"
    assert meta["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "4"
    assert meta["annotations"]["kueue.x-k8s.io/retriable-in-group"] == "false"


def test_one_pod_is_what_it_was() -> None:
    pod = rendered(0, nodes=1)
    assert pod["metadata"]["name"] == "exp-0-a2"
    assert not {"hostname", "subdomain"} & pod["spec"].keys()
    assert not any(name.startswith(("PET_", "MASTER")) for name in variables(pod))
    assert not any("group" in name for name in (*pod["metadata"]["labels"], *pod["metadata"]["annotations"]))


@pytest.mark.parametrize("count", [1, 4])
def test_the_queue_of_an_experiment_is_that_of_its_pods(count: int) -> None:
    labels = {QUEUE: "team-a", "kueue.x-k8s.io/priority-class": "low", "team": "a"}
    found = rendered(0, labels, nodes=count)["metadata"]["labels"]
    assert (found[QUEUE], found["kueue.x-k8s.io/priority-class"]) == ("team-a", "low")
    assert "team" not in found
    assert QUEUE not in rendered(0, nodes=count)["metadata"]["labels"]
