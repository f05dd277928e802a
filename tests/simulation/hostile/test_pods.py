"""Pods as anybody may leave them: whatever their status, last words and labels are, each gets a sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from simulation.hostile.garbage import TEXTS, VALUES, examples, spoiled
from simulation.hostile.neighbours import HOSTILE, Neighbours, beside, closed, sentence
from trialkeeper.contract import CheckpointRef, Message, MetricSummary, Resumed
from trialkeeper_operator.api import names

AT = "2023-11-14T22:14:20Z"
LAST_WORDS = asdict(
    Message(
        end="preempted",
        attempt=1,
        reason="r",
        text="t",
        time=1_700_000_050.0,
        started=1_700_000_010.0,
        firstReport=1_700_000_020.0,
        iteration=4,
        trainedSeconds=30.0,
        saveInterval=2.0,
        resumed=Resumed(0, 0, 1_700_000_012.0, 0, 0),
        checkpoint=CheckpointRef(1, 4, "manifests/a000001-i000000000004.json", 1_700_000_040.0),
        metrics={"loss": MetricSummary(0.5, 0.4, 0.9)},
    )
)
WAITS = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": AT},
        {"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": AT},
    ],
    "initContainerStatuses": [{"name": "fetch", "state": {"running": {"startedAt": AT}}}],
    "containerStatuses": [
        {"name": "trainer", "image": "t", "state": {"waiting": {"reason": "ErrImagePull", "message": "m"}}}
    ],
}
RUNS = {
    "phase": "Running",
    "startTime": AT,
    "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "m"}],
    "containerStatuses": [{"name": "trainer", "state": {"running": {"startedAt": AT}}, "restartCount": 0}],
}
ENDED = {
    "phase": "Failed",
    "reason": "Evicted",
    "message": "m",
    "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}],
    "containerStatuses": [
        {
            "name": "trainer",
            "state": {"terminated": {"exitCode": 1, "signal": 9, "reason": "Error", "message": "m", "finishedAt": AT}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        }
    ],
}

STATUSES = st.one_of(spoiled(WAITS), spoiled(RUNS), spoiled(ENDED), VALUES)
WORDS = st.one_of(
    spoiled(LAST_WORDS).map(lambda said: json.dumps(said)),
    spoiled({"metrics": {"loss": 0.5, "n": 3}}).map(lambda said: json.dumps(said)),
    TEXTS,
    VALUES,
    st.sampled_from(('{"v":1,"end":"running","iteration":NaN}', "[" * 3000, '{"v":1,"end":["running"]}', "1" * 4000)),
)


async def _gets_a_sentence(here: Neighbours) -> None:
    await here.apply(HOSTILE)
    found = await here.until(names.TRIAL, f"{HOSTILE}-0", closed)
    record = found["status"]["history"][0]
    assert sentence(record["message"]), record
    assert record["reason"], record


@examples(40)
@given(st.lists(STATUSES, min_size=1, max_size=3))
@example([{**ENDED, "containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": "1"}}}]}])
def test_whatever_a_pods_status_is_it_ends_with_a_sentence(statuses: list[Any]) -> None:
    beside(_gets_a_sentence, statuses)


@examples(40)
@given(WORDS, st.sampled_from((0, 1, 75, 78, 137, 143)))
def test_whatever_a_trainers_last_words_are_they_end_with_a_sentence(words: Any, code: int) -> None:
    state = {"terminated": {"exitCode": code, "reason": "Error", "message": words, "finishedAt": AT}}
    ended = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [{"name": "trainer", "state": state}]}
    beside(_gets_a_sentence, [ended])


LABELS = st.dictionaries(
    st.sampled_from((names.LABEL_TRIAL, names.LABEL_ATTEMPT, names.LABEL_EXPERIMENT, names.LABEL_MANAGED_BY)),
    TEXTS | st.sampled_from(("exp-0", "exp", "odd-1", "1", "trialkeeper")),
)


@examples(15)
@given(st.lists(st.fixed_dictionaries({"labels": LABELS, "annotations": st.dictionaries(TEXTS, TEXTS)}), max_size=2))
def test_whatever_its_labels_are_a_pod_belongs_to_its_owner(metadata: list[Any]) -> None:
    beside(_gets_a_sentence, [RUNS], metadata)
