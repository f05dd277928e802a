"""The commands `pause`, `resume`, `stop`, `retry`, `fork` and `suspend`: what a person wants of trials in a cluster.

Each changes one field of a spec, through kubectl and with the rights of whoever asks, and says what comes of it. The
operator does the rest; whoever prefers `kubectl edit`, or a file in git, gets the same.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from trialkeeper_operator.api.experiment import Experiment
    from trialkeeper_operator.api.trial import Trial

    Object = dict[str, Any]

BAD_INPUT = 2
ON_A_MACHINE = "a run on a machine is told by its file, and shown by trialkeeper top: docs/by-hand.md"
TRIES = 5  # at a write that somebody else comes before


class Refused(ValueError):
    """Raised when it makes no sense; the message is one sentence that says what would."""


class Missing(Refused):
    """Raised when there is no such object."""


class Named(NamedTuple):
    """What a person has named: kind `tri`, `exp`, or empty if that is not said."""

    kind: str
    namespace: str | None
    name: str
    iteration: int | None = None

    @property
    def again(self) -> str:
        """As one types it in another command."""
        return self.name if self.namespace is None else f"{self.name} -n {self.namespace}"


def named(text: str, namespace: str | None) -> Named:
    """`[tri/|exp/][NAMESPACE/]NAME[@ITERATION]`.

    :raises Refused: if it is none, or a path.
    """
    if text.startswith(("/", ".", "~", "runs/")):
        there = "is a" if (Path(text) / "journal.jsonl").is_file() else "is no"
        raise Refused(f"{text[:200]} {there} run on this machine, and this asks a cluster: {ON_A_MACHINE}")
    whole, at, number = text.partition("@")
    kind, *rest = whole.split("/") if whole.startswith(("tri/", "exp/")) else ("", *whole.split("/"))
    if not 1 <= len(rest) <= 2 or not all(rest) or (at and not (number.isascii() and number.isdigit() and int(number))):
        raise Refused(f"{text[:200]!r} is neither NAME nor NAMESPACE/NAME, with @ITERATION after it for a fork")
    if len(rest) == 2 and namespace not in (None, rest[0]):
        raise Refused(f"{text} is in namespace {rest[0]}, and -n says {namespace}: leave one of the two out")
    return Named(kind, rest[0] if len(rest) == 2 else namespace, rest[-1], int(number) if at else None)


@contextmanager
def told(name: str | None) -> Iterator[None]:
    """Whatever does not work with an object of this name is one sentence and exit code 2."""
    from trialkeeper_operator.api.validate import InvalidObject
    from trialkeeper_operator.local.kubectl import NoKubectl, Refusal

    try:
        yield
    except NoKubectl as none:
        click.echo(f"trialkeeper: {none}. A run on this machine is told by its file: docs/by-hand.md", err=True)
        sys.exit(BAD_INPUT)
    except (Refused, Refusal, InvalidObject) as refusal:
        run = _here(name or "") if isinstance(refusal, (Missing, Refusal)) else None
        hint = f" ({run} is a run on this machine: {ON_A_MACHINE})" if run else ""
        click.echo(f"trialkeeper: {refusal}{hint}", err=True)
        sys.exit(BAD_INPUT)


def _here(name: str) -> Path | None:
    """The run on this machine that has this name, or a trial of this name."""
    last = name.partition("@")[0].rpartition("/")[2]
    runs = (Path("runs") / run for run in (last, re.sub(r"-\d+$", "", last)) if run)
    return next((run for run in runs if (run / "journal.jsonl").is_file()), None)


def trial_of(target: Named) -> Trial | None:
    """The Trial, None if there is none."""
    from trialkeeper_operator.api.trial import Trial
    from trialkeeper_operator.local import kubectl
    from trialkeeper_operator.local.remote import TRIALS

    found = kubectl.find(TRIALS, target.name, target.namespace)
    return Trial.from_object(found) if found else None


def experiment_of(target: Named) -> Experiment | None:
    """The Experiment, None if there is none."""
    from trialkeeper_operator.api.experiment import Experiment
    from trialkeeper_operator.local import kubectl
    from trialkeeper_operator.local.remote import EXPERIMENTS

    found = kubectl.find(EXPERIMENTS, target.name, target.namespace)
    return Experiment.from_object(found) if found else None


def _there(target: Named) -> Trial:
    if target.kind == "exp":
        raise Refused(f"{target.name} is named as an Experiment, and this is for Trials: there is suspend for those")
    found = trial_of(target)
    if found is None:
        raise Missing(f"there is no Trial {_in(target)}: kubectl get tri lists them")
    return found


def _in(target: Named) -> str:
    where = f"namespace {target.namespace}" if target.namespace else "the namespace of kubectl's context"
    return f"{target.name} in {where}"


def _owner(trial: Trial) -> Experiment:
    found = experiment_of(Named("exp", trial.namespace, trial.spec.experiment))
    if found is None or found.uid != trial.spec.experiment_uid:
        raise Refused(f"the Experiment of {trial.name} is gone, and the trial goes with it")
    return found


def _patch(about: Trial | Experiment, spec: Object, *, unchanged: bool = False) -> None:
    """Change fields of a spec; with `unchanged` only if nobody has changed the object since it was read."""
    from trialkeeper_operator.local import kubectl
    from trialkeeper_operator.local.remote import EXPERIMENTS, TRIALS

    kind = TRIALS if about.kind_name == "Trial" else EXPERIMENTS
    meta = {"metadata": {"resourceVersion": about.resource_version}} if unchanged else {}
    kubectl.patch(kind, about.name, about.namespace, {**meta, "spec": spec})


def _again(change: Callable[[], str]) -> str:
    """Try a change that is made from what was read until nobody comes before."""
    from trialkeeper_operator.local.kubectl import Refusal

    for left in reversed(range(TRIES)):
        try:
            return change()
        except Refusal as refusal:
            if not (refusal.conflict and left):
                raise
    raise AssertionError("the last try raises")


# What each command does, and the sentence for it.


def pause(target: Named) -> str:
    """Let a trial save and leave, and not come back."""
    trial = _there(target)
    if over := _over(trial):
        raise Refused(f"{trial.name} is over ({over}): there is nothing to pause")
    _patch(trial, {"desired": "Pause"})
    return f"{trial.name} {_leaves(trial)}. It keeps its place: trialkeeper resume {target.again} lets it go on"


def stop(target: Named) -> str:
    """Let a trial save and leave for good."""
    trial = _there(target)
    if over := _over(trial):
        raise Refused(f"{trial.name} is over already ({over})")
    _patch(trial, {"desired": "Stop"})
    return (
        f"{trial.name} {_leaves(trial)}, and is over. Its results and checkpoints stay; "
        f"trialkeeper retry {target.again} would give it another try"
    )


def resume(target: Named) -> str:
    """Let a trial, or an experiment, go on."""
    trial = None if target.kind == "exp" else trial_of(target)
    experiment = None if target.kind == "tri" else experiment_of(target)
    if trial is not None and experiment is not None:
        raise Refused(
            f"there are an Experiment and a Trial {target.name}: write exp/{target.name} or tri/{target.name}"
        )
    if experiment is not None:
        return _resume_experiment(experiment)
    if trial is None:
        raise Missing(f"there is neither a Trial nor an Experiment {_in(target)}")
    if over := _over(trial):
        raise Refused(f"{trial.name} is over ({over}): trialkeeper retry {target.again} gives it another try")
    suspended = _owner(trial).spec.suspend
    if trial.spec.desired == "Run" and not suspended:
        raise Refused(f"{trial.name} is not paused: it is {trial.status.phase}")
    if trial.spec.desired != "Run":
        _patch(trial, {"desired": "Run"})
    if suspended:
        return (
            f"{trial.name} goes on with its experiment, which is suspended: "
            f"trialkeeper resume exp/{trial.spec.experiment}"
        )
    return f"{trial.name} goes on {_from(trial)}"


def _resume_experiment(experiment: Experiment) -> str:
    if not experiment.spec.suspend:
        raise Refused(f"{experiment.name} is not suspended: it is {experiment.status.phase}")
    _patch(experiment, {"suspend": False})
    return f"{experiment.name} goes on: every trial from its newest checkpoint, {experiment.spec.parallelism} at a time"


def suspend(target: Named) -> str:
    """Let all trials of an experiment save and leave."""
    experiment = None if target.kind == "tri" else experiment_of(target)
    if experiment is None:
        raise Missing(f"there is no Experiment {_in(target)}: kubectl get exp lists them; pause is for one trial")
    if (ended := _ended(experiment)) is not None:
        raise Refused(f"{experiment.name} is over ({ended}): there is nothing to suspend")
    if experiment.spec.suspend:
        raise Refused(f"{experiment.name} is suspended already: trialkeeper resume {target.again} lets it go on")
    _patch(experiment, {"suspend": True})
    return (
        f"{experiment.name} is being suspended: its trainers save and leave within their grace, and no trial runs "
        f"until trialkeeper resume {target.again}. kubectl wait --for=condition=Suspended exp/{experiment.name} "
        "waits for it"
    )


def retry(target: Named) -> str:
    """Give a trial that has failed, or was stopped, another try."""

    def change() -> str:
        trial = _there(target)
        if trial.status.phase not in ("Failed", "Stopped"):
            raise Refused(
                f"{trial.name} is {trial.status.phase}: only a trial that is Failed or Stopped is tried again"
            )
        _goes_on(_owner(trial))
        _patch(trial, {"retries": trial.spec.retries + 1, "desired": "Run"}, unchanged=True)
        return f"{trial.name} gets another try {_from(trial)}, its budgets renewed"

    return _again(change)


def fork(target: Named, parameters: Object, name: str | None) -> str:
    """Append a trial to an experiment that begins at another one's checkpoint."""

    def change() -> str:
        trial = _there(target._replace(iteration=None))
        experiment = _owner(trial)
        _goes_on(experiment)
        iteration, newest = _fork_at(trial, target.iteration)
        entry: Object = {"base": {"trial": trial.name, **({"iteration": iteration} if iteration else {})}}
        entry |= {"name": name} if name else {}
        entry |= {"parameters": parameters} if parameters else {}
        spec = _with_entry(experiment, entry)
        _checked(experiment, spec)
        _patch(experiment, spec, unchanged=True)
        begins = f"at iteration {iteration} of {trial.name}" if iteration else f"where {trial.name} is then"
        waits = "" if newest >= (iteration or 1) else f", once {trial.name} has a checkpoint there"
        raised = f" maxTrials is {spec['maxTrials']} now, for there was no room." if "maxTrials" in spec else ""
        return (
            f"a new trial of {experiment.name} begins {begins}{waits}, as soon as one more may run; {trial.name} "
            f"itself is not touched.{raised} kubectl get tri -l trialkeeper.dev/experiment={experiment.name} shows it"
        )

    return _again(change)


