"""Real processes under torchrun, two pods of two, with collectives in every step: asked to go in any order, they all
leave at one step, with one checkpoint.

`TRIALKEEPER_SEEDS=200` tells more stories, `TRIALKEEPER_SEED=17` one of them again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trainers import Place, Ranks
from trialkeeper import manifest
from trialkeeper.contract import Message

SEEDS = int(os.environ.get("TRIALKEEPER_SEEDS", "8"))
ASKED = [int(os.environ["TRIALKEEPER_SEED"])] if "TRIALKEEPER_SEED" in os.environ else [*range(SEEDS)]
GRACE = 15.0  # seconds
STARTING = 150.0  # seconds at most, on a busy machine
PODS, EACH = 2, 2

TRAINER = """
import os, random, sys, time
from pathlib import Path
import torch, torch.distributed as dist
import trialkeeper

how = os.environ["HOW"]
checkpoint = trialkeeper.get_checkpoint()
context = trialkeeper.get_context()
dist.init_process_group("gloo")
rank, draw = dist.get_rank(), random.Random(int(os.environ["SEED"]) * 100 + dist.get_rank())
state = torch.load(checkpoint.path / "state.pt") if checkpoint else {"step": 0, "sum": torch.zeros(4)}
step, total = state["step"], state["sum"]
log = open(f"steps-{context.attempt}-{rank}", "w", buffering=1)

def save(folder):
    dist.barrier()  # as FSDP's state needs all ranks, too
    torch.save({"step": step, "sum": total}, folder / "state.pt")

last = int(os.environ["LAST"])
while step < last:
    step += 1
    time.sleep(draw.random() * 0.02)
    part = torch.full((4,), float(step * (rank + 1)))
    dist.all_reduce(part)
    total += part
    print(step, file=log)
    if how == "report":
        trialkeeper.report({"loss": 1.0 / step}, checkpoint=save)
        continue
    if how == "preemption" and trialkeeper.preemption() is not None:
        print("preempted", file=log)
    if trialkeeper.checkpoint_due(step):
        with trialkeeper.checkpoint_dir({"loss": 1.0 / step}, step=step) as folder:
            save(folder)
    elif step % 100 == 0:
        trialkeeper.report({"loss": 1.0 / step}, step=step)
print("total", total.tolist(), file=log)
"""


SHARDED = """
import sys
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
import trialkeeper
from trialkeeper.integrations import torch as state

checkpoint = trialkeeper.get_checkpoint()
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 1))
fully_shard(model)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
done = 0
if checkpoint:
    done = state.load_sharded(checkpoint.path, model=model, optimizer=optimizer)["step"]

def save(folder):
    state.save_sharded(folder, model=model, optimizer=optimizer, step=step)

for step in range(done + 1, done + 6):
    loss = model(torch.ones(4, 8)).square().mean()  # the same on every rank, so that their number does not matter
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    trialkeeper.report({"loss": loss.item()}, checkpoint=save, resharding=True)
if dist.get_rank() == 0:
    print("began after", done, flush=True)
