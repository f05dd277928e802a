"""`trialkeeper drill --cluster`: what kubectl is asked, when pods are deleted, what is said, and that nothing stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from builders import NOW, experiment
from trialkeeper import contract
from trialkeeper.results.known import NotThere
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.local import kubectl, remote_drill
from trialkeeper_operator.local.commands import drill

Object = dict[str, Any]
TIME = stamp(NOW)


class World:
    """A cluster in which an Experiment has one trial that comes one iteration further whenever it is looked at."""

    def __init__(self, *, resumes: bool = True, exact: bool = True) -> None:
        self.resumes, self.exact = resumes, exact
        self.objects: dict[str, Object] = {}
        self.statuses: dict[str, Object] = {}
        self.deleted: list[tuple[str, str, tuple[str, ...]]] = []
        self.created: list[tuple[Object, str | None]] = []
        self.on_get: Callable[[str], None] = lambda name: None
        self.conditions: list[Object] = []
        self.phase = "Running"
        self.trials = True

    def create(self, obj: Object, namespace: str | None) -> Object:
        self.created.append((obj, namespace))
        name = obj["metadata"]["name"]
        meta = {"uid": f"uid-{name}", "resourceVersion": "1", "namespace": namespace or "default", "generation": 1}
        made = {**obj, "metadata": {**meta, **obj["metadata"]}}
        self.objects[name] = made
        self.statuses[f"{name}-0"] = self.begun({"history": []}, 1, 0)
        return made

    def begun(self, status: Object, attempt: int, base: int) -> Object:
        pod = {"name": f"x-a{attempt}", "uid": f"u{attempt}", "startTime": TIME, "fromIteration": base}
        return {**status, "phase": "Running", "attempt": attempt, "iteration": base, "pod": pod}

    def get(self, kind: str, name: str = "", namespace: str | None = None, *more: str) -> Object:
        self.on_get(name)
        if kind.startswith("experiments"):
            return {**self.objects[name], "status": {"phase": self.phase, "conditions": self.conditions}}
        if not self.trials:
            raise kubectl.Refusal(f'Error from server (NotFound): {kind} "{name}" not found')
        status = self.statuses[name]
        if status["phase"] == "Running":
            self.step(status)
        meta = {"name": name, "namespace": namespace, "uid": "t", "resourceVersion": "1"}
        spec = {"experiment": name[:-2], "experimentUid": "u", "index": 0, "parameters": {"lr": 0.1}}
        return {"metadata": meta, "spec": spec, "status": status}

    def step(self, status: Object) -> None:
        at, attempt = status["iteration"] + 1, status["attempt"]
        ref = {"attempt": attempt, "iteration": at, "key": contract.manifest_key(attempt, at), "time": TIME}
        status |= {"iteration": at, "checkpoint": ref}
        last = 1 / at + (0 if self.exact or attempt == 1 else 0.01)
        status["metrics"] = {"loss": {"last": last, "min": last, "max": 1.0}}
        if at == 12:
            self.close(status, "Succeeded", "Completed", 0)
            status["phase"] = "Succeeded"

    def close(self, status: Object, class_: str, reason: str, code: int) -> None:
        record = {"attempt": status["attempt"], "class": class_, "reason": reason, "exitCode": code}
        record |= {"startTime": TIME, "endTime": TIME, "fromIteration": status["pod"]["fromIteration"]}
        status |= {"history": [*status["history"], record], "closed": status["attempt"], "pod": None}

    def delete(self, kind: str, name: str, namespace: str | None, *more: str) -> None:
        self.deleted.append((kind, name, more))
        if kind != "pod":
            return
        status = next(s for s in self.statuses.values() if (s.get("pod") or {}).get("name") == name)
        self.close(status, "Preempted", "Deleted", 143)
        base = status["checkpoint"]["iteration"] if self.resumes else 0
        status["lostWork"] = {"iterations": (status.get("lostWork") or {"iterations": 0})["iterations"] + 1}
        status |= self.begun(status, status["attempt"] + 1, base)

    @property
    def left(self) -> set[str]:
        return set(self.objects) - {name for _, name, _ in self.deleted}


def nothing(where: str) -> Any:
    raise NotThere("no right to the store")


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    def say(world: World, *arguments: str, **spec: Any) -> Result:
        for name in ("get", "create", "delete"):
            monkeypatch.setattr(kubectl, name, getattr(world, name))
        monkeypatch.setattr(remote_drill, "PAUSE", 0.0)
        monkeypatch.setattr("trialkeeper.open_results", nothing)
        file = tmp_path / "my.yaml"
        body = experiment(**spec)
        body["metadata"] = {"name": body["metadata"]["name"], "labels": {"kueue.x-k8s.io/queue-name": "gpus"}}
        body.pop("status", None)
        file.write_text(yaml.safe_dump(body))
        return CliRunner().invoke(drill, [str(file), "--cluster", *arguments])

    return say


def test_one_in_peace_and_one_whose_pods_are_deleted(says: Callable[..., Result]) -> None:
    world = World()
    done = says(world, "-n", "team")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].startswith("your trainer resumes: 2 kills, 3 attempts, 2 iterations run again")
    (peace, where), (hit, _) = world.created
    assert where == peace["metadata"]["namespace"] == "team"
    assert "-peace-" in peace["metadata"]["name"]
    assert "-drill-" in hit["metadata"]["name"]
    assert peace["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    assert peace["spec"]["deletionPolicy"] == {"checkpoints": "Delete", "snapshot": "Delete"}
    held = [e["name"] for c in hit["spec"]["template"]["spec"]["containers"] for e in c.get("env", ())]
    assert contract.ENV_HOLD in held
    pods = [(name, more) for kind, name, more in world.deleted if kind == "pod"]
    forced = ("--ignore-not-found", "--force", "--grace-period=0")
    assert pods == [("x-a1", forced), ("x-a2", ("--ignore-not-found",))]
    assert world.left == set()
    assert "the last values only are compared" in done.output


def test_a_trainer_that_forgets_is_found_out_and_its_experiments_are_deleted(says: Callable[..., Result]) -> None:
    world = World(resumes=False)
    done = says(world)
    assert done.exit_code == 1
    assert "your trainer starts over: it does not call trialkeeper.get_checkpoint()" in done.output
    assert world.left == set()


def test_other_last_values_than_those_in_peace_are_told(says: Callable[..., Result]) -> None:
    done = says(World(exact=False))
    assert done.exit_code == 0
    assert "but not exactly: loss at iteration 12" in done.output


def test_whoever_interrupts_it_finds_nothing_left(says: Callable[..., Result]) -> None:
    world = World()

    def interrupt(name: str) -> None:
        if "-drill-" in name:
            raise KeyboardInterrupt

    world.on_get = interrupt
    done = says(world)
    assert done.exit_code == 130
    assert "was interrupted" in done.output
    assert len(world.created) == 2
    assert world.left == set()


def test_more_kills_than_a_status_shows_are_refused_before_anything_is_made(says: Callable[..., Result]) -> None:
    world = World()
    done = says(world, "--kills", "10")
    assert (done.exit_code, world.created) == (2, [])
    assert "--kills is 9 at most" in done.output


def test_what_is_to_be_kept_is_kept(says: Callable[..., Result]) -> None:
    world = World()
    done = says(world, "--keep")
    assert len(world.left) == 2
    assert "takes it away, with its checkpoints" in done.output


def test_an_experiment_that_the_operator_refuses_is_told_of(says: Callable[..., Result]) -> None:
    world = World()
    world.trials = False
    refused = {"type": "Accepted", "status": "False", "reason": "PodRefused", "message": "no such class"}
    world.conditions = [{**refused, "lastTransitionTime": TIME}]
    done = says(world)
    assert done.exit_code == 2
    assert "the operator does not begin the drill (PodRefused): no such class" in done.output
    assert world.left == set()


def test_a_namespace_that_nobody_serves_is_told_of(
    says: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_drill, "UNSERVED", -1.0)
    world = World()
    world.trials, world.phase = False, ""
    done = says(world)
    assert done.exit_code == 2
    assert "is Trialkeeper installed, and does it serve this namespace?" in done.output
    assert world.left == set()


def test_a_cluster_that_refuses_is_one_sentence(says: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    def forbidden(obj: Object, namespace: str | None) -> Object:
        raise kubectl.Refusal("Error from server (Forbidden): experiments is forbidden")

    monkeypatch.setattr(world, "create", forbidden)
    done = says(world)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "is forbidden" in done.output


def test_what_belongs_to_the_experiment_itself_is_left_out() -> None:
    raw = experiment(enqueue=[{"base": {"trial": "exp-3"}}], restoreFrom={"configMap": "exp-snapshot"})
    found = remote_drill.experiment(raw, "exp-drill-0", None)
    assert "enqueue" not in found["spec"]
    assert "restoreFrom" not in found["spec"]
    assert set(found["metadata"]) <= {"name", "namespace", "labels", "annotations"}
    named = remote_drill.derived("a" * 40, "peace", "0123")
    assert (len(named), named[-11:]) == (40, "-peace-0123")
