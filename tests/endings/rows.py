"""Reading the documents of this folder, and asking the trial's plan what it makes of one.

A document has `row`, `title`, `source` (recorded from a kubelet, made by kwok, or read in the code that is named),
what is seen, and `expect`. What may be seen:

- `pod`: metadata, spec and status as the kubelet and others leave them, over a pod of this attempt on node-1; null if
  none was ever seen. A termination message that is a mapping is the SDK's, of this attempt.
- `others`: the same of ranks 1 and up, on node-2 and so on, if the attempt is several pods; `pod` is then rank 0's.
- `gone`: the API server does not have it any more; `pod` is then the last state that was watched.
- `silent`: its node does not answer. `seconds`: since the pod was created (10). `started`: a pod of this experiment
  has been started before. `report`: the newest live report. `reported`: seconds since it came.
- `desired`: the trial's spec.desired. `intent`: what we had recorded before the pod ended.
- `experiment`: fields of its spec. `placement`: which of its placements. `history`: the attempts before this one.
- `killed`: what becomes of the pod when we delete it: a pod as above, or `gone`.
- `refusal`: no pod is seen, since this is how the API server answers to its creation.

`expect` has class, reason, a pattern for the sentence, and the trial's phase; without a class the attempt goes on:
then `phase` and `reason` are those of the trial.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from builders import NOW, experiment, pod, trial
from trialkeeper.contract import VERSION, Message
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.names import pod_names
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.decide.trial import plan
from trialkeeper_operator.decide.view import DeletePod, View

TABLE = range(1, 38)  # the rows that there must be
SITE = Site(store="s3://bucket")


class Told(NamedTuple):
    """What a trial's status says of an ending, or, without a class, of an attempt that goes on."""

    class_: str
    reason: str
    sentence: str
    phase: str
    exit_code: int | None = None
    node: str | None = None


@dataclass(frozen=True)
class Row:
    """One document."""

    row: int
    title: str
    source: str
    expect: dict[str, Any]
    pod: dict[str, Any] | None = None
    others: list[dict[str, Any]] = field(default_factory=list)
    gone: bool = False
    silent: bool = False
    seconds: float = 10.0
    started: bool = False
    report: dict[str, Any] | None = None
    reported: float = 0.0
    desired: str = "Run"
    intent: dict[str, Any] | None = None
    experiment: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    placement: str = ""
    killed: dict[str, Any] | Literal["gone"] | None = None
    refusal: dict[str, Any] | None = None

    @property
    def attempt(self) -> int:
        return len(self.history) + 1

    @property
    def nodes(self) -> int:
        return len(self.others) + 1


def read() -> list[Row]:
    """All documents, by row."""
    documents = [
        d for file in sorted(Path(__file__).parent.glob("*.yaml")) for d in yaml.safe_load_all(file.read_text())
    ]
    return sorted((Row(**document) for document in documents), key=lambda row: row.row)


def told(row: Row) -> Told:
    """What the plan makes of a document, in one pass, or two if it has the pod deleted."""
    status = {
        "attempt": row.attempt,
        "closed": row.attempt - 1,
        "phase": "Running",
        "pod": {
            "name": pod_names("exp-0", row.attempt, row.nodes)[0],
            "uid": f"pod-{row.attempt}",
            "startTime": stamp(NOW),
            **({"others": [f"pod-{row.attempt}-{rank}" for rank in range(1, row.nodes)]} if row.others else {}),
        },
        "history": [_record(n, h) for n, h in enumerate(row.history, 1)],
        **({"intent": row.intent} if row.intent else {}),
        **({"placement": {"name": row.placement}} if row.placement else {}),
    }
    seen = pod_of(row.pod, row.attempt) if row.pod else None
    first = _planned(row, status, seen, row.gone)
    if any(isinstance(action, DeletePod) for action in first.actions) and row.killed is not None:
        assert first.status is not None
        after = pod_of(row.killed, row.attempt) if isinstance(row.killed, dict) else None
        first = _planned(row, first.status.to_object(), after or seen, after is None)
    assert first.status is not None, "nothing was made of it"
    found = first.status
    if found.closed < row.attempt:
        return Told("", found.reason, found.message, found.phase)
    last = found.history[-1]
    return Told(last.class_, last.reason, found.message, found.phase, last.exit_code, last.node)


def _record(attempt: int, said: dict[str, Any]) -> dict[str, Any]:
    return {"attempt": attempt, "startTime": stamp(NOW - 90), "endTime": stamp(NOW - 60), **said}


def _planned(row: Row, status: dict[str, Any], seen: dict[str, Any] | None, gone: bool) -> Any:
    there = {} if gone or seen is None else {seen["metadata"]["name"]: seen}
    called = pod_names("exp-0", row.attempt, row.nodes)
    if row.others:
        assert seen is not None
        seen["metadata"]["name"] = called[0]
        there = {called[0]: seen}
    for rank, said in enumerate(row.others, 1):
        other = pod_of(said, row.attempt)
        other["metadata"] |= {"name": called[rank], "uid": f"pod-{row.attempt}-{rank}"}
        other["spec"]["nodeName"] = f"node-{rank + 1}"
        there[called[rank]] = other
    view = View(
        Experiment.from_object(experiment(nodes=row.nodes, **row.experiment)),
        Trial.from_object(trial(spec={"desired": row.desired}, **status)),
        there,
        report=Message.decode(_words(row.report, row.attempt)) if row.report else None,
        report_time=NOW + row.seconds - row.reported,
        last={seen["metadata"]["name"]: seen} if gone and seen is not None else {},
        gone=gone,
        site=SITE,
        silent={seen["metadata"]["name"]} if row.silent and seen is not None else (),
        started=row.started,
    )
    return plan(view, NOW + row.seconds)


def pod_of(seen: dict[str, Any], attempt: int) -> dict[str, Any]:
    """A pod of an attempt on node-1, as a document has it."""
    seen = copy.deepcopy(seen)
    found = pod(attempt)
    found["metadata"] |= {"creationTimestamp": stamp(NOW), **seen.get("metadata", {})}
    found["spec"] |= {"nodeName": "node-1", **seen.get("spec", {})}
    found["status"] = seen.get("status", {})
    for entry in found["status"].get("containerStatuses", ()):
        ended = entry["state"].get("terminated", {})
        if isinstance(ended.get("message"), dict):
            ended["message"] = _words(ended["message"], attempt)
    return found


def _words(said: dict[str, Any], attempt: int) -> str:
    return json.dumps({"v": VERSION, "attempt": attempt, "iteration": 3, **said})
