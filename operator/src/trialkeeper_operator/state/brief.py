"""What a snapshot leaves out of a trial: digits that nobody will miss, and what follows from the rest.

Digits that are random do not compress, so they decide how many trials fit into a ConfigMap. Parameters are exact;
seconds keep a tenth, metrics six digits. A seed and a checkpoint's key that are the usual ones, and a min or max that
is the last value, are put back on reading. Times are told from the time before: a trial's start from that of the one
above it, its checkpoint from its start, its end from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trialkeeper import contract
from trialkeeper_operator.api.times import seconds, stamp
from trialkeeper_operator.api.trial import usual_seed

RESTING, UNTRAINED = "restingSeconds", "untrainedSeconds"  # columns that a Trial does not have
TENTHS = 10  # of a second, in which times are told
_USUAL_SEED, _USUAL_KEY = -1, ""
_OBJECTIVE, _METRIC = 9, 6  # digits; nine tell any two float32 apart, and are what a search is told again

Object = dict[str, Any]


def brief(
    experiment: Mapping[str, Any], specs: Sequence[Object], stati: Sequence[Object]
) -> tuple[list[Object], list[Object]]:
    """Specs and stati of trials, in the order of their indices, without what `whole` puts back."""
    of = experiment["spec"]
    objectives = frozenset(o["metric"] for o in of.get("objectives") or ())
    seed = _seed(of)
    short = [{**s, "seed": _USUAL_SEED} if _has_usual(s, seed) else s for s in specs]
    return short, _timed([_apart(_brief(status, objectives)) for status in stati], _told_from)


def whole(
    experiment: Mapping[str, Any], specs: Sequence[Object], stati: Sequence[Object]
) -> tuple[list[Object], list[Object]]:
    """What `brief` was told, as far as it told it: anything that it would not have written is left as it is."""
    spec = experiment.get("spec")
    seed = _seed(spec if isinstance(spec, Mapping) else {})
    full = [
        {**s, "seed": usual_seed(seed, s["index"])}
        if s.get("seed") == _USUAL_SEED and seed is not None and type(s.get("index")) is int
        else s
        for s in specs
    ]
    return full, [_whole(_together(status)) for status in _timed(stati, _read_from)]


def _seed(spec: Mapping[str, Any]) -> int | None:
    search = spec.get("search")
    found = search.get("seed", 0) if isinstance(search, Mapping) else 0
    return found if type(found) is int else None


def _has_usual(spec: Object, seed: int | None) -> bool:
    return seed is not None and "seed" in spec and spec["seed"] == usual_seed(seed, spec["index"])


def _brief(status: Object, objectives: frozenset[str]) -> Object:
    short = dict(status)
    for field in ("trainedSeconds", "runningSeconds"):
        if field in short:
            short[field] = round(short[field], 1)
    if "lostWork" in short:
        short["lostWork"] = {k: round(v, 1) for k, v in short["lostWork"].items()}
    if "metrics" in short:
        short["metrics"] = {
            name: _rounded(metric, _OBJECTIVE if name in objectives else _METRIC)
            for name, metric in short["metrics"].items()
        }
    checkpoint = short.get("checkpoint")
    if isinstance(checkpoint, Mapping) and checkpoint.get("key") == _usual_key(checkpoint):
        short["checkpoint"] = {**checkpoint, "key": _USUAL_KEY}
    return short


def _whole(status: Object) -> Object:
    full = dict(status)
    if isinstance(metrics := full.get("metrics"), dict):
        full["metrics"] = {name: _extremes(metric) for name, metric in metrics.items()}
    checkpoint = full.get("checkpoint")
    if isinstance(checkpoint, dict) and checkpoint.get("key") == _USUAL_KEY:
        full["checkpoint"] = {**checkpoint, "key": _usual_key(checkpoint) or _USUAL_KEY}
    return full


def _usual_key(checkpoint: Mapping[str, Any]) -> str | None:
    attempt, iteration = checkpoint.get("attempt"), checkpoint.get("iteration")
    if type(attempt) is not int or type(iteration) is not int:
        return None
    return contract.manifest_key(attempt, iteration)


def _rounded(metric: Mapping[str, float], digits: int) -> dict[str, float]:
    values = {k: float(f"{v:.{digits}g}") for k, v in metric.items()}
    last = values.get("last")
    return {k: v for k, v in values.items() if k == "last" or v != last}


def _extremes(metric: Any) -> Any:
    if not isinstance(metric, dict) or "last" not in metric:
        return metric
    return {"min": metric["last"], "max": metric["last"], **metric}


def _apart(status: Object) -> Object:
    """Seconds that are nearly others as what they lack of them: training of running, running of the time gone by."""
    found, elapsed, running = dict(status), _elapsed(status), status.get("runningSeconds")
    if _number(running) and _number(found.get("trainedSeconds")):
        found[UNTRAINED] = round(running - found.pop("trainedSeconds"), 1)
    if elapsed is not None and _number(running):
        found[RESTING] = round(elapsed - found.pop("runningSeconds"), 1)
    return found


def _together(status: Object) -> Object:
    """The other way round."""
    found, elapsed = dict(status), _elapsed(status)
    resting, untrained = found.pop(RESTING, None), found.pop(UNTRAINED, None)
    if elapsed is not None and _number(resting):
        found["runningSeconds"] = round(elapsed - resting, 1)
    if _number(found.get("runningSeconds")) and _number(untrained):
        found["trainedSeconds"] = round(found["runningSeconds"] - untrained, 1)
    return found


def _elapsed(status: Object) -> float | None:
    """Seconds from a trial's start to its end, in whole tenths; None if it has not come to both."""
    try:
        began, ended = (round(seconds(status[field]) * TENTHS) for field in ("startTime", "completionTime"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (ended - began) / TENTHS


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _told_from(before: int, time: Any) -> tuple[int, Any]:
    """A time in tenths, from the one before; what is none stays as it is."""
    if not isinstance(time, str):
        return before, time
    try:
        at = round(seconds(time) * TENTHS)
    except (ValueError, OverflowError):
        return before, time
    return at, at - before


def _read_from(before: int, told: Any) -> tuple[int, Any]:
    if type(told) is not int:
        return before, told
    try:
        return before + told, stamp((before + told) / TENTHS)
    except OverflowError:
        return before, told


def _timed(stati: Sequence[Object], step: Callable[[int, Any], tuple[int, Any]]) -> list[Object]:
    """Stati whose times went through a `step`, each from the one before: (the time in tenths, what takes its place)."""
    made, began = list[Object](), 0
    for status in stati:
        changed = dict(status)
        if "startTime" in status:
            began, changed["startTime"] = step(began, status["startTime"])
        at, checkpoint = began, status.get("checkpoint")
        if isinstance(checkpoint, Mapping) and "time" in checkpoint:
            at, time = step(at, checkpoint["time"])
            changed["checkpoint"] = {**checkpoint, "time": time}
        if "completionTime" in status:
            _, changed["completionTime"] = step(at, status["completionTime"])
        made.append(changed)
    return made
