"""One experiment on one machine: the operator, the process kubelet, and whoever watches, over one Memory.

The journal in the run's folder is the only state. Whatever ends this process, the same call goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trialkeeper.contract import Message
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.cluster.admission import admission
from trialkeeper_operator.cluster.journal import Journal, JournalGone, attach
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.decide import ledger
from trialkeeper_operator.decide.experiment import over
from trialkeeper_operator.local import narration, summary
from trialkeeper_operator.local.definition import NAMESPACE, ensure
from trialkeeper_operator.local.donors import bring
from trialkeeper_operator.local.gpus import Gpus
from trialkeeper_operator.local.kubelet import PREEMPTED, How, Kubelet
from trialkeeper_operator.local.place import Place, lock
from trialkeeper_operator.local.preemption import Preempter, draw, expected_iterations
from trialkeeper_operator.local.screen import Lines, Screen, open_screen
from trialkeeper_operator.reconcile.ask import limit
from trialkeeper_operator.reconcile.loop import Operator

STATUS_INTERVAL = 1.0  # seconds between two journal entries of a trial's live values
GUARD_INTERVAL = 1.0  # seconds between two looks whether the journal is still there
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a person, a machine, a terminal that is closed


class Diary(logging.FileHandler):
    """The operator's warnings: into a file, which is there only if there are any, and the first one to people."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.tell: Callable[[str], None] | None = None
        self._log = logging.getLogger("trialkeeper_operator")
        self._log.addHandler(self)
        self._propagated, self._log.propagate = self._log.propagate, False

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None and isinstance(record.exc_info[1], JournalGone):
            return  # the run ends with it
        with contextlib.suppress(OSError):  # its folder may be gone
            super().emit(record)
        if self.tell is not None:
            self.tell(f"trialkeeper: {record.getMessage()} (this and what follows is in {self.baseFilename})")
            self.tell = None

    def close(self) -> None:
        self._log.removeHandler(self)
        self._log.propagate = self._propagated
        super().close()


