"""The drill: one trial in peace and once more with kills, and what the difference says about the trainer."""

from __future__ import annotations

import copy
import json
import math
import random
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trialkeeper import contract
from trialkeeper_operator.local.kubelet import How
from trialkeeper_operator.local.runner import Request, execute

Document = Mapping[str, Any]
LEAST = 3  # iterations, below which there is nothing to kill between
LIMIT = 12  # iterations that are enough, or three for each kill if that is more
TOLERANCE = 1e-6  # relative, between two runs that are to be the same


class DrillInterrupted(RuntimeError):
    """Raised when somebody ends the drill before it has a verdict."""

    def __init__(self) -> None:
        super().__init__("the drill was interrupted and says nothing about your trainer")


@dataclass(frozen=True)
class Verdict:
    """Whether the trainer resumes, and the sentence that says so or why not."""

    resumes: bool
    sentence: str


def experiment(raw: Document, kills: int) -> dict[str, Any]:
    """The experiment reduced to one trial that saves every iteration and ends soon."""
    found: dict[str, Any] = copy.deepcopy(dict(raw))
    spec = found["spec"]
    limit = max(LIMIT, 3 * kills)
    stop = spec.get("stop") or {}
    stop["maxIterations"] = min(stop.get("maxIterations") or limit, limit)
    if spec.get("enqueue"):
        spec["enqueue"] = spec["enqueue"][:1]
    spec.pop("suspend", None)
    spec |= {
        "maxTrials": 1,
        "parallelism": 1,
        "stop": stop,
        "checkpoint": {"frequency": 1},
        "failurePolicy": {"maxFailures": 0, "maxWithoutProgress": 100, "backoffSeconds": 0},
    }
    return found


def holding(reduced: Document, places: list[tuple[int, How]]) -> dict[str, Any]:
    """The experiment whose trainer waits at each place until it is hit, however fast it is otherwise."""
    found: dict[str, Any] = copy.deepcopy(dict(reduced))
    template, name = found["spec"]["template"]["spec"], found["spec"].get("trainerContainer")
    container = next(c for c in template["containers"] if name in (None, c["name"]))
    value = ",".join(str(iteration) for iteration, _ in places)
    container["env"] = [*(container.get("env") or []), {"name": contract.ENV_HOLD, "value": value}]
    return found


def plan(iterations: int, kills: int, seed: int) -> list[tuple[int, How]]:
    """(iteration, how) of each kill, spread over a run of so many iterations; half have notice.

    The first comes after the first checkpoint: before it there is nothing to resume from.
    """
    rng = random.Random(f"{seed}/drill")
    places = sorted(rng.sample(range(2, iterations), min(kills, iterations - 2)))
    hows: list[How] = ["SIGKILL", "SIGTERM"]
    return [(place, hows[number % 2]) for number, place in enumerate(places)]


def curve(prefix: Path) -> dict[int, dict[str, Any]]:
    """The visible history of a trial: the newest attempt's row of each iteration."""
    rows: dict[int, dict[str, Any]] = {}
    for file in sorted((prefix / "results").glob("*.jsonl")):
        for line in file.read_bytes().split(b"\n")[:-1]:
            try:
                row = json.loads(line)
                rows[row["training_iteration"]] = row
            except (ValueError, KeyError, TypeError):
                continue
    return rows


def saved(prefix: Path) -> set[int]:
    """The attempts that have left a checkpoint."""
    return {int(path.name[1:7]) for path in prefix.glob("manifests/*.json")}


def _equal(a: Any, b: Any) -> bool:
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12) if numbers else a == b


def in_peace(trial: Document, metric: str) -> Verdict | None:
    """What the undisturbed run already says against the trainer."""
    if trial["phase"] != "Succeeded":
        return Verdict(False, f"your trainer does not run to its end here: {trial['message']} (output: {trial['log']})")
    if trial["iterations"] == 0:
        return Verdict(False, "your trainer never calls trialkeeper.report(), so nothing of it can be kept")
    if metric not in trial["metrics"]:
        known = ", ".join(sorted(trial["metrics"])[:5]) or "none that is a finite number"
        return Verdict(False, f"your trainer never reports the objective {metric}: its metrics are {known}")
    if trial["checkpoint"] is None:
        return Verdict(
            False, "your trainer reports without a checkpoint: pass report(..., checkpoint=save) so that it can resume"
        )
    if trial["iterations"] < LEAST:
        said = f"your trainer reports only {trial['iterations']} times: report every epoch, or every n steps"
        return Verdict(False, f"{said}, so that there is something to resume between")
    return None


