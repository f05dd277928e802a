"""What must hold at every step and at the end, whatever happens: as code, in words for the trace."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from typing import Any

from simulation.trainer import BROKEN
from trialkeeper import contract
from trialkeeper.contract import PRIOR_MTBF_SECONDS
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.reconcile.ports import Event, Object
from trialkeeper_operator.state.snapshot import DATA_KEY, decode

FINAL = ("Succeeded", "Failed", "Stopped")
COUNTED_ONCE = ("Succeeded", "UserError", "Stopped")


def _alike(a: Any, b: Any, slack: float) -> bool:
    """Whether two values differ by no more than what a snapshot rounds away."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k], slack) for k in a)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= slack
    return bool(a == b)


class Watcher:
    """Sees every change in order and notes what breaks a rule."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.violations: list[str] = []
        self.trace: list[str] = []
        self._trials: dict[str, dict[str, Any]] = {}
        self._verdict = "Unknown"
        self._restoring = False
        self.carried: dict[str, int] = {}  # endings that a trial had when it was taken over
        self._left: dict[int, dict[str, Any]] = {}  # by index: where a deleted experiment's trials stood
        self.pending = 0  # deletions of the experiment, and acts of a person, that are still to come
        self.trials = 0  # that there will be at the end
        self.once: dict[str, int] = {}  # endings of a trial that no counter counts
        self.ended = asyncio.Event()  # an act has ended

    def note(self, line: str) -> None:
        self.trace.append(f"{self._clock():9.2f}  {line}")

    def one_more(self) -> None:
        """There will be another trial."""
        self.trials += 1

    def wrong(self, line: str) -> None:
        self.note(f"VIOLATION {line}")
        self.violations.append(line)

    def see(self, event: Event) -> None:
        meta, status = event.object["metadata"], event.object.get("status") or {}
        if event.kind == "Trial" and event.type == "DELETED":
            self._left[event.object["spec"]["index"]] = self._trials.pop(meta["name"], {})
            self.once.pop(meta["name"], None)
        elif event.kind == "Trial":
            self._trial(meta["name"], event.object["spec"], status)
        elif event.kind == "Experiment":
            conditions = {c["type"]: c["status"] for c in status.get("conditions", ())}
            self._verdict = "Unknown" if event.type == "DELETED" else conditions.get("Succeeded", "Unknown")
            if event.type == "ADDED":
                self._restoring, self.carried = "restoreFrom" in event.object["spec"], {}
            if event.type != "MODIFIED":
                self.note(f"experiment {meta['name']} {event.type}")
        elif event.kind == "Pod":
            ended = [s["state"].get("terminated", {}).get("exitCode") for s in status.get("containerStatuses", ())]
            self.note(f"pod {meta['name']} {event.type} {status.get('phase', '')} {ended or ''}")

    def _taken_over(self, name: str, index: int, status: dict[str, Any]) -> None:
        """The first status of a trial that may be another one's."""
        self.carried[name] = status.get("failures", 0) + status.get("disruptions", 0)
        left = self._left.get(index, {})
        if status.get("phase") in FINAL:
            for field, slack in (
                ("phase", 0.0),
                ("attempt", 0.0),
                ("iteration", 0.0),
                ("metrics", 1e-8),
                ("lostWork", 0.06),
            ):
                if left.get("phase") in FINAL and not _alike(status.get(field), left.get(field), slack):
                    self.wrong(f"{name} was taken over with {field} {status.get(field)} instead of {left.get(field)}")

    def _trial(self, name: str, spec: Mapping[str, Any], status: dict[str, Any]) -> None:
        old, index = self._trials.get(name, {}), spec["index"]
        self._trials[name] = status
        self.note(
            f"{name} {status.get('phase', '-')} attempt {status.get('attempt', 0)} closed {status.get('closed', 0)} "
            f"iteration {status.get('iteration', 0)} failures {status.get('failures', 0)} "
            f"disruptions {status.get('disruptions', 0)} {status.get('reason', '')}"
        )

        over = str(status.get("message", "")).startswith("taken over")
        if self._restoring and status and not old and (over or not status.get("attempt")):
            self._taken_over(name, index, status)
            return

        def grew(field: str) -> int:
            return int(status.get(field, 0)) - int(old.get(field, 0))

        tries, tried = ((s.get("retried") or {}).get("number", 0) for s in (status, old))
        again = tries == tried + 1 <= spec.get("retries", 0) and old.get("phase") in ("Failed", "Stopped")
        if old.get("phase") in FINAL and status.get("phase") != old["phase"] and not again:
            self.wrong(f"{name} left its final phase {old['phase']}")
        if tries != tried and not again:
            self.wrong(f"{name} was given try {tries} of {spec.get('retries', 0)} when it was {old.get('phase')}")
        for field in ("attempt", "closed", "failures", "disruptions"):
            if grew(field) < 0 or grew(field) > 1:
                self.wrong(f"{name} {field} went from {old.get(field, 0)} to {status.get(field, 0)}")
        if grew("attempt") and old.get("attempt", 0) != old.get("closed", 0):
            self.wrong(f"{name} opened attempt {status['attempt']} before the last one was closed")
        if (grew("failures") or grew("disruptions")) and not grew("closed"):
            self.wrong(f"{name} counted an ending without closing an attempt")
        last = (status.get("history") or [{}])[-1]
        if grew("closed") and last.get("class") in COUNTED_ONCE:
            self.once[name] = self.once.get(name, 0) + 1
            if grew("failures") or grew("disruptions"):
                self.wrong(f"{name} counted an attempt that is {last['class']}")
        base, key = status.get("base"), contract.parse_inherited_key(spec.get("fork") or "")
        if key is not None and base is not None and base["attempt"] == 0 and base["iteration"] not in (0, key[2]):
            self.wrong(f"{name} is forked at iteration {key[2]}, and began at {base['iteration']}")
        if status.get("closed", 0) > status.get("attempt", 0):
            self.wrong(f"{name} closed an attempt that was never opened")
        base, before = status.get("base") or {}, old.get("base") or {}
        if base.get("iteration", 0) < before.get("iteration", 0):
            self.wrong(f"{name} base iteration fell from {before['iteration']} to {base['iteration']}")

    def over(self) -> bool:
        """Whether the experiment has its verdict and every trial is final."""
        phases = [s.get("phase") for s in self._trials.values()]
        return (
            not self.pending
            and self._verdict != "Unknown"
            and len(phases) == self.trials
            and all(p in FINAL for p in phases)
        )