@dataclass(frozen=True)
class Request:
    """What is to be run. `raw` is the checked Experiment, `base` the folder of its file, `run` that of the run."""

    raw: Mapping[str, Any]
    base: Path
    run: Path
    output: str = "quiet"
    preempt: int = 0
    kills: Mapping[int, list[tuple[int, How]]] | None = None  # instead of those that `preempt` draws
    gpus: tuple[str, ...] = ()
    fresh: bool = False
    shell: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class Run:
    """One request while it is carried out."""

    def __init__(self, request: Request, experiment: Experiment, memory: Memory, journal: Journal) -> None:
        self.request, self.memory, self.journal = request, memory, journal
        self.operator = Operator(memory, memory, now=time.time, status_interval=STATUS_INTERVAL)
        place = Place(request.base, request.run, request.shell)
        self.kubelet = Kubelet(
            memory,
            place,
            now=time.time,
            flush=journal.flush,
            on_report=self._reported,
            gpus=Gpus(request.gpus),
            replaced=journal.replaced,
        )
        trials, kills = limit(experiment), request.kills
        if kills is None:
            length = expected_iterations(request.raw["spec"])
            kills = draw(trials, request.preempt, experiment.spec.search.seed, length) if request.preempt else {}
        self.preempter = Preempter(kills, trials)
        self.interrupted = False
        self._due: asyncio.Queue[tuple[Trial, int, int, How]] = asyncio.Queue()
        self._trials: dict[str, Trial] = {}
        self._unfinished: set[str] = set()
        self._experiment: Experiment | None = None
        self._screen: Screen = Lines(None)

    def say(self, text: str) -> None:
        """One line for people."""
        self._screen.line(text)

    def look(self) -> tuple[Experiment, list[Trial]] | None:
        """The experiment and its trials as they are now, live values included."""
        if self._experiment is None:
            return None
        trials = [self._live(t) for t in sorted(self._trials.values(), key=lambda t: t.spec.index)]
        return self._experiment, trials

    def _live(self, trial: Trial) -> Trial:
        if trial.status.phase in ledger.FINAL:
            return trial
        report = self.operator.world.reports.get((NAMESPACE, trial.name))
        status = trial.status if report is None else ledger.heard(trial.status, report[0])
        return trial.model_copy(update={"status": status})

    def _reported(self, namespace: str, name: str, message: Message) -> None:
        self.operator.reported(namespace, name, message)
        self._screen.touch()
        trial = self._trials.get(name)
        if trial is None or message.attempt != trial.status.attempt:
            return
        how = self.preempter.due(trial.spec.index, message.attempt, message.iteration)
        if how is not None:
            self._due.put_nowait((trial, message.attempt, message.iteration, how))

    async def _preempt(self) -> None:
        while True:
            trial, attempt, iteration, how = await self._due.get()
            pod = names.pod_name(trial.name, attempt)
            if await self.kubelet.preempt(NAMESPACE, pod, how):
                self.preempter.hit(trial.spec.index)
                self._screen.line(f"{trial.name} attempt {attempt} is hit by {how} at iteration {iteration}")
            else:
                self.preempter.missed(trial.spec.index, attempt)

    async def _guard(self) -> None:
        """Notice that the journal is gone: the operator takes the refusal of a write for one object's trouble."""
        while True:
            await asyncio.sleep(GUARD_INTERVAL)
            self.journal.check()

    async def _watch(self) -> None:
        """Follow every change, tell it, and return when the experiment is over."""
        async for event in self.memory.events():
            if event.kind == names.TRIAL and event.type != "DELETED":
                self._saw_trial(Trial.from_object(event.object))
            elif event.kind == names.EXPERIMENT:
                new = Experiment.from_object(event.object)
                for line in narration.of_experiment(self._experiment, new):
                    self._screen.line(line)
                self._experiment = new
            if self._over():
                return

    def _saw_trial(self, new: Trial) -> None:
        old = self._trials.get(new.name)
        self._trials[new.name] = new
        self._screen.touch()
        by_us = [PREEMPTED in entry.message for entry in new.status.history]
        if old is None:  # an earlier runner's, with the kills that it has had from it, or a new one
            self.preempter.remember(new.spec.index, sum(by_us))
        elif new.status.closed > old.status.closed and by_us:
            self.preempter.ended(new.spec.index, by_us=by_us[-1])
        if self._experiment is not None:
            log = str(self.request.run / "logs" / f"{names.pod_name(new.name, max(new.status.closed, 1))}.log")
            for line in narration.of_trial(old, new, self._experiment.spec.objectives[0], log):
                self._screen.line(line)
        if new.status.phase in ledger.FINAL:
            self._unfinished.discard(new.name)
            self.preempter.over(new.spec.index)
        else:
            self._unfinished.add(new.name)

    def _over(self) -> bool:
        experiment = self._experiment
        if experiment is None:
            return False
        current = experiment.status.observed_generation == experiment.generation
        if current and experiment.spec.suspend and experiment.status.phase == names.SUSPENDED:
            return True
        if self._unfinished:
            return False
        return over(experiment.status) and current and experiment.status.finished == len(self._trials)

    async def carry_out(self) -> None:
        """Until the experiment is over, or somebody interrupts.

        :raises JournalGone: if the run's folder was deleted or replaced meanwhile.
        """
        loop = asyncio.get_running_loop()
        interrupt = asyncio.Event()

        def interrupted() -> None:
            if interrupt.is_set():
                self.kubelet.kill()
            interrupt.set()

        for number in STOPPING:
            loop.add_signal_handler(number, interrupted)
        self._screen = open_screen(self.request.output, self.look)
        try:
            await self._until_over(interrupt)
        finally:
            self._screen.close()
            await self.kubelet.sweep()
            for number in STOPPING:
                loop.remove_signal_handler(number)
            self.journal.flush()

    async def _until_over(self, interrupt: asyncio.Event) -> None:
        watch = asyncio.ensure_future(self._watch())
        stop = asyncio.ensure_future(interrupt.wait())
        operator = asyncio.ensure_future(self.operator.run())
        kubelet = asyncio.ensure_future(self.kubelet.run())
        preempt = asyncio.ensure_future(self._preempt())
        guard = asyncio.ensure_future(self._guard())
        everything = {watch, stop, operator, kubelet, preempt, guard}
        try:
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            if stop.done() and not watch.done():
                self.interrupted = True
                if grace := self.kubelet.grace:
                    self.say(f"stopping: trainers get SIGTERM and up to {grace:g} s to save (again: kill them now)")
                # The operator first: what ends from now on is judged by whoever runs this again.
                operator.cancel()
                await asyncio.wait({operator})
                await self.kubelet.stop()
        finally:
            for task in everything:
                task.cancel()
            await asyncio.wait(everything)
        self.journal.check()  # first, since whatever else went wrong followed from it
        for task in everything:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise _first(error)

    def document(self) -> dict[str, Any]:
        """What it came to."""
        found = self.look()
        assert found is not None
        kills = (self.preempter.done, self.request.preempt)
        return summary.document(*found, self.request.run, kills)

    def text(self) -> str:
        """The same for people."""
        found = self.look()
        assert found is not None
        return summary.text(*found, self.document(), Path.cwd())


def _first(error: BaseException) -> BaseException:
    """The error that ended a group of tasks: the others followed from it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def execute(request: Request) -> Run:
    """Carry a request out, from whatever its journal says.

    :raises RunBusy: if another process is at it.
    :raises RunDiffers: if it is another experiment than the one in the journal.
    :raises RestoreRefused: if there is nothing to go on from where it says.
    :raises JournalGone: if the run's folder was deleted or replaced meanwhile.
    """
    held = lock(request.run)
    diary = Diary(request.run / "operator.log")
    try:
        path = request.run / "journal.jsonl"
        if request.fresh and path.exists():
            path.rename(path.with_name(f"journal-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl"))
        memory, journal = attach(path, now=time.time, admit=admission())
        try:
            await bring(memory, request.raw, request.run)
            experiment = Experiment.from_object(await ensure(memory, request.raw))
            run = Run(request, experiment, memory, journal)
            diary.tell = run.say
            await run.carry_out()
            return run
        finally:
            journal.close()
    finally:
        diary.close()
        os.close(held)