def _fork_at(trial: Trial, wanted: int | None) -> tuple[int | None, int]:
    """At which iteration to fork, None if that is not known yet, and that of the newest checkpoint.

    :raises Refused: if there is nothing there and will not be.
    """
    newest = trial.status.checkpoint.iteration if trial.status.checkpoint else 0
    if _over(trial) and newest < (wanted or 1):
        has = f"its newest checkpoint is of iteration {newest}" if newest else "it has no checkpoint"
        raise Refused(f"{trial.name} is over, and {has}: there is nothing to fork at")
    return wanted or newest or None, newest


def _with_entry(experiment: Experiment, entry: Object) -> Object:
    """The fields of an experiment's spec with one more entry of `enqueue`, and room for it."""
    most, entries = experiment.spec.max_trials, [e.to_object() for e in experiment.spec.enqueue or ()]
    wanted = experiment.status.trials + max(0, len(entries) - experiment.status.enqueued) + 1
    return {"enqueue": [*entries, entry], **({"maxTrials": wanted} if most is not None and wanted > most else {})}


def _checked(experiment: Experiment, spec: Object) -> None:
    """Say here what the operator would only say later.

    :raises InvalidObject: with every problem.
    """
    from trialkeeper_operator.search.check import checked

    old = {"metadata": {"name": experiment.name}, "spec": experiment.spec.to_object()}
    checked({**old, "spec": {**old["spec"], **spec}}, old)


