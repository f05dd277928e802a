"""What an experiment came to: one document for programs, the same as text for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trialkeeper import contract
from trialkeeper_operator.api import names
from trialkeeper_operator.api.conditions import find
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.api.trial import LostWork, Trial
from trialkeeper_operator.decide.objective import value
from trialkeeper_operator.local.narration import not_enqueued

FAILURES = 5  # lines about failed trials at the end


def document(experiment: Experiment, trials: Sequence[Trial], run: Path, kills: tuple[int, int]) -> dict[str, Any]:
    """The document of `--output json`. `kills`: how many of `--preempt` happened, and how many were asked for."""
    status = experiment.status
    verdict = find(status.conditions, names.SUCCEEDED)
    best = status.best.to_object() if status.best else None
    if best is not None:
        trial = next(t for t in trials if t.name == best["trial"])
        best["checkpoint"] = _checkpoint(experiment, trial, run)
    return {
        "experiment": experiment.name,
        "uid": experiment.uid,
        "phase": status.phase,
        "reason": verdict.reason if verdict else "",
        "message": verdict.message if verdict else "",
        "notEnqueued": not_enqueued(experiment),
        "counts": status.counts,
        "best": best,
        "disruptions": status.disruptions,
        "failures": status.failures,
        "lostWork": _lost(status.lost_work),
        "goodput": status.goodput,
        "wallSeconds": _wall(experiment),
        "preempted": kills[0],
        "preemptAsked": kills[1],
        "seed": experiment.spec.search.seed,
        "directory": str(run),
        "trials": [_trial(experiment, trial, run) for trial in trials],
    }


def _wall(experiment: Experiment) -> float | None:
    """Seconds from the experiment's start to its end, pauses between two runners included."""
    start, end = experiment.status.start_time, experiment.status.completion_time
    return round(seconds(end) - seconds(start), 3) if start and end else None


def _lost(lost: LostWork) -> dict[str, Any]:
    return {
        "iterations": lost.iterations,
        "seconds": round(lost.seconds, 3),
        "restartSeconds": round(lost.restart_seconds, 3),
    }


def _prefix(experiment: Experiment, trial: Trial, run: Path) -> Path:
    return run / "store" / contract.prefix(trial.namespace, experiment.name, experiment.uid, trial.spec.index)


def _checkpoint(experiment: Experiment, trial: Trial, run: Path) -> str | None:
    """The folder of the newest checkpoint; the manifest's name tells its attempt and iteration."""
    known = trial.status.checkpoint
    if known is None:
        return None
    inherited = contract.parse_inherited_key(known.key)
    prefix = run / "store" / inherited[0] if inherited else _prefix(experiment, trial, run)
    stem = Path(contract.data_key(known.attempt, known.iteration, "")).name
    found = sorted((prefix / "data").glob(f"{stem}*"))
    return str(found[-1]) if found else None


def _trial(experiment: Experiment, trial: Trial, run: Path) -> dict[str, Any]:
    status = trial.status
    return {
        "name": trial.name,
        "phase": status.phase,
        "reason": status.reason,
        "message": status.message,
        "parameters": trial.spec.parameters,
        "seed": trial.spec.seed,
        "metrics": {name: m.to_object() for name, m in status.metrics.items()},
        "iterations": status.iteration,
        "trainedSeconds": round(status.trained_seconds, 3),
        "lostWork": _lost(status.lost_work),
        "goodput": status.goodput,
        "attempts": [
            {
                "number": a.attempt,
                "class": a.class_,
                "reason": a.reason,
                "message": a.message,
                "exitCode": a.exit_code,
                "fromIteration": a.from_iteration,
                "toIteration": a.to_iteration,
                "lostIterations": a.lost_iterations,
                "lostSeconds": round(a.lost_seconds, 3),
                "restartSeconds": round(a.restart_seconds, 3),
            }
            for a in status.history
        ],
        "checkpoint": _checkpoint(experiment, trial, run),
        "store": str(_prefix(experiment, trial, run)),
        "log": str(run / "logs" / f"{names.pod_name(trial.name, max(status.attempt, 1))}.log"),
    }


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text in aligned columns, the first one as head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def short(number: Any) -> str:
    """A value for a column."""
    return f"{number:.4g}" if isinstance(number, float) else str(number)


