"""What a watch has seen of a pod, as a document of this folder: times as if it had been made at the tests' NOW.

Nothing of the machine is kept: no addresses, no identifiers. `shape` is what of a document decides, so that what is
recorded today can be compared with what was recorded before.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from builders import NOW
from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.decide import evidence

Object = dict[str, Any]

FILE = Path(__file__).with_name("recorded.yaml")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
METADATA = ("deletionTimestamp", "deletionGracePeriodSeconds", "finalizers")
STATUS = ("phase", "reason", "message", "conditions", "initContainerStatuses", "containerStatuses")
CONDITION = ("type", "status", "reason", "message", "lastTransitionTime")
CONTAINER = ("name", "image", "state", "restartCount")
KEPT = {"conditions": CONDITION, "initContainerStatuses": CONTAINER, "containerStatuses": CONTAINER}
STATE = ("reason", "message", "exitCode", "signal", "startedAt", "finishedAt")
DECIDES = ("DisruptionTarget", "PodScheduled")  # the types of conditions that do


@dataclass
class Seen:
    """A pod in the order of its events: the last one before anybody deleted it, the deletion, the last of all."""

    before: Object = field(default_factory=dict)
    deleted: Object = field(default_factory=dict)
    last: Object = field(default_factory=dict)

    def see(self, pod: Object) -> None:
        self.last = pod
        if "deletionTimestamp" not in pod["metadata"]:
            self.before = pod
        elif not self.deleted:
            self.deleted = pod


@contextmanager
def watched(command: list[str], env: Mapping[str, str], file: Path) -> Iterator[Callable[[], dict[str, Seen]]]:
    """What `kubectl get pods --watch --output-watch-events -o json` writes; called, what was seen of each by name."""
    with file.open("wb") as out:
        watch = subprocess.Popen(command, env=dict(env), stdout=out)
    try:
        yield lambda: _seen(file.read_text())
    finally:
        watch.terminate()
        watch.wait(10)


def _seen(text: str) -> dict[str, Seen]:
    decoder, position = json.JSONDecoder(), 0
    found: dict[str, Seen] = {}
    while position < len(text.rstrip()):
        try:
            event, position = decoder.raw_decode(text, position)
        except ValueError:
            break  # the last one is still being written
        position += len(text[position:]) - len(text[position:].lstrip())
        found.setdefault(event["object"]["metadata"]["name"], Seen()).see(event["object"])
    return found


def recorded(
    row: int, name: str, expect: Object, seen: Seen, *, ours: bool, experiment: Object | None = None
) -> Object:
    """A pod as a document; `ours`: what was done to it is the operator's deletion, whose time had come then."""
    document: Object = {"row": row, "title": f"recorded: {name}", "source": "recorded"}
    if not ours and seen.before and evidence.ended(seen.before, "trainer"):
        return {**document, "pod": _pod(seen.before), "expect": expect}  # what was deleted then had ended
    if not ours:
        gone = "deletionTimestamp" in seen.last["metadata"]
        return {**document, "pod": _pod(seen.last), "gone": gone, "expect": expect}
    meta = seen.deleted["metadata"]
    asked = seconds(meta["deletionTimestamp"]) - meta.get("deletionGracePeriodSeconds", 0)
    return {
        **document,
        "experiment": experiment,
        "pod": _pod(seen.before),
        "seconds": asked - seconds(meta["creationTimestamp"]) + 1,
        "killed": _pod(seen.last) if seen.last["status"].get("phase") in ("Succeeded", "Failed") else "gone",
        "expect": expect,
    }


def _pod(pod: Object) -> Object:
    status = {key: pod["status"][key] for key in STATUS if key in pod["status"]}
    for key, keep in (
        ("conditions", CONDITION),
        ("initContainerStatuses", CONTAINER),
        ("containerStatuses", CONTAINER),
    ):
        if key in status:
            status[key] = [{k: entry[k] for k in keep if k in entry} for entry in status[key]]
    for entry in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        entry["state"] = {
            kind: {key: state[key] for key in STATE if key in state} for kind, state in entry["state"].items()
        }
        entry["image"] = entry["image"].removeprefix("docker.io/library/")
    trainer = next(c for c in pod["spec"]["containers"] if c["name"] == "trainer")
    limits = {"resources": trainer["resources"]} if trainer.get("resources") else {}
    spec = {"nodeName": pod["spec"].get("nodeName"), "containers": [{"name": "trainer", **limits}]}
    metadata = {key: pod["metadata"][key] for key in METADATA if key in pod["metadata"]}
    shift = NOW - seconds(pod["metadata"]["creationTimestamp"])

    def moved(time: re.Match[str]) -> str:
        return stamp(seconds(time[0]) + shift)

    found: Object = json.loads(TIME.sub(moved, json.dumps({"metadata": metadata, "spec": spec, "status": status})))
    return found


def shape(document: Object) -> Object:
    """What of a document decides: of its pod and of what became of it when we deleted it, without times and words."""
    if "refusal" in document:
        body = document["refusal"]["body"]
        return {"row": document["row"], "refusal": (document["refusal"]["code"], body["reason"])}
    parts = {key: document[key] for key in ("pod", "killed") if key in document}
    return {
        "row": document["row"],
        **{key: part if part == "gone" else _shape(part) for key, part in parts.items()},
    }


def _shape(pod: Object) -> Object:
    status = pod["status"]
    entries = (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
    return {
        "phase": status.get("phase"),
        "reason": status.get("reason"),
        "deleted": "deletionTimestamp" in pod["metadata"],
        "conditions": sorted(
            (c["type"], c["status"], c.get("reason", "")) for c in status.get("conditions", ()) if c["type"] in DECIDES
        ),
        "containers": sorted(
            (entry["name"], kind, state.get("reason", ""), state.get("exitCode", -1))
            for entry in entries
            for kind, state in entry["state"].items()
        ),
    }


def read() -> dict[str, Object]:
    """The documents that were recorded before, by title."""
    return {d["title"]: d for d in yaml.safe_load_all(FILE.read_text())} if FILE.exists() else {}


def write(documents: list[Object]) -> None:
    """Put these in the place of those that have their titles."""
    kept = read() | {d["title"]: d for d in documents}
    ordered = sorted(kept.values(), key=lambda d: (d["row"], d["title"]))
    FILE.write_text(yaml.safe_dump_all(ordered, sort_keys=False, width=118))
