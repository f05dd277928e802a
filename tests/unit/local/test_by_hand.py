"""What people say by hand to trials in a cluster: which field changes, what is told, and what is refused."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from builders import NOW, experiment, trial
from stage import bare
from trialkeeper import contract
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.cluster.admission import admission
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.local import by_hand, kubectl
from trialkeeper_operator.local.by_hand import Named, Refused, named

Object = dict[str, Any]
KINDS = {"trials.trialkeeper.dev": "Trial", "experiments.trialkeeper.dev": "Experiment"}
COMMANDS = {
    "pause": by_hand.pause_command,
    "resume": by_hand.resume_command,
    "stop": by_hand.stop_command,
    "retry": by_hand.retry_command,
    "fork": by_hand.fork_command,
    "suspend": by_hand.suspend_command,
}


class World:
    """A cluster in memory, with the rules of the models, behind kubectl's words."""

    def __init__(self) -> None:
        self.memory = Memory(now=lambda: NOW, admit=admission())
        self.before: list[Any] = []  # what somebody else does before the next write

    def get(self, kind: str, name: str = "", namespace: str | None = None, *more: str) -> Object:
        found = asyncio.run(self.memory.get(KINDS[kind], namespace or "default", name))
        if found is None:
            raise kubectl.Refusal(f'Error from server (NotFound): {kind} "{name}" not found')
        return found

    def patch(self, kind: str, name: str, namespace: str, change: Object) -> Object:
        if self.before:
            self.before.pop()()
        old = self.get(kind, name, namespace)
        wanted = (change.get("metadata") or {}).get("resourceVersion")
        if wanted not in (None, old["metadata"]["resourceVersion"]):
            raise kubectl.Refusal("Error from server (Conflict): the object has been modified")
        return asyncio.run(self.memory.put({**old, "spec": {**old["spec"], **change["spec"]}}))

    def experiment(self, name: str = "exp", status: Object | None = None, **spec: Any) -> None:
        made = asyncio.run(self.memory.create(bare(experiment(name, **spec))))
        asyncio.run(self.memory.put_status({**made, "status": {"phase": "Running", "trials": 4, **(status or {})}}))

    def trial(self, index: int = 0, saved: int | None = None, name: str = "", **status: Any) -> None:
        of = asyncio.run(self.memory.get("Experiment", "default", "exp"))
        assert of is not None
        name = name or f"exp-{index}"
        body = trial(name, index=index, spec={"experimentUid": of["metadata"]["uid"]})
        body["metadata"]["ownerReferences"][0]["uid"] = of["metadata"]["uid"]
        made = asyncio.run(self.memory.create(bare(body)))
        ref = {"attempt": 1, "iteration": saved, "key": contract.manifest_key(1, saved or 0), "time": stamp(NOW)}
        status |= {"checkpoint": ref} if saved else {}
        asyncio.run(self.memory.put_status({**made, "status": status}))

    def spec(self, kind: str, name: str) -> Object:
        found: Object = self.get(kind, name)["spec"]
        return found

    def says(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(COMMANDS[arguments[0]], list(arguments[1:]))
        return done.exit_code, done.output.strip()


TRIALS, EXPERIMENTS = KINDS


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(kubectl, "get", made.get)
    monkeypatch.setattr(kubectl, "patch", made.patch)
    return made


def test_a_running_trial_is_paused_and_goes_on(world: World) -> None:
    world.experiment()
    world.trial(phase="Running", attempt=1, saved=7)
    code, said = world.says("pause", "exp-0")
    assert (code, world.spec(TRIALS, "exp-0")["desired"]) == (0, "Pause")
    assert said == (
        "exp-0 saves and leaves within its pod's grace. It keeps its place: trialkeeper resume exp-0 lets it go on"
    )
    code, said = world.says("resume", "default/exp-0")
    assert (code, world.spec(TRIALS, "exp-0")["desired"]) == (0, "Run")
    assert said == "exp-0 goes on from its newest checkpoint, at iteration 7"


def test_a_trial_of_a_suspended_experiment_goes_on_with_it(world: World) -> None:
    world.experiment(suspend=True)
    world.trial(phase="Paused", attempt=1, closed=1)
    code, said = world.says("resume", "exp-0")
    assert (code, said) == (0, "exp-0 goes on with its experiment, which is suspended: trialkeeper resume exp/exp")


def test_stop_is_for_good_and_says_how_it_is_not(world: World) -> None:
    world.experiment()
    world.trial(phase="Waiting", attempt=1, closed=1)
    code, said = world.says("stop", "exp-0")
    assert (code, world.spec(TRIALS, "exp-0")["desired"]) == (0, "Stop")
    assert said.startswith("exp-0 does not run now, and will not, and is over.")


def test_an_experiment_is_suspended_and_resumed(world: World) -> None:
    world.experiment()
    code, said = world.says("suspend", "exp")
    assert (code, world.spec(EXPERIMENTS, "exp")["suspend"]) == (0, True)
    assert said.endswith("kubectl wait --for=condition=Suspended exp/exp waits for it")
    code, said = world.says("resume", "exp")
    assert (code, world.spec(EXPERIMENTS, "exp")["suspend"]) == (0, False)
    assert said == "exp goes on: every trial from its newest checkpoint, 2 at a time"


def test_a_failed_trial_gets_another_try_also_if_somebody_writes_at_the_same_time(world: World) -> None:
    world.experiment(status={"conditions": [condition("Succeeded", "False", "NoTrialSucceeded")]})
    world.trial(phase="Failed", attempt=2, closed=2, saved=40)

    def meanwhile() -> None:
        old = world.get(TRIALS, "exp-0")
        asyncio.run(world.memory.put({**old, "spec": {**old["spec"], "retries": 4, "desired": "Pause"}}))

    world.before = [meanwhile]
    code, said = world.says("retry", "exp-0")
    assert (code, said) == (
        0,
        "exp-0 gets another try from its newest checkpoint, at iteration 40, its budgets renewed",
    )
    assert (world.spec(TRIALS, "exp-0")["retries"], world.spec(TRIALS, "exp-0")["desired"]) == (5, "Run")


def condition(type_: str, status: str, reason: str) -> Object:
    return {"type": type_, "status": status, "reason": reason, "lastTransitionTime": stamp(NOW)}


def test_a_fork_is_the_next_entry_at_the_newest_checkpoint(world: World) -> None:
    world.experiment(maxTrials=9)
    world.trial(phase="Running", attempt=1, saved=40)
    code, said = world.says("fork", "exp-0")
    assert code == 0, said
    assert world.spec(EXPERIMENTS, "exp")["enqueue"] == [
        {"base": {"trial": "exp-0", "iteration": 40}, "parameters": {}}
    ]
    assert said.startswith(
        "a new trial of exp begins at iteration 40 of exp-0, as soon as one more may run; exp-0 itself is not touched."
    )
    assert world.spec(EXPERIMENTS, "exp")["maxTrials"] == 9


def test_a_fork_with_another_value_where_there_is_no_room(world: World) -> None:
    world.experiment(maxTrials=4, enqueue=[{"parameters": {"lr": 0.01}}], status={"enqueued": 1})
    world.trial(phase="Succeeded", attempt=1, closed=1, saved=40)
    code, said = world.says("fork", "exp-0@12", "--set", "lr=1e-3", "--name", "again")
    assert code == 0, said
    spec = world.spec(EXPERIMENTS, "exp")
    assert spec["enqueue"] == [
        {"parameters": {"lr": 0.01}},
        {"name": "again", "base": {"trial": "exp-0", "iteration": 12}, "parameters": {"lr": 0.001}},
    ]
    assert spec["maxTrials"] == 5
    assert "maxTrials is 5 now, for there was no room." in said


def test_a_fork_of_what_is_still_to_come_waits(world: World) -> None:
    world.experiment(maxTrials=9)
    world.trial(phase="Running", attempt=1)
    assert "begins where exp-0 is then, once exp-0 has a checkpoint there" in world.says("fork", "exp-0")[1]
    assert "begins at iteration 50 of exp-0, once exp-0 has a checkpoint there" in world.says("fork", "exp-0@50")[1]


OVER = {"phase": "Succeeded", "attempt": 1, "closed": 1, "saved": 9}
REFUSED: list[tuple[Object, Object, tuple[str, ...], str]] = [
    ({}, OVER, ("pause", "exp-0"), "exp-0 is over (Succeeded): there is nothing to pause"),
    ({}, OVER, ("stop", "exp-0"), "exp-0 is over already (Succeeded)"),
    ({}, OVER, ("resume", "exp-0"), "exp-0 is over (Succeeded): trialkeeper retry exp-0 gives it another try"),
    ({}, OVER, ("retry", "exp-0"), "exp-0 is Succeeded: only a trial that is Failed or Stopped is tried again"),
    ({}, {"phase": "Running"}, ("retry", "exp-0"), "exp-0 is Running: only a trial"),
    ({}, {"phase": "Running"}, ("resume", "exp-0"), "exp-0 is not paused: it is Running"),
    ({}, OVER, ("resume", "exp"), "exp is not suspended: it is Running"),
    ({}, OVER, ("pause", "exp-9"), "there is no Trial exp-9 in the namespace of kubectl's context"),
    ({}, OVER, ("pause", "other/exp-0"), "there is no Trial exp-0 in namespace other"),
    ({}, OVER, ("pause", "exp/exp"), "exp is named as an Experiment, and this is for Trials"),
    ({}, OVER, ("suspend", "exp-0"), "there is no Experiment exp-0"),
    ({"suspend": True}, OVER, ("suspend", "exp"), "exp is suspended already: trialkeeper resume exp"),
    ({}, OVER, ("fork", "exp-0@10"), "exp-0 is over, and its newest checkpoint is of iteration 9"),
    ({}, {"phase": "Failed"}, ("fork", "exp-0"), "exp-0 is over, and it has no checkpoint"),
    ({}, OVER, ("fork", "exp-0", "--set", "lr=7"), "parameters.lr: must be between"),
    ({}, OVER, ("fork", "exp-0", "--set", "rate=1"), "parameters.rate: is not a parameter"),
    ({}, OVER, ("fork", "exp-0", "--set", "lr"), "write name=value, for example lr=0.01"),
    ({}, OVER, ("fork", "exp-0@no"), "'exp-0@no' is neither NAME nor NAMESPACE/NAME"),
    ({}, OVER, ("pause", "a/exp-0", "-n", "b"), "a/exp-0 is in namespace a, and -n says b"),
]


@pytest.mark.parametrize(("spec", "status", "command", "words"), REFUSED)
def test_what_makes_no_sense_is_refused_with_what_would(
    spec: Object, status: Object, command: tuple[str, ...], words: str, world: World
) -> None:
    world.experiment(**spec)
    world.trial(**status)
    before = world.spec(TRIALS, "exp-0"), world.spec(EXPERIMENTS, "exp")
    code, said = world.says(*command)
    assert code == 2
    assert said.startswith("trialkeeper: ")
    assert words in said
    assert before == (world.spec(TRIALS, "exp-0"), world.spec(EXPERIMENTS, "exp"))


def test_an_experiment_that_is_over_for_good_says_how_to_go_on(world: World) -> None:
    world.experiment(status={"conditions": [condition("Succeeded", "True", "TargetReached")]})
    world.trial(phase="Stopped", saved=9)
    for command in (("retry", "exp-0"), ("fork", "exp-0")):
        code, said = world.says(*command)
        assert code == 2
        assert "exp is over: a trial has reached the objective's target" in said
        assert "restoreFrom {configMap: exp-snapshot}" in said
    assert world.says("suspend", "exp") == (2, "trialkeeper: exp is over (TargetReached): there is nothing to suspend")


def test_a_name_that_is_both_has_to_be_said_in_full(world: World) -> None:
    world.experiment()
    world.trial(phase="Paused")
    world.experiment("exp-0", suspend=True)
    code, said = world.says("resume", "exp-0")
    assert (code, said) == (2, "trialkeeper: there are an Experiment and a Trial exp-0: write exp/exp-0 or tri/exp-0")
    assert world.says("resume", "exp/exp-0")[0] == 0
    assert world.spec(EXPERIMENTS, "exp-0")["suspend"] is False


@pytest.mark.parametrize(
    ("text", "namespace", "found"),
    [
        ("digits-3", None, Named("", None, "digits-3")),
        ("digits-3@40", "a", Named("", "a", "digits-3", 40)),
        ("a/digits-3", None, Named("", "a", "digits-3")),
        ("tri/digits-3", None, Named("tri", None, "digits-3")),
        ("exp/a/digits", "a", Named("exp", "a", "digits")),
        ("exp", None, Named("", None, "exp")),
    ],
)
def test_how_people_name_things(text: str, namespace: str | None, found: Named) -> None:
    if text == "exp":
        with pytest.raises(Refused):
            named("exp/", namespace)
    assert named(text, namespace) == found


def test_without_kubectl_it_is_said_where_a_run_on_this_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = CliRunner().invoke(by_hand.pause_command, ["exp-0"])
    assert done.exit_code == 2
    assert "there is no kubectl" in done.output
    assert "docs/by-hand.md" in done.output


def test_kubectl_is_asked_for_one_merge_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "kubectl"
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps({{'asked': sys.argv[1:]}}))\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = kubectl.patch("trials.trialkeeper.dev", "exp-0", "ns", {"spec": {"desired": "Pause"}})["asked"]
    assert asked[:5] == ["patch", "trials.trialkeeper.dev", "-o", "json", "--namespace=ns"]
    assert asked[5] == "--type=merge"
    assert json.loads(asked[6].removeprefix("--patch=")) == {"spec": {"desired": "Pause"}}
    assert asked[7:] == ["--", "exp-0"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("runs/mine", "runs/mine is a run on this machine"),
        ("runs/other", "runs/other is no run on this machine"),
        ("./runs/mine", "./runs/mine is a run on this machine"),
    ],
)
def test_a_path_is_no_name_in_a_cluster(
    name: str, words: str, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(tmp_path, monkeypatch)
    code, said = world.says("suspend", name)
    assert code == 2
    assert words in said
    assert "docs/by-hand.md" in said


def ran(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be where there is a run `mine`."""
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "journal.jsonl").touch()
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("name", ["mine", "mine-0"])
def test_a_name_that_only_this_machine_knows_is_told_as_such(
    name: str, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(tmp_path, monkeypatch)
    code, said = world.says("resume", name)
    assert code == 2
    assert "runs/mine is a run on this machine" in said
    assert "this machine" not in world.says("resume", "other")[1]


def test_a_name_that_a_cluster_knows_is_the_clusters(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(tmp_path, monkeypatch)
    world.experiment("mine")
    assert world.says("suspend", "mine")[0] == 0
    assert "this machine" not in world.says("suspend", "mine")[1]


def test_kubectls_log_is_kept_from_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(tmp_path, monkeypatch)
    program = tmp_path / "kubectl"
    log = "E1130 12:11:58.123456    4242 memcache.go:265] couldn't get current server API group list"
    last = "The connection to the server localhost:8080 was refused - did you specify the right host or port?"
    said = "\n".join([log, log, last])
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit({said!r})\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(by_hand.pause_command, ["exp-0"])
    assert (done.exit_code, done.output) == (2, f"trialkeeper: {last}\n")
    done = CliRunner().invoke(by_hand.pause_command, ["mine-0"])
    assert "runs/mine is a run on this machine" in done.output
