"""The main job on a real cluster: the experiment that `make demo` runs, and every kill there is.

The proof is that of the laptop: on raw results and final weights.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.installed import Installed
from proof import EXAMPLES, allowed, bases, repeated, undisturbed, unsaved, violations
from testbed import Cluster
from trialkeeper_operator.api import names
from trialkeeper_operator.local.documents import documents

Object = dict[str, Any]

UNSEEN = {("Lost", "PodGone"), ("Preempted", "Deleted")}
# A node that goes takes every trial on it, not only the one that was looked at; and, it may be, the store.
WITH_THE_NODE = {
    ("Preempted", "DeletionByTaintManager"),
    ("Preempted", "EvictionByEvictionAPI"),
    ("Infrastructure", "StoreUnreachable"),
}


TRIALS, EPOCHS = 4, 300  # few and long, so that a kill does not come after the end


def longer(trials: int = TRIALS, epochs: int = EPOCHS) -> Object:
    """The experiment of `make demo`, with fewer trials that train longer."""
    (digits,) = documents((EXAMPLES / "digits.yaml").read_text())
    spec = digits["spec"] | {"maxTrials": trials}
    spec["parameters"] = [p | {"fixed": epochs} if p["name"] == "epochs" else p for p in spec["parameters"]]
    return {**digits, "spec": spec}


def ended(installed: Installed, namespace: str, trial: Object, seconds: float = 90) -> Object:
    """The history entry of the attempt that was open when `trial` was read, once it is closed."""
    name, attempt = trial["metadata"]["name"], trial["status"]["attempt"]
    what = f"attempt {attempt} ended"
    closed = installed.until_trial(namespace, name, lambda s: s.get("closed", 0) >= attempt, what, seconds)
    entry: Object = next(h for h in closed["status"]["history"] if h["attempt"] == attempt)
    return entry


def go_on(installed: Installed, namespace: str, trial: Object) -> Object:
    """The trial once its next attempt has a checkpoint of its own, or it is through."""
    name, attempt = trial["metadata"]["name"], trial["status"]["attempt"]

    def on(status: Object) -> bool:
        newest = (status.get("checkpoint") or {}).get("attempt", 0)
        return newest > attempt or status.get("phase") == "Succeeded"

    return installed.until_trial(namespace, name, on, f"goes on after attempt {attempt}")


@pytest.mark.timeout(900)
def test_every_kill_costs_no_trial_and_changes_no_weight(installed: Installed, namespace: str, tmp_path: Path) -> None:
    installed.apply(namespace, longer())
    expected: Counter[tuple[str, str]] = Counter()
    noticed: list[tuple[int, int]] = []  # (trial, attempt) that had time to save
    killed: list[tuple[int, int]] = []  # and that had not

    def happened(trial: Object, class_: str, reason: str) -> None:
        entry = ended(installed, namespace, trial)
        assert (entry["class"], entry["reason"]) == (class_, reason), entry
        expected[class_, reason] += 1
        which = killed if class_ == "Infrastructure" else noticed
        which.append((trial["spec"]["index"], trial["status"]["attempt"]))
        go_on(installed, namespace, trial)

    trial = installed.running(namespace)
    installed.delete_pod(namespace, trial["status"]["pod"]["name"])
    happened(trial, "Preempted", "Deleted")

    # Not the leader's own node: the ending of a pod that goes while nobody looks is another case, below.
    trial = installed.running(namespace, off=installed.leader()["spec"]["nodeName"])
    node = installed.node_of(namespace, trial["status"]["pod"]["name"])
    with installed.tainted(node, "test/spot=gone:NoExecute"):
        happened(trial, "Preempted", "DeletionByTaintManager")

    if isinstance(installed.cluster, Cluster):
        trial = installed.running(namespace)
        installed.kill_trainer(trial["status"]["pod"]["uid"])
        happened(trial, "Infrastructure", "Killed")

    # The pod goes while nobody looks: how it ended may never be known, but that it did not fail is.
    trial = installed.running(namespace)
    holder = installed.kill_operator()
    installed.delete_pod(namespace, trial["status"]["pod"]["name"])
    entry = ended(installed, namespace, trial)
    assert (entry["class"], entry["reason"]) in UNSEEN, entry
    go_on(installed, namespace, trial)
    assert installed.holder() != holder

    trial = installed.running(namespace)
    node = installed.node_of(namespace, trial["status"]["pod"]["name"])
    with installed.drained(node, names.LABEL_TRIAL):
        happened(trial, "Preempted", "EvictionByEvictionAPI")

    experiment = installed.await_success(namespace, "digits", seconds=480)
    assert experiment["status"]["counts"] == {"Succeeded": TRIALS}
    trials = installed.items("trials", namespace)
    seen = Counter(
        (h["class"], h["reason"]) for t in trials for h in t["status"]["history"] if h["class"] != "Succeeded"
    )
    assert seen >= expected
    assert set(seen - expected) <= UNSEEN | WITH_THE_NODE
    assert experiment["status"]["disruptions"] == seen.total()
    assert experiment["status"].get("failures", 0) == 0
    prove(installed, trials, experiment, tmp_path)
    store = tmp_path / "bucket" / namespace / f"digits-{experiment['metadata']['uid'][:8]}"
    for index, attempt in noticed:
        assert unsaved(store / f"{index:05d}", attempt) == (0, 0.0), "it had notice, and lost what it had reported"
    for index, attempt in killed:
        _, lost = unsaved(store / f"{index:05d}", attempt)
        assert lost <= allowed(store / f"{index:05d}"), "more than one interval, one upload and one step"


def references(trials: list[tuple[str, Object]], folder: Path) -> dict[str, Path]:
    """What each trial is compared with, by its name: a run that nobody killed; two at a time."""

    def run(trial: tuple[str, Object]) -> Path:
        name, spec = trial
        return undisturbed(name, spec["seed"], spec["parameters"], folder)

    with ThreadPoolExecutor(2) as threads:
        return dict(zip([name for name, _ in trials], threads.map(run, trials), strict=True))


def prove(installed: Installed, trials: list[Object], experiment: Object, folder: Path) -> None:
    """Section by section what design means by lossless: continuity, repeated = lost, curve and weights equal."""
    assert contradictions(installed, trials, experiment, folder) == {}
    meta = experiment["metadata"]
    for trial in trials:  # here each of them has got as far as that
        prefix = folder / "bucket" / meta["namespace"] / f"{meta['name']}-{meta['uid'][:8]}"
        assert len(bases(prefix / f"{trial['spec']['index']:05d}")) == trial["status"]["attempt"]


def contradictions(
    installed: Installed, trials: list[Object], experiment: Object, folder: Path
) -> dict[str, list[str]]:
    """What speaks against it, by trial; the experiment's own sum under its own name."""
    meta = experiment["metadata"]
    store = installed.mirror(f"{meta['namespace']}/{meta['name']}-{meta['uid'][:8]}", folder / "bucket")
    wrong: dict[str, list[str]] = {}
    alone = references([(t["metadata"]["name"], t["spec"]) for t in trials], folder / "reference")
    for trial in trials:
        prefix, status = store / f"{trial['spec']['index']:05d}", trial["status"]
        lost = status["lostWork"]["iterations"]  # a history of more than ten attempts is cut
        shown = sum(h.get("lostIterations", 0) for h in status["history"])
        name = trial["metadata"]["name"]
        found = violations(prefix, {"attempts": [{"lostIterations": lost}]}, alone[name])
        begun = {h["attempt"] for h in status["history"] if h.get("fromIteration") is not None}
        if not begun <= set(bases(prefix)) <= set(range(1, status["attempt"] + 1)):
            found.append(
                f"attempts {sorted(bases(prefix))} in the store, {sorted(begun)} that the status knows to train"
            )
        if shown > lost or (shown < lost and len(status["history"]) == status["attempt"]):
            found.append(f"its attempts have lost {shown} iterations, the trial {lost}")
        if found:
            wrong[name] = found
    total = sum(repeated(store / f"{t['spec']['index']:05d}") for t in trials)
    if experiment["status"]["lostWork"]["iterations"] != total:
        wrong[meta["name"]] = [f"{total} iterations were run again, {experiment['status']['lostWork']} are booked"]
    return wrong