HEAD = ("trial", "phase", "attempts", "iteration", "objective", "checkpoint", "disruptions", "lost", "reason")


def row(experiment: Experiment, trial: Trial) -> tuple[str, ...]:
    """One trial's row below HEAD."""
    status, number = trial.status, value(experiment.spec.objectives[0], trial.status)
    return (
        trial.name,
        status.phase,
        str(status.attempt),
        str(status.iteration),
        "-" if number is None else f"{number:.5g}",
        f"at {status.checkpoint.iteration}" if status.checkpoint else "-",
        str(status.disruptions),
        lost(status.lost_work),
        printable(status.reason) if status.phase not in ("Running", "Pending") else "",
    )


def lost(work: LostWork) -> str:
    """Iterations that were run again, and seconds of that and of restarts."""
    spent = work.seconds + work.restart_seconds
    return f"{work.iterations} it, {duration(spent)}" if work.iterations or spent else "-"


def printable(text: str) -> str:
    """Text without what a terminal would act on."""
    return "".join(c if c.isprintable() else "?" for c in text)


def duration(seconds: float) -> str:
    """A time that a person reads."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _near(path: str | None, here: Path) -> str:
    """A path as one types it in the folder `here`."""
    if path is None:
        return "none"
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def text(experiment: Experiment, trials: Sequence[Trial], said: dict[str, Any], here: Path) -> str:
    """The summary that a person reads at the end, in the folder `here`."""
    lines = ["", *table([HEAD, *(row(experiment, trial) for trial in trials)]), ""]
    best, again = said["best"], said["lostWork"]
    if best is not None:
        metric = experiment.spec.objectives[0].metric
        chosen = ", ".join(f"{name}={short(v)}" for name, v in best["parameters"].items())
        lines += [f"best        {best['trial']}: {metric} {best['value']:.5g} with {chosen}"]
        lines += [f"checkpoint  {_near(best['checkpoint'], here)}"]
    survived = said["disruptions"]
    lines += [
        f"disruptions {survived} survived" + _asked(said),
        (
            f"lost work   {again['iterations']} iterations, {again['seconds']:.1f} s of work run again, "
            f"{again['restartSeconds']:.1f} s of restarts"
        ),
        f"goodput     {said['goodput']:.1%} of the time was progress"
        if said["goodput"] is not None
        else "goodput     -",
        *([] if said["wallSeconds"] is None else [f"wall time   {duration(said['wallSeconds'])}"]),
        *_failures(said, here),
        *([f"enqueue     {said['notEnqueued']}"] if said["notEnqueued"] else []),
        f"{said['experiment']}: {said['phase']} ({said['reason']}): {said['message']}",
    ]
    return "\n".join(lines)


def _failures(said: dict[str, Any], here: Path) -> list[str]:
    """What failed, why, and where to read more; the first few."""
    failed = [trial for trial in said["trials"] if trial["phase"] == "Failed"]
    lines = [f"failed      {t['name']}: {t['message']}; output: {_near(t['log'], here)}" for t in failed[:FAILURES]]
    return lines + ([f"            and {len(failed) - FAILURES} more"] if len(failed) > FAILURES else [])


def _asked(said: dict[str, Any]) -> str:
    if not said["preemptAsked"]:
        return ""
    if said["preempted"] < said["preemptAsked"]:
        return f" ({said['preempted']} of {said['preemptAsked']} kills of --preempt found a running trial)"
    return f" ({said['preempted']} kills of --preempt)"