def unheard(attempts: Sequence[Document], places: Sequence[tuple[int, How]]) -> str:
    """The sentence about a trainer that was still there when the grace after SIGTERM was over; empty if it was not."""
    if any(a["exitCode"] == 137 for a, (_, how) in zip(attempts, places, strict=False) if how == "SIGTERM"):
        return (
            "SIGTERM did not end your trainer before its grace was over, so it saved nothing on notice: "
            "start it without a shell or a pipe around it, and report more often than the grace is long"
        )
    return ""


def judge(
    killed: Document, metric: str, rows: tuple[dict[int, Any], dict[int, Any]], savers: Collection[int], kills: int
) -> Verdict:
    """What the disturbed run says beside the peaceful one.

    `rows` are their visible histories, the peaceful one's first, or what is known of them; `savers` the attempts that
    have left a checkpoint.
    """
    attempts, resumed = killed["attempts"], killed["attempts"][1:]
    if not resumed:
        return Verdict(False, "your trainer ended before a kill could reach it: give the drill a longer one")
    if any(a["fromIteration"] == 0 and any(number < a["number"] for number in savers) for a in resumed):
        return Verdict(
            False,
            "your trainer starts over: it does not call trialkeeper.get_checkpoint() before its first report()",
        )
    if killed["phase"] != "Succeeded":
        return Verdict(False, f"your trainer fails when it resumes: {killed['message']} (output: {killed['log']})")
    expected, found = rows
    both = [i for i in sorted(expected) if metric in expected[i] and metric in found.get(i, {})]
    first = next((i for i in both if not _equal(found[i][metric], expected[i][metric])), 0)
    if (
        first
        and first == (resumed[0]["fromIteration"] or 0) + 1
        and _equal(found[first][metric], expected.get(1, {}).get(metric))
    ):
        return Verdict(
            False,
            "your trainer gets its checkpoint and starts over all the same: load it, and go on after its iteration",
        )
    if (came := max(found, default=0)) != (to := max(expected, default=0)):
        return Verdict(
            False,
            f"your trainer resumes, but comes to {came} iterations instead of {to}: "
            "go on after the checkpoint's iteration instead of counting anew",
        )
    again = killed["lostWork"]["iterations"]
    said = f"your trainer resumes: {kills} kills, {len(attempts)} attempts, {again} iterations run again"
    if (missed := kills - len(resumed)) > 0:
        said += f" ({missed} of the kills came too late: that attempt had ended)"
    if not first:
        return Verdict(True, f"{said}, and its results are those of the undisturbed run")
    numbers = f"{found[first][metric]:.6g}, undisturbed {expected[first][metric]:.6g}"
    hint = "what is not in the checkpoint: optimiser, random numbers, order of the data?"
    return Verdict(True, f"{said}; but not exactly: {metric} at iteration {first} was {numbers} ({hint})")


async def carry_out(raw: Document, base: Path, kills: int, seed: int, say: Callable[[str], None]) -> Verdict:
    """Run the drill in a temporary folder.

    :raises DrillInterrupted: if somebody ends it before.
    """
    metric = raw["spec"]["objectives"][0]["metric"]
    reduced = experiment(raw, kills)
    folder = Path(tempfile.mkdtemp(prefix="trialkeeper-drill-"))
    say(f"drill: one trial in peace, then with {kills} kills; everything is in {folder}")
    quiet, _ = await _run(Request(reduced, base, folder / "peace"))
    verdict = in_peace(quiet, metric)
    if verdict is not None:
        return verdict
    say(f"parameters: {', '.join(f'{name}={value}' for name, value in quiet['parameters'].items())}")
    say(f"in peace: {quiet['iterations']} iterations, {metric} {quiet['metrics'][metric]['last']:.6g}")
    places = plan(quiet["iterations"], kills, seed)
    request = Request(holding(reduced, places), base, folder / "kills", output="lines", kills={0: places})
    disturbed, hits = await _run(request)
    if deaf := unheard(disturbed["attempts"], places):
        say(f"note: {deaf}")
    rows = curve(Path(quiet["store"])), curve(Path(disturbed["store"]))
    return judge(disturbed, metric, rows, saved(Path(disturbed["store"])), hits)


async def _run(request: Request) -> tuple[Document, int]:
    """The one trial of a request, and how many kills it has had."""
    done = await execute(request)
    if done.interrupted:
        raise DrillInterrupted
    return done.document()["trials"][0], done.preempter.done