def judge(story: Any) -> list[str]:
    """What is wrong with how a story ended; empty if nothing is."""
    wrong = [*story.violations, *snapshot_agrees(story, story.snapshot)]
    for trial in story.trials:
        wrong += [f"{trial['metadata']['name']}: {line}" for line in _ended(trial, story)]
    counts = story.experiment["status"].get("counts", {})
    if sum(counts.values()) != len(story.trials):
        wrong.append(f"the experiment counts {counts} of {len(story.trials)} trials")
    if not story.plot.deletions:
        seen = 1 + sum(t["status"].get("disruptions", 0) for t in story.trials)
        wrong += [f"a pod was told of {told} s" for told in story.node.mtbf if told < PRIOR_MTBF_SECONDS // seen]
    names = [name for name, _ in story.node.started] if not story.plot.deletions else []
    if len(set(names)) != len(names):
        # Only an attempt whose pod vanished before its uid was recorded may start twice, never side by side.
        wrong += [f"{n} ran twice" for n in set(names) if names.count(n) > 2]
    return wrong


def _ended(trial: Object, story: Any) -> list[str]:
    name, index, status = trial["metadata"]["name"], trial["spec"]["index"], trial.get("status") or {}
    prefixes, script = story.prefixes(index), story.scripts[index]
    wrong = []
    if status.get("phase") not in FINAL:
        return [f"phase {status.get('phase')} is not final"]
    if not getattr(story.plot, "dropped", 0):
        # Whoever fails for want of another is not the reason; an operator that is told nothing may not know better.
        broken = [h for h in status.get("history", ()) if h["class"] == "Failed" and BROKEN in h["message"]]
        wrong += [f"attempt {h['attempt']} failed for want of another rank, which nobody blames" for h in broken]
    if status["attempt"] != status["closed"]:
        wrong.append(f"attempt {status['attempt']} is open although the trial is over")
    taken_over = not status.get("history") and name in story.carried
    if taken_over and story.node.prefixes.get(story.lineage.own(index)):
        wrong.append("it ran again although it was over when it was taken over")
    if not taken_over and status.get("history"):
        carried = story.carried.get(name, 0)
        own = status.get("failures", 0) + status.get("disruptions", 0) - carried
        counted = own + story.once.get(name, 0)
        if counted != status["closed"]:
            wrong.append(f"{counted} endings counted, {status['closed']} attempts closed")
        wrong += _running(status) if not carried and len(status["history"]) == status["closed"] else []
    if status["phase"] == "Succeeded":
        complete = prefixes[0].complete if prefixes else set()
        if status["closed"] not in complete:
            wrong.append(f"Succeeded, but attempt {status['closed']} left no complete marker ({complete})")
        if status.get("iteration") != script.iterations:
            wrong.append(f"Succeeded at iteration {status.get('iteration')} of {script.iterations}")
        lost, raw = status.get("lostWork", {}).get("iterations", 0), sum(len(p.rows) for p in prefixes)
        forked = next((p.fork[2] for p in prefixes[-1:] if p.fork), 0)
        if forked + raw != script.iterations + lost:
            wrong.append(
                f"{raw} raw rows from iteration {forked} on, but {script.iterations} iterations and {lost} lost ones"
            )
    return wrong


def _running(status: dict[str, Any]) -> list[str]:
    """Whether the seconds that closed attempts have run are those of their records."""
    spans = [
        seconds(h["endTime"]) - max(seconds(h["firstReportTime"]), seconds(h["startTime"]))
        for h in status["history"]
        if "firstReportTime" in h
    ]
    ran = sum(round(max(0.0, span)) for span in spans)
    return [] if status["runningSeconds"] == ran else [f"{status['runningSeconds']} running seconds instead of {ran}"]


def snapshot_agrees(story: Any, config_map: Object | None) -> list[str]:
    """What the snapshot says otherwise than the Trials do."""
    if config_map is None:
        return ["there is no snapshot"]
    _, rows = decode(base64.b64decode(config_map["binaryData"][DATA_KEY]))
    said = {row["spec"]["index"]: (row["status"].get("phase"), row["status"].get("attempt")) for row in rows}
    truth = {t["spec"]["index"]: (t["status"]["phase"], t["status"]["attempt"]) for t in story.trials}
    return [] if said == truth else [f"the snapshot says {said}, the trials {truth}"]