def _over(trial: Trial) -> str:
    from trialkeeper_operator.decide import ledger

    return trial.status.phase if trial.status.phase in ledger.FINAL else ""


def _ended(experiment: Experiment) -> str | None:
    """Why an experiment is over, None while it is not."""
    from trialkeeper_operator.api import names
    from trialkeeper_operator.api.conditions import find

    verdict = find(experiment.status.conditions, names.SUCCEEDED)
    return verdict.reason if verdict is not None and verdict.status != "Unknown" else None


def _goes_on(experiment: Experiment) -> None:
    """:raises Refused: if an experiment runs no trial any more, whatever anybody wants."""
    from trialkeeper_operator.api import names
    from trialkeeper_operator.api.conditions import find

    verdict = find(experiment.status.conditions, names.SUCCEEDED)
    if verdict is not None and verdict.reason in names.STOPPING:
        raise Refused(
            f"{experiment.name} is over: {names.STOPPING[verdict.reason]}. A new Experiment with restoreFrom "
            f"{{configMap: {experiment.name}-snapshot}} goes on from it"
        )


def _leaves(trial: Trial) -> str:
    """What becomes of what runs."""
    if trial.status.attempt > trial.status.closed:
        return "saves and leaves within its pod's grace"
    return "does not run now, and will not"