dist.destroy_process_group()
"""


@dataclass
class Trial:
    """A trial whose pods each run a torchrun."""

    root: Path
    how: str = "report"
    last: int = 100_000
    seed: int = 0
    script: str = TRAINER
    pods: int = PODS
    ranks: Ranks = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(exist_ok=True)
        place = Place(self.root, settings={"objectives": [{"metric": "loss"}], "checkpoint": {"intervalSeconds": 2}})
        self.ranks = Ranks(place, (EACH,) * self.pods)
        (self.root / "train.py").write_text(self.script)

    @contextmanager
    def running(self, attempt: int) -> Iterator[list[subprocess.Popen[bytes]]]:
        """The two launchers; all processes are gone afterwards."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={self.pods}", f"--nproc-per-node={EACH}"]
        launchers = []
        for pod in range(self.pods):
            env = self.ranks.env(attempt, pod * EACH) | {
                "HOW": self.how,
                "SEED": str(self.seed),
                "LAST": str(self.last),
                "TRIALKEEPER_GRACE_SECONDS": str(GRACE),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path if p),
            }
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
                del env[name]
            command = [*launch, f"--node-rank={pod}", "--master-addr=127.0.0.1", f"--master-port={port}", "train.py"]
            with (self.root / f"out-{attempt}-{pod}").open("wb") as out:
                launchers.append(
                    subprocess.Popen(
                        command, cwd=self.root, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
                    )
                )
        try:
            yield launchers
        finally:
            for launcher in launchers:
                for process in [*descendants(launcher.pid), launcher.pid]:
                    try:
                        os.kill(process, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                launcher.wait()

    def steps(self, attempt: int, rank: int) -> list[str]:
        file = self.root / f"steps-{attempt}-{rank}"
        return file.read_text().splitlines() if file.exists() else []

    def words(self, attempt: int) -> str:
        """What all processes have printed."""
        return "".join((self.root / f"out-{attempt}-{pod}").read_text() for pod in range(self.pods))

    def end(self, attempt: int) -> Message | None:
        log = Path(self.ranks.env(attempt, 0)["TRIALKEEPER_TERMINATION_LOG"])
        return Message.decode(log.read_text()) if log.exists() else None

    def await_steps(self, attempt: int, count: int, launchers: list[subprocess.Popen[bytes]]) -> None:
        end = time.monotonic() + STARTING
        while not all(len(self.steps(attempt, rank)) >= count for rank in range(PODS * EACH)):
            assert time.monotonic() < end, self.words(attempt)
            assert all(launcher.poll() is None for launcher in launchers), self.words(attempt)
            time.sleep(0.05)

    def saved(self) -> dict[str, object]:
        """The newest manifest."""
        place = self.ranks.place
        return manifest.decode((place.store / "manifests" / f"{place.manifests()[-1]}.json").read_bytes())


def children(process: int) -> list[int]:
    """The direct children of a process, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(stat.parent.name))
    return sorted(found)


def descendants(process: int) -> list[int]:
    below = children(process)
    return [*below, *(d for child in below for d in descendants(child))]


def workers(launcher: subprocess.Popen[bytes]) -> list[int]:
    """A launcher's ranks, by their variable."""
    found = {}
    for child in children(launcher.pid):
        try:
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [v.partition(b"=")[2] for v in variables if v.startswith(b"RANK=")]
        if ranks:
            found[int(ranks[0])] = child
    return [found[rank] for rank in sorted(found)]


def asked(draw: random.Random, launchers: list[subprocess.Popen[bytes]]) -> list[tuple[float, int]]:
    """(seconds, process) of every SIGTERM: to the pods, as a drain of two nodes does, or to single ranks."""
    ranks = [process for launcher in launchers for process in workers(launcher)]
    assert len(ranks) == PODS * EACH
    if draw.random() < 0.5:
        targets = [launcher.pid for launcher in launchers]
    else:
        targets = draw.sample(ranks, draw.randint(1, len(ranks)))
    draw.shuffle(targets)
    return sorted((draw.choice([0.0, draw.uniform(0, 2)]), target) for target in targets)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", ASKED)
def test_all_ranks_leave_at_one_step_whoever_is_asked_first(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    trial = Trial(tmp_path, how=draw.choice(["report", "due", "preemption"]), seed=seed)
    with trial.running(1) as launchers:
        trial.await_steps(1, draw.randint(1, 60), launchers)
        start = time.monotonic()
        for at, target in asked(draw, launchers):
            time.sleep(max(0.0, start + at - time.monotonic()))
            try:
                os.kill(target, signal.SIGTERM)
            except ProcessLookupError:
                pass  # all are gone by now
        for launcher in launchers:
            launcher.wait(timeout=start + GRACE + 10 - time.monotonic())
    last = {trial.steps(1, rank)[-1] for rank in range(PODS * EACH)}
    assert len(last) == 1, (last, trial.words(1))
    said = trial.end(1)
    assert said is not None
    assert (said.end, said.attempt) == ("preempted", 1), trial.words(1)
    saved = trial.saved()
    assert said.checkpoint is not None
    assert said.checkpoint.iteration == saved["iteration"] == said.iteration, trial.words(1)
    paths = {entry["path"] for entry in saved["files"]}  # type: ignore[attr-defined]
    assert paths == {f"rank-{rank:05d}/state.pt" for rank in range(PODS * EACH)}


@pytest.mark.timeout(600)
def test_a_trial_that_is_asked_to_go_ends_as_one_that_nobody_asked(tmp_path: Path) -> None:
    calm, hit = Trial(tmp_path / "calm", how="due", last=150), Trial(tmp_path / "hit", how="due", last=150)
    with calm.running(1) as launchers:
        assert [launcher.wait(timeout=STARTING) for launcher in launchers] == [0, 0], calm.words(1)
    with hit.running(1) as launchers:
        hit.await_steps(1, 40, launchers)
        os.kill(launchers[1].pid, signal.SIGTERM)
        for launcher in launchers:
            launcher.wait(timeout=GRACE + 15)
    with hit.running(2) as launchers:
        assert [launcher.wait(timeout=STARTING) for launcher in launchers] == [0, 0], hit.words(2)
    for rank in range(PODS * EACH):
        assert hit.steps(2, rank)[-1] == calm.steps(1, rank)[-1] != ""
    assert int(hit.steps(2, 0)[0]) > 40
    results = hit.ranks.place.rows(2)
    assert [row["attempt"] for row in results] == [2] * len(results)
    assert json.loads((hit.ranks.place.store / "attempts" / "000002.json").read_text())["base"]


@pytest.mark.timeout(600)
def test_a_sharded_state_goes_on_in_another_number_of_processes(tmp_path: Path) -> None:
    losses = []
    for attempt, pods in enumerate((2, 1, 2), 1):
        trial = Trial(tmp_path, script=SHARDED, pods=pods)
        trial.ranks.place.settings["checkpoint"] = {"frequency": 5}
        with trial.running(attempt) as launchers:
            codes = [launcher.wait(timeout=STARTING) for launcher in launchers]
        assert codes == [0] * pods, trial.words(attempt)
        assert f"began after {5 * (attempt - 1)}" in trial.words(attempt)
        losses += [row["loss"] for row in trial.ranks.place.rows(attempt)]
    whole = Trial(tmp_path / "whole", script=SHARDED.replace("done + 6", "done + 16"), pods=1)
    with whole.running(1) as launchers:
        assert [launcher.wait(timeout=STARTING) for launcher in launchers] == [0], whole.words(1)
    assert losses == pytest.approx([row["loss"] for row in whole.ranks.place.rows(1)], rel=1e-4)
