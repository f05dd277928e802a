"""The drill in a cluster: one trial in peace and once more with its pods deleted, with notice and by force in turn.

Everything goes through kubectl, with the rights of whoever asks: two Experiments are made, watched, and deleted again
with their checkpoints and snapshots. What the two say about the trainer is judged as on one machine.
"""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide import ledger
from trialkeeper_operator.local import drill, kubectl
from trialkeeper_operator.local.drill import DrillInterrupted, Verdict
from trialkeeper_operator.local.kubelet import How
from trialkeeper_operator.local.remote import EXPERIMENTS, TRIALS

Document = Mapping[str, Any]
Say = Callable[[str], None]
Places = Sequence[tuple[int, How]]

KILLS = 9  # at most: a trial's status shows its newest ten attempts
PAUSE = 1.0  # seconds between two looks
UNSERVED = 60.0  # seconds after which somebody ought to have looked at an Experiment
FORCE = ("--force", "--grace-period=0")


class DrillRefused(RuntimeError):
    """Raised when there can be no drill; the message is one sentence that says what to change."""


Refused = (DrillRefused, kubectl.NoKubectl, kubectl.Refusal)


def experiment(raw: Document, name: str, namespace: str | None) -> dict[str, Any]:
    """The experiment of a drill under another name, which leaves nothing when it is deleted."""
    found: dict[str, Any] = copy.deepcopy(dict(raw))
    spec, meta = found["spec"], found["metadata"]
    spec["deletionPolicy"] = {"checkpoints": "Delete", "snapshot": "Delete"}
    spec.pop("restoreFrom", None)
    if enqueue := spec.pop("enqueue", None):  # what it would be forked at belongs to the experiment itself
        first = {field: value for field, value in enqueue[0].items() if field != "base"}
        spec |= {"enqueue": [first]} if first else {}
    kept = {field: meta[field] for field in ("labels", "annotations") if field in meta}
    where = namespace or meta.get("namespace")
    found.pop("status", None)
    found["metadata"] = {"name": name, **kept, **({"namespace": where} if where else {})}
    return found


def derived(name: str, purpose: str, token: str) -> str:
    """A name for a drill's experiment: that of the file, what it is for, and who it is."""
    end = f"-{purpose}-{token}"
    return name[: names.EXPERIMENT_NAME_LIMIT - len(end)].rstrip("-") + end


def carry_out(raw: Document, namespace: str | None, kills: int, seed: int, say: Say, *, keep: bool = False) -> Verdict:
    """Run the drill; what it has made is deleted whatever happens, unless it is to be kept.

    :raises DrillInterrupted: if somebody ends it before it has a verdict.
    :raises DrillRefused: if it cannot be run there.
    :raises kubectl.NoKubectl: if there is none here.
    :raises kubectl.Refusal: if it refuses.
    """
    metric, token = raw["spec"]["objectives"][0]["metric"], secrets.token_hex(2)
    reduced = drill.experiment(raw, kills)
    try:
        with _made(reduced, derived(raw["metadata"]["name"], "peace", token), namespace, say, keep) as peace:
            say(f"drill: one trial in peace ({peace.namespace}/{peace.name}), then with {kills} kills")
            quiet, _ = _through(peace, (), say)
            if verdict := drill.in_peace(quiet, metric):
                return verdict
            say(f"parameters: {', '.join(f'{name}={value}' for name, value in quiet['parameters'].items())}")
            say(f"in peace: {quiet['iterations']} iterations, {metric} {quiet['metrics'][metric]['last']:.6g}")
            places = drill.plan(quiet["iterations"], kills, seed)
            held = drill.holding(reduced, places)
            with _made(held, derived(raw["metadata"]["name"], "drill", token), namespace, say, keep) as hit:
                disturbed, hits = _through(hit, places, say)
                if deaf := drill.unheard(disturbed["attempts"], places):
                    say(f"note: {deaf}")
                rows = _rows([(peace, quiet), (hit, disturbed)], metric, say)
                return drill.judge(disturbed, metric, rows, disturbed["savers"], hits)
    except KeyboardInterrupt:
        raise DrillInterrupted from None


@contextmanager
def _made(raw: Document, name: str, namespace: str | None, say: Say, keep: bool) -> Iterator[Experiment]:
    """An Experiment of the cluster for as long as the block lasts."""
    body = experiment(raw, name, namespace)
    where = body["metadata"].get("namespace")
    try:
        yield Experiment.from_object(kubectl.create(body, where))
    finally:
        if keep:
            say(f"kept: kubectl delete exp {name} takes it away, with its checkpoints")
        else:
            _clean(name, where, say)


