"""`python -m chaos`: one run of chaos on a cluster of its own, a report, and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chaos import books
from chaos.hands import Hands
from chaos.story import HITS, Act, Done, deaf, draw
from e2e.cluster.installed import SYSTEM, Installed, install
from e2e.cluster.test_main_job import contradictions, longer
from namespaces import own_namespace
from testbed import Cluster, cluster, images
from testbed.shell import CommandFailed

Object = dict[str, Any]
EPOCHS, PARALLEL, HIDDEN = 200, 3, 128
LOOK = 2.0  # seconds between two looks at the trials
CALM = 900.0  # seconds that the trials have to come to their end afterwards
NODE_GRACE = 20  # seconds after which a silent node is Unknown


def experiment() -> Object:
    """Trials of a minute each, of a trainer that has half a core; there is always one more, see `look`."""
    found = longer(trials=PARALLEL + 1, epochs=EPOCHS)
    small = {"name": "hidden", "fixed": HIDDEN}  # each trial is run once more afterwards, which takes time as well
    found["spec"]["parameters"] = [small if p["name"] == "hidden" else p for p in found["spec"]["parameters"]]
    found["spec"] |= {
        "parallelism": PARALLEL,
        "checkpoint": {"frequency": 3},
        # More goes wrong here in a minute than elsewhere in a day: a few attempts in a row may not come to a save.
        "failurePolicy": {"maxFailures": 0, "maxWithoutProgress": 100, "backoffSeconds": 2},
    }
    resources = {"requests": {"cpu": "300m", "memory": "256Mi"}, "limits": {"cpu": "500m"}}
    found["spec"]["template"]["spec"]["containers"][0]["resources"] = resources
    return found


class Run:
    """One run: what was seen so far."""

    def __init__(self, installed: Installed, on: Cluster, namespace: str) -> None:
        self.installed, self.namespace = installed, namespace
        self.hands = Hands(installed, on, namespace)
        self.histories: dict[str, dict[int, Object]] = {}
        self.trials: list[Object] = []
        self.most = PARALLEL + 1
        self.began = time.time()

    def say(self, words: str) -> None:
        now = time.strftime("%H:%M:%S")
        sys.stdout.write(f"{now} {time.time() - self.began:6.1f}  {words}\n")
        sys.stdout.flush()

    def look(self) -> None:
        """Read the trials; an API server that does not answer now is asked again."""
        with contextlib.suppress(CommandFailed):
            self.trials = self.installed.items("trials", self.namespace, "--request-timeout=10s")
            books.by_attempt(self.trials, self.histories)

    def refill(self) -> None:
        """For each trial that is through let one more begin, so that training lasts as long as chaos does."""
        over = sum((t.get("status") or {}).get("phase") in ("Succeeded", "Failed") for t in self.trials)
        if over + PARALLEL + 1 > self.most:
            wanted = f'-p={{"spec":{{"maxTrials":{over + PARALLEL + 1}}}}}'
            with contextlib.suppress(CommandFailed):
                self.installed.kubectl(
                    "patch", "exp/digits", "-n", self.namespace, "--type=merge", wanted, "--request-timeout=10s"
                )
                self.most = over + PARALLEL + 1

    def until(self, when: float, *, blind: bool) -> None:
        """Wait for a moment of the story, and look at the trials meanwhile."""
        while (left := self.began + when - time.time()) > 0:
            if left > LOOK and not blind:
                self.look()
                self.refill()
                self.hands.look()
            time.sleep(min(LOOK, max(0.0, self.began + when - time.time())))

    def tell(self, done: Done) -> None:
        lasted = f", {done.end - done.begin:.1f} s" if not done.hit else ""
        self.say(f"{done.what:17} {done.to or 'nobody'}{lasted}{' (missed)' if done.missed else ''}")

    def chaos(self, story: list[Act]) -> None:
        """Do everything, in the order of time, and undo what was not undone yet."""
        current: Act | None = None
        over: Callable[[], Done] | None = None
        try:
            for act in story:
                if over is not None and current is not None and current.at + current.lasts <= act.at:
                    self.until(current.at + current.lasts, blind=deaf(current))
                    self.tell(over())
                    current, over = None, None
                self.until(act.at, blind=deaf(current))
                if act.what in HITS:
                    self.tell(self.hands.hit(act))
                else:
                    current, over = act, self.hands.begin(act)
                    self.say(f"{act.what:17} for {act.lasts:.0f} s")
            if current is not None:
                self.until(current.at + current.lasts, blind=deaf(current))
        finally:
            if over is not None:
                self.tell(over())

    def calm(self) -> Object:
        """Wait until all trials are through; the experiment."""
        self.installed.await_nodes()
        end = time.time() + CALM
        while True:
            self.look()
            found = self.installed.get("exp/digits", self.namespace)
            conditions = {c["type"]: c for c in found["status"].get("conditions", ())}
            if conditions.get("Succeeded", {}).get("status", "Unknown") != "Unknown" or time.time() > end:
                self.look()
                return found
            time.sleep(LOOK)


def keep(run: Run, folder: Path) -> None:
    """What somebody needs who looks for the reason."""
    (folder / "acts.json").write_text(json.dumps([asdict(done) for done in run.hands.done], indent=1))
    for kind in ("trials", "pods", "exp", "events"):
        with contextlib.suppress(CommandFailed):
            (folder / f"{kind}.json").write_text(run.installed.kubectl("get", kind, "-n", run.namespace, "-o", "json"))
    for pod in run.installed.items("pods", SYSTEM):
        name = pod["metadata"]["name"]
        for more in ((), ("--previous",)):
            with contextlib.suppress(CommandFailed):
                text = run.installed.kubectl("logs", "-n", SYSTEM, name, *more)
                (folder / f"{name}{''.join(more)}.log").write_text(text)


def report(run: Run, found: Object, wrong: list[str]) -> None:
    """What happened, in a few lines."""
    status, done = found["status"], run.hands.done
    hits = [d for d in done if d.hit and not d.missed]
    outages = [d for d in done if not d.hit and not d.missed]
    missed = len(done) - len(hits) - len(outages)
    took, lost = books.recoveries(run.histories), status.get("lostWork") or {}
    middle, longest = (took[len(took) // 2], took[-1]) if took else (0.0, 0.0)
    again = f"{lost.get('iterations', 0)} iterations, {lost.get('seconds', 0):.1f} s run again"
    counts = f"{status.get('disruptions', 0)} disruptions, {status.get('failures', 0)} failures"
    lines = [
        f"acts        {len(hits)} hits, {len(outages)} outages, {missed} that found nobody",
        f"trials      {status.get('counts')}, {counts}",
        f"recoveries  {len(took)}: median {middle:.1f} s, longest {longest:.1f} s from an end to new work",
        f"lost work   {again}, {lost.get('restartSeconds', 0):.1f} s of restarts; goodput {status.get('goodput')}",
        *(f"wrong       {line}" for line in wrong),
    ]
    sys.stdout.write("\n".join(["", *lines, ""]))


def judge(run: Run, found: Object, folder: Path) -> list[str]:
    """Everything that speaks against a lossless run."""
    wrong = [*books.counted(run.trials, run.histories), *books.unexplained(run.histories, run.hands.done)]
    if all(t["status"]["phase"] == "Succeeded" for t in run.trials):
        run.say(f"proof: {len(run.trials)} trials once more, undisturbed")
        for name, lines in contradictions(run.installed, run.trials, found, folder).items():
            wrong += [f"{name}: {line[:500]}" for line in lines]
    return wrong


def main() -> int:
    """Run; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="chaos", description="kill and freeze parts of a real cluster at random")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="what happens and when"
    )
    options = parser.parse_args()
    again = f"make chaos MINUTES={options.minutes:g} SEED={options.seed}"
    sys.stdout.write(f"chaos: {again} does the same again\n")
    sys.stdout.flush()
    folder = Path(tempfile.mkdtemp(prefix=f"trialkeeper-chaos-{options.seed}-"))
    with cluster("chaos", nodes=2, node_grace=NODE_GRACE) as on:
        for target in images.TARGETS:
            on.load(images.project(target))
        installed = install(on)
        with own_namespace(installed, "chaos") as namespace:
            installed.apply(namespace, experiment())
            installed.running(namespace, seconds=180)
            run, story = Run(installed, on, namespace), draw(options.seed, options.minutes * 60)
            run.chaos(story)
            run.say("calm: what runs may come to its end")
            found = run.calm()
            wrong = judge(run, found, folder)
            if wrong:
                keep(run, folder)
            report(run, found, wrong)
    sys.stdout.write(f"FAIL: {again} ({folder})\n" if wrong else f"PASS: {again}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
