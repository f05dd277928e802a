"""What the local runner costs, as ratios taken in one run on whatever machine this is.

    python benchmarks/local.py [--trials 200] [--width 4] [--rounds 3]

1. Many tiny trials: `trialkeeper run` of trials that report twice and exit, against a plain loop that starts
   the same commands with the same store, as many at a time. The rounds alternate; the ratio is of medians.
2. Many reports: microseconds of one `report()` without checkpoint, over 100,000 of them, in a fresh process,
   and against `json.dumps` plus an unbuffered append of the same line, which is the least that a durable
   report can cost.
3. Ray Tune, where it is installed: trials per second of the same tiny trial.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

TRAINER = """
import trialkeeper
p = trialkeeper.get_params(lr=0.1)
trialkeeper.report({"loss": p.lr})
trialkeeper.report({"loss": p.lr / 2})
"""

REPORTS = """
import json, os, sys, time, trialkeeper
n = int(sys.argv[1])
trialkeeper.report({"loss": 1.0, "accuracy": 0.5})
start = time.perf_counter()
for i in range(n):
    trialkeeper.report({"loss": 1.0 / (i + 1), "accuracy": 0.5})
ours = time.perf_counter() - start
file = os.open("limit.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
row = {"training_iteration": 1, "time_this_iter_s": 0.1, "time_total_s": 1.0, "timestamp": time.time(),
       "trial_id": "t", "attempt": 1, "hostname": "h", "loss": 1.0, "accuracy": 0.5}
start = time.perf_counter()
for i in range(n):
    row["training_iteration"] = i
    os.write(file, (json.dumps(row) + "\\n").encode())
limit = time.perf_counter() - start
print(json.dumps({"report_us": ours / n * 1e6, "limit_us": limit / n * 1e6}))
"""

RAY = """
import json, sys, time
from ray import tune
import ray
n, width = int(sys.argv[1]), int(sys.argv[2])
ray.init(num_cpus=width, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
def trainer(config):
    tune.report({"loss": config["lr"]})
    tune.report({"loss": config["lr"] / 2})
start = time.perf_counter()
tune.Tuner(trainer, param_space={"lr": tune.loguniform(1e-5, 1e-1)},
           tune_config=tune.TuneConfig(num_samples=n, max_concurrent_trials=width)).fit()
print(json.dumps({"rate": n / (time.perf_counter() - start)}))
"""


def experiment(trials: int, width: int) -> str:
    container = {"name": "t", "image": "none", "command": ["python", "trainer.py"]}
    return json.dumps(
        {
            "apiVersion": "trialkeeper.dev/v1alpha1",
            "kind": "Experiment",
            "metadata": {"name": "tiny"},
            "spec": {
                "objectives": [{"metric": "loss"}],
                "parameters": [{"name": "lr", "float": {"min": 1e-5, "max": 0.1, "scale": "Log"}}],
                "search": {"algorithm": "Random", "seed": 1},
                "maxTrials": trials,
                "parallelism": width,
                "template": {"spec": {"containers": [container]}},
            },
        }
    )


def ours(folder: Path, trials: int, width: int) -> float:
    """Trials per second of `trialkeeper run`, its own start included."""
    (folder / "tiny.yaml").write_text(experiment(trials, width))
    command = [sys.executable, "-m", "trialkeeper", "run", "tiny.yaml", "--output", "json"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    elapsed = time.perf_counter() - start
    counts = json.loads(done.stdout)["counts"]
    assert counts == {"Succeeded": trials}, counts
    shutil.rmtree(folder / "runs")
    return trials / elapsed


def plain(folder: Path, trials: int, width: int) -> float:
    """Trials per second of a loop that only starts the same commands, with the same store."""
    store = folder / "plain"
    running: deque[subprocess.Popen[bytes]] = deque()
    start = time.perf_counter()
    for index in range(trials):
        if len(running) == width:
            running.popleft().wait()
        scratch = store / f"scratch-{index}"
        scratch.mkdir(parents=True)
        env = {
            **os.environ,
            "TRIALKEEPER_TRIAL": f"tiny-{index}",
            "TRIALKEEPER_EXPERIMENT": "tiny",
            "TRIALKEEPER_NAMESPACE": "default",
            "TRIALKEEPER_INDEX": str(index),
            "TRIALKEEPER_ATTEMPT": "1",
            "TRIALKEEPER_POD_UID": f"pod-{index}",
            "TRIALKEEPER_SEED": "1",
            "TRIALKEEPER_PARAMS": '{"lr": 0.01}',
            "TRIALKEEPER_SETTINGS": '{"objectives": [{"metric": "loss"}]}',
            "TRIALKEEPER_STORE": (store / "store").as_uri(),
            "TRIALKEEPER_PREFIX": f"default/tiny-00000000/{index:05d}",
            "TRIALKEEPER_SCRATCH": str(scratch),
            "TRIALKEEPER_TERMINATION_LOG": str(scratch / "termination"),
            "TRIALKEEPER_REPORT": (scratch / "report.json").as_uri(),
        }
        with (scratch / "log").open("wb") as log:
            command = [sys.executable, "trainer.py"]
            running.append(subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log))
    for process in running:
        assert process.wait() == 0
    elapsed = time.perf_counter() - start
    shutil.rmtree(store)
    return trials / elapsed


def reports(folder: Path, count: int) -> dict[str, float]:
    (folder / "reports.py").write_text(REPORTS)
    command = [sys.executable, "reports.py", str(count)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def ray(folder: Path, trials: int, width: int) -> float | None:
    if importlib.util.find_spec("ray") is None:
        return None
    (folder / "ray_tiny.py").write_text(RAY)
    command = [sys.executable, "ray_tiny.py", str(trials), str(width)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["rate"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reports", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "trainer.py").write_text(TRAINER)
        plain(folder, 8, asked.width)  # the first start of a machine reads everything from disk
        pairs = []
        for number in range(asked.rounds):
            pairs.append((ours(folder, asked.trials, asked.width), plain(folder, asked.trials, asked.width)))
            print(f"round {number + 1}: ours {pairs[-1][0]:.1f}/s, plain loop {pairs[-1][1]:.1f}/s")
        result: dict[str, float | None] = {
            "trials_per_s": statistics.median(a for a, _ in pairs),
            "plain_per_s": statistics.median(b for _, b in pairs),
            "ratio": statistics.median(a / b for a, b in pairs),
            **reports(folder, asked.reports),
            "ray_per_s": ray(folder, min(asked.trials, 20), asked.width),
        }
    if result["ray_per_s"] is None:
        print("ray is not installed here: not compared")
    print(json.dumps({k: v and round(v, 3) for k, v in result.items()}))


if __name__ == "__main__":
    main()