def _clean(name: str, namespace: str | None, say: Say) -> None:
    try:
        kubectl.delete(EXPERIMENTS, name, namespace, "--ignore-not-found")
    except OSError as error:
        say(f"note: {name} could not be deleted ({error}): kubectl delete exp {name} takes it away")


def _through(made: Experiment, places: Places, say: Say) -> tuple[dict[str, Any], int]:
    """Watch the one trial of an experiment to its end, and delete each attempt's pod at its place.

    What it came to, and how often it was hit.
    """
    name, savers, hit, said = f"{made.name}-0", set[int](), set[int](), ""
    until = time.monotonic() + UNSERVED
    while True:
        trial = _trial(name, made.namespace)
        if trial is None:
            _refused(made, overdue=time.monotonic() > until)
            time.sleep(PAUSE)
            continue
        status = trial.status
        if status.checkpoint is not None and status.checkpoint.attempt:
            savers.add(status.checkpoint.attempt)
        if status.phase in ledger.FINAL:
            return _document(trial, savers), len(hit)
        words = f"{status.reason}: {status.message}" if status.phase == "Waiting" and status.message else ""
        if words not in ("", said):
            say(f"waiting: {words}")
        said = words or said
        attempt = status.attempt
        if 1 <= attempt <= len(places) and attempt not in hit and _due(trial, places[attempt - 1][0]):
            _delete(trial, places[attempt - 1], say)
            hit.add(attempt)
        time.sleep(PAUSE)


def _due(trial: Trial, place: int) -> bool:
    """Whether the open attempt's trainer waits where it is to be hit, or nearly: the checkpoint before is there."""
    pod, newest = trial.status.pod, trial.status.checkpoint
    return pod is not None and pod.from_iteration is not None and newest is not None and newest.iteration >= place - 1


def _delete(trial: Trial, place: tuple[int, How], say: Say) -> None:
    iteration, how = place
    pod = trial.status.pod
    assert pod is not None  # it is due
    say(f"kill: pod {pod.name} is deleted {'by force' if how == 'SIGKILL' else 'with notice'} at iteration {iteration}")
    more = FORCE if how == "SIGKILL" else ()
    kubectl.delete("pod", pod.name, trial.namespace, "--ignore-not-found", *more)


def _trial(name: str, namespace: str) -> Trial | None:
    found = kubectl.find(TRIALS, name, namespace)
    return Trial.from_object(found) if found is not None else None


def _refused(made: Experiment, *, overdue: bool) -> None:
    """:raises DrillRefused: if the operator wants no trial of it, or there is no operator."""
    now = Experiment.from_object(kubectl.get(EXPERIMENTS, made.name, made.namespace))
    for condition in now.status.conditions:
        bad = {names.ACCEPTED: "False", names.STALLED: "True"}.get(condition.type)
        if condition.status == bad:
            raise DrillRefused(f"the operator does not begin the drill ({condition.reason}): {condition.message}")
    if overdue and not now.status.phase:
        raise DrillRefused(
            f"no operator has looked at {made.name} in namespace {made.namespace} for {UNSERVED:g} s: "
            "is Trialkeeper installed, and does it serve this namespace?"
        )


def _document(trial: Trial, savers: set[int]) -> dict[str, Any]:
    """What the judgement looks at."""
    status = trial.status
    return {
        "phase": status.phase,
        "message": status.message,
        "parameters": trial.spec.parameters,
        "metrics": {name: metric.to_object() for name, metric in status.metrics.items()},
        "iterations": status.iteration,
        "checkpoint": status.checkpoint.key if status.checkpoint else None,
        "attempts": [
            {"number": a.attempt, "exitCode": a.exit_code, "fromIteration": a.from_iteration} for a in status.history
        ],
        "lostWork": {"iterations": status.lost_work.iterations},
        "log": f"kubectl logs {names.pod_name(trial.name, max(status.attempt, 1))}, with --keep",
        "savers": savers,
    }


def _rows(of: Sequence[tuple[Experiment, Document]], metric: str, say: Say) -> tuple[dict[int, Any], dict[int, Any]]:
    """The visible histories from the store, or the last values alone if the store cannot be read from here."""
    from trialkeeper import open_results

    found: list[dict[int, Any]] = []
    try:
        for made, _ in of:
            with open_results(f"exp/{made.namespace}/{made.name}") as results:
                found.append({row["training_iteration"]: row for row in results.trials[0].rows()})
    except (ImportError, OSError, ValueError, LookupError) as error:
        say(f"note: the last values only are compared, for results cannot be read from here: {error}")
        found = [{d["iterations"]: {n: m["last"] for n, m in d["metrics"].items()}} for _, d in of]
    return found[0], found[1]
