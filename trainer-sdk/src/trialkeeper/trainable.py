"""The class API, and `main`, which runs a class or a function as a trial: resume, step, report, clean up."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trialkeeper import codec, session
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.context import get_params
from trialkeeper.reporting import get_checkpoint, report

DONE = "done"  # in a result: this step was the last one


class Trainable:
    """A trainer as a class, by Ray Tune's names. Implement `step`, `save_checkpoint` and `load_checkpoint`.

    class Net(trialkeeper.Trainable):
        def setup(self, config): self.w = 0.0
        def step(self): self.w += config["lr"]; return {"loss": (self.w - 3) ** 2}
        def save_checkpoint(self, folder): return {"w": self.w}
        def load_checkpoint(self, state): self.w = state["w"]

    trialkeeper.main(Net)
    """

    config: dict[str, Any]  # the trial's parameters over the defaults that `main` was given
    iteration: int  # steps that are done, those of earlier attempts included

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = {} if config is None else config
        self.iteration = 0

    def setup(self, config: dict[str, Any]) -> None:
        """Build what training needs; called once in each process, before `load_checkpoint`."""

    def step(self) -> Mapping[str, Any]:
        """One iteration: its metrics. `done: True` among them ends the trial, `should_checkpoint: True` saves now."""
        raise NotImplementedError(f"{type(self).__name__} has no step()")

    def save_checkpoint(self, folder: Path) -> Mapping[Any, Any] | None:
        """Write the state's files into the empty `folder`; or write none and return the state as a dictionary.

        A dictionary may hold JSON values, tuples, bytes, and numpy arrays.
        """
        raise NotImplementedError(f"{type(self).__name__} has no save_checkpoint()")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Take up what `save_checkpoint` has saved: its dictionary, or the folder (a Path), to be read only."""
        raise NotImplementedError(f"{type(self).__name__} has no load_checkpoint()")

    def reset_config(self, config: dict[str, Any]) -> bool:
        """Go on with other parameters in this process; True if that was possible. No scheduler calls it yet."""
        return False

    def cleanup(self) -> None:
        """Free what `setup` has taken; called at every end of training that is no kill."""


def main(target: type[Trainable] | Callable[..., Any], **defaults: Any) -> None:
    """Run a `Trainable` class, or a function of no argument or of one, the config, as this process's trial.

    The config has the trial's parameters over `defaults`. A class is resumed from the newest checkpoint, and stepped
    until a result says `done` or the trial is over; its `cleanup` is called at every end. A function resumes by itself,
    with `get_checkpoint`; a dictionary that it returns is reported if it has reported nothing else.

    :raises SystemExit: whatever `report` raises, with its exit code: TrialStopped, TrialPreempted, StaleAttempt.
    :raises TypeError: if `target` is neither, or `step` returns no dictionary.
    """
    if isinstance(target, type):
        if not issubclass(target, Trainable):
            raise TypeError(f"main() takes a function or a subclass of Trainable, and {target.__name__} is neither")
        _train(target, get_params(**defaults))
    elif callable(target):
        config = get_params(**defaults)
        result = target(config) if _takes_config(target) else target()
        if isinstance(result, Mapping) and session.current().thread is None:
            report(result)
    else:
        raise TypeError(f"main() takes a function or a subclass of Trainable, not {type(target).__name__}")


def _takes_config(function: Callable[..., Any]) -> bool:
    from inspect import Parameter, signature

    places = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL)
    try:
        return any(p.kind in places for p in signature(function).parameters.values())
    except ValueError:
        return True  # written in C, and not telling


def _train(cls: type[Trainable], config: dict[str, Any]) -> None:
    checkpoint = get_checkpoint()
    if checkpoint is not None and checkpoint.metrics.get(DONE):
        return  # the kill came between the last save and the end
    trainable = cls(config)
    trainable.config, trainable.iteration = config, 0
    trainable.setup(config)
    clean = False
    try:
        if checkpoint is not None:
            trainable.iteration = checkpoint.iteration
            trainable.load_checkpoint(_state(checkpoint))
        while not _step(trainable):
            pass
        clean = True
    finally:
        _end(trainable, clean)


def _step(trainable: Trainable) -> bool:
    """One step and its report; whether it was the last."""
    result = trainable.step()
    if not isinstance(result, Mapping):
        raise TypeError(f"{type(trainable).__name__}.step() must return a dict of metrics, not {type(result).__name__}")
    trainable.iteration += 1
    report(result, checkpoint=partial(_save, trainable))
    return bool(result.get(DONE))


def _save(trainable: Trainable, folder: Path) -> None:
    """Have a trainable save into a folder.

    :raises TypeError: if what it returns can be no state.
    :raises ValueError: if it does both, or takes the name that is ours.
    """
    name = f"{type(trainable).__name__}.save_checkpoint()"
    returned: Any = trainable.save_checkpoint(folder)
    if isinstance(returned, Mapping):
        if any(folder.iterdir()):
            raise ValueError(f"{name} wrote files and returned a dictionary: the state is one or the other")
        codec.write(returned, folder)
    elif (folder / codec.FILE).exists():
        raise ValueError(f"{name} wrote {codec.FILE}, which is where a returned dictionary goes: call it otherwise")
    elif returned is not None and (not isinstance(returned, (str, os.PathLike)) or Path(returned) != folder):
        raise TypeError(f"{name} returned {str(returned)[:80]!r}: the state is a dictionary, or files in its folder")


def _state(checkpoint: Checkpoint) -> dict[Any, Any] | Path:
    return checkpoint.to_dict() if (checkpoint.path / codec.FILE).is_file() else checkpoint.path


def _end(trainable: Trainable, clean: bool) -> None:
    """Save the last state if that is wanted, and clean up; nothing can be saved afterwards.

    An error of `cleanup` does not replace what ended the training.
    """
    current = session.current()
    save_now, current.before_end = current.before_end, None
    if clean and save_now is not None:
        save_now()
    try:
        trainable.cleanup()
    except Exception as error:
        if clean:
            raise
        session.warn(f"{type(trainable).__name__}.cleanup() failed: {type(error).__name__}: {error}")
