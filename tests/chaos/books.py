"""The books after chaos: what the trials' histories say, beside what was done to them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chaos.story import Done
from trialkeeper_operator.api.times import seconds

Object = dict[str, Any]
Histories = Mapping[str, Mapping[int, Object]]  # by trial and attempt

DISRUPTIONS = ("Preempted", "Lost", "Infrastructure")
# What an attempt may come to that was hit; PodGone: it was gone before anybody had seen how.
HIT = {
    "delete": {"Deleted", "PodGone"},
    "force": {"Deleted", "PodGone"},
    "evict": {"EvictionByEvictionAPI", "PodGone"},
    "sigkill": {"Killed"},
}
# What an outage may do to attempts that nobody hit.
_NODE = {"NodeLost", "DeletionByTaintManager", "ContainerStatusUnknown", "PodGone", "Fenced", "StoreUnreachable"}
OUTAGE = {
    "node-lost": _NODE,
    "store-killed": {"StoreUnreachable"},
    "store-frozen": {"StoreUnreachable"},
}
# What becomes of hits meanwhile: whoever deletes a pod of a node that does not answer learns nothing more of it.
MEANWHILE = {
    what: {"NodeLost"} for what in ("kubelet-killed", "kubelet-frozen", "apiserver-killed", "apiserver-frozen")
}
# Where a trainer was killed its next attempt does not go: with two nodes there may be none left for a minute.
AVOIDED = "Unschedulable"
NOTICED = 90.0  # seconds after an outage in which an ending may still be owed to it


def by_attempt(trials: Iterable[Object], into: dict[str, dict[int, Object]]) -> None:
    """Add what these trials' histories show; a status holds the newest ten attempts only."""
    for trial in trials:
        kept = into.setdefault(trial["metadata"]["name"], {})
        for entry in (trial.get("status") or {}).get("history") or ():
            kept[entry["attempt"]] = entry


def unexplained(histories: Histories, done: Sequence[Done]) -> list[str]:
    """Endings that are owed to nothing that was done, and hits that came to nothing."""
    wrong = []
    hits = {d.to: d for d in done if d.hit and not d.missed}
    for trial, history in sorted(histories.items()):
        for attempt, entry in sorted(history.items()):
            pod = f"{trial}-a{attempt}"
            hit, said = hits.pop(pod, None), f"{entry['class']} ({entry['reason']})"
            if entry["class"] == "Succeeded":
                continue  # it had just ended when it was hit
            owed = _owed(entry, done, OUTAGE)
            if history.get(attempt - 1, {}).get("class") == "Infrastructure":
                owed.add(AVOIDED)
            if hit:
                owed |= HIT[hit.what] | _owed(entry, done, MEANWHILE)
            if entry["class"] not in DISRUPTIONS or entry["reason"] not in owed:
                wrong.append(f"{pod} ended as {said}, and was {hit.what if hit else 'not hit'}: {entry['message']}")
    wrong += [f"{pod} was hit ({hit.what}), and no attempt of that name has ended" for pod, hit in hits.items()]
    return wrong


def _owed(entry: Object, done: Iterable[Done], table: Mapping[str, set[str]]) -> set[str]:
    """The reasons of endings that the outages during an attempt's life may have, by a table."""
    begin, end = seconds(entry["startTime"]), seconds(entry["endTime"])
    reasons: set[str] = set()
    for outage in done:
        if not outage.hit and not outage.missed and outage.begin <= end and begin <= outage.end + NOTICED:
            reasons |= table.get(outage.what, set())
    return reasons


def counted(trials: Iterable[Object], histories: Histories) -> list[str]:
    """Counters that are not the number of attempts which ended so."""
    wrong = []
    for trial in trials:
        name, status = trial["metadata"]["name"], trial["status"]
        ended = [entry["class"] for entry in histories.get(name, {}).values()]
        disruptions = sum(c in DISRUPTIONS for c in ended)
        if len(ended) != status["attempt"]:
            wrong.append(f"{name} has had {status['attempt']} attempts, and {len(ended)} endings")
        if status["disruptions"] != disruptions:
            wrong.append(f"{name} counts {status['disruptions']} disruptions, and {disruptions} attempts ended so")
        if status["failures"]:
            wrong.append(f"{name} counts {status['failures']} failures")
        if status["phase"] != "Succeeded":
            wrong.append(f"{name} is {status['phase']}: {status.get('message', '')}")
    return wrong


def recoveries(histories: Histories) -> list[float]:
    """Seconds from each disruption to the first new iteration after it."""
    entries = [e for history in histories.values() for e in history.values()]
    return sorted(e["restartSeconds"] for e in entries if e["class"] in DISRUPTIONS and e.get("restartSeconds"))
