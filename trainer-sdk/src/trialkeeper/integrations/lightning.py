"""Lightning: a callback that reports each epoch, saves Lightning's own checkpoints when that is due, and resumes.

    from trialkeeper.integrations.lightning import TrialCallback, ckpt_path

    trainer = Trainer(max_epochs=20, callbacks=[TrialCallback()])
    trainer.fit(model, loader, ckpt_path=ckpt_path())

One epoch is one iteration, with all that was logged by its end, the validation's metrics included. A checkpoint is
Lightning's (weights, optimizers, schedulers, loops, callbacks, the state of loaders that have one) and the state of the
global random numbers, which Lightning leaves out.

Resuming from the end of an epoch is bit-identical. What cannot be restored: the step of a scheduler that watches a
metric (ReduceLROnPlateau) at the end of the very epoch that was saved, since Lightning makes it afterwards; and what an
epoch had still to come, if it is saved in the middle and the loader has no `state_dict` (see `mid_epoch`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    from lightning.pytorch.callbacks import Checkpoint as LastCallback
except ModuleNotFoundError:
    from pytorch_lightning.callbacks import Checkpoint as LastCallback

from trialkeeper import get_checkpoint, preemption, report
from trialkeeper.integrations.torch import ResumableLoader, random_state, set_random_state

FILE = "lightning.ckpt"


def ckpt_path() -> str | None:
    """What `Trainer.fit` takes as `ckpt_path`."""
    checkpoint = get_checkpoint()
    return None if checkpoint is None else str(checkpoint.path / FILE)


class TrialCallback(LastCallback):  # type: ignore[misc, unused-ignore]
    """Reports at the end of each epoch, and after each validation in the middle of one (`val_check_interval`).

    `metrics`: names of those to report, all if None. `mid_epoch`: whether a pod that is to go saves at the end of the
    batch, which is one more iteration; by default only if the loader can go on from there (it has `state_dict` and
    `load_state_dict`: torchdata's StatefulDataLoader, or `ResumableLoader`). Without that, Lightning leaves at the end
    of the batch all the same, and the epoch is run again; with `mid_epoch=True` and another loader, the rest of the
    epoch is filled up with batches of a new shuffle.

    It is called after all other callbacks, so that their state is saved as of this epoch. One process, so far.
    """

    def __init__(self, *, metrics: Collection[str] | None = None, mid_epoch: bool | None = None) -> None:
        super().__init__()
        self.metrics = metrics
        self.mid_epoch = mid_epoch
        self._trainer: Any = None
        self._random: Mapping[str, Any] | None = None
        self._positions: list[dict[str, Any]] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what does not work yet.

        :raises ValueError: if there are several processes.
        """
        if trainer.world_size > 1:
            raise ValueError(f"the Trainer runs in {trainer.world_size} processes, and TrialCallback is for one so far")
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        return {"random": random_state(), "positions": [loader.state_dict() for loader in self._loaders_of_ours()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._random, self._positions = state_dict["random"], state_dict["positions"]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if self._random is not None:
            set_random_state(self._random)  # before the loader draws the order of this epoch
            self._random = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Lightning gives loaders their state back in the middle of an epoch only, and ours know which epoch it is.
        for loader, position in zip(self._loaders_of_ours(), self._positions, strict=False):
            loader.load_state_dict(position)
        self._positions = []

    def _loaders_of_ours(self) -> list[ResumableLoader]:
        return [loader for loader in _loaders(self._trainer.train_dataloader) if isinstance(loader, ResumableLoader)]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if preemption() is None or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        if self.mid_epoch or (self.mid_epoch is None and _resumable(trainer)):
            self._report(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._report(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._report(trainer)

    def _report(self, trainer: Any) -> None:
        def save(folder: Path) -> None:
            trainer.save_checkpoint(folder / FILE)

        names = trainer.callback_metrics if self.metrics is None else self.metrics
        report({name: trainer.callback_metrics[name] for name in names}, checkpoint=save)


def _resumable(trainer: Any) -> bool:
    """Whether every loader can save its position."""
    loaders = _loaders(trainer.train_dataloader)
    return all(hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict") for loader in loaders)


def _loaders(given: Any) -> Iterator[Any]:
    if isinstance(given, Mapping):
        given = list(given.values())
    if not isinstance(given, (list, tuple)):
        yield given
        return
    for inner in given:
        yield from _loaders(inner)