def _from(trial: Trial) -> str:
    known = trial.status.checkpoint
    return f"from its newest checkpoint, at iteration {known.iteration}" if known else "from the start"


# The commands.

_namespace = click.option("-n", "--namespace", help="The namespace, instead of that of kubectl's context.")


def _command(name: str, what: str, act: Callable[[Named], str], about: str) -> click.Command:
    def carry_out(target: str, namespace: str | None) -> None:
        with told(target):
            click.echo(act(named(target, namespace)))

    return click.command(name, help=about)(_namespace(click.argument("target", metavar=what)(carry_out)))


pause_command = _command("pause", "TRIAL", pause, "Let TRIAL save and leave; it keeps its place until it is resumed.")
resume_command = _command("resume", "TRIAL|EXPERIMENT", resume, "Let what was paused, or suspended, go on.")
stop_command = _command("stop", "TRIAL", stop, "Let TRIAL save and leave for good.")
retry_command = _command("retry", "TRIAL", retry, "Give TRIAL, which has failed or was stopped, another try.")
suspend_command = _command("suspend", "EXPERIMENT", suspend, "Let all trials of EXPERIMENT save and leave.")


@click.command("fork")
@click.argument("target", metavar="TRIAL[@ITERATION]")
@_namespace
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help="Another value of a parameter: --set lr=0.01.")
@click.option("--name", help="A name for the new trial, for people.")
def fork_command(target: str, namespace: str | None, sets: tuple[str, ...], name: str | None) -> None:
    """Begin a new trial at a checkpoint of TRIAL, at its newest one or at ITERATION."""
    with told(target):
        parameters = dict(_parameter(assignment) for assignment in sets)
        click.echo(fork(named(target, namespace), parameters, name))


def _parameter(assignment: str) -> tuple[str, Any]:
    """A parameter and its value, read as kubectl reads YAML.

    :raises Refused: if it is none.
    :raises InvalidObject: if the value is no YAML.
    """
    from trialkeeper_operator.local.documents import documents

    name, equals, text = assignment.partition("=")
    if not (name and equals and text):
        raise Refused(f"--set {assignment[:200]}: write name=value, for example lr=0.01")
    return name, next(documents(text), None)
