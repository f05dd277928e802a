"""Hugging Face transformers: a callback that reports what the Trainer logs, and has it save when that is due.

    from trialkeeper.integrations.transformers import TrialCallback, resume_from_checkpoint

    arguments = TrainingArguments(output_dir=..., logging_steps=50, save_strategy="no", seed=seed)
    trainer = Trainer(model, arguments, train_dataset=..., callbacks=[TrialCallback()])
    trainer.train(resume_from_checkpoint=resume_from_checkpoint())

One log (or evaluation, or both, if they are of one step) is one iteration. Checkpoints are the Trainer's own, taken
from `output_dir` as it writes them: weights, optimizer, scheduler, scaler, random numbers, and the data's position, to
which it skips. Resuming gives bit-identical weights. What cannot be restored: the `loss` of a logging interval that a
resume cuts is averaged over what came after it; and a preemption between two logs adds an iteration of its own.

A rule in `spec.stop` ends training at a log, after which nothing is saved: the newest checkpoint may be older than that
end. The end of training itself is always saved. One process, so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from trialkeeper import Checkpoint, checkpoint_due, get_checkpoint, preemption, report

_SUMMARY = "train_runtime"  # in the log that the Trainer writes after training


def resume_from_checkpoint() -> str | None:
    """What `Trainer.train` takes as `resume_from_checkpoint`; it is a folder to be read only."""
    checkpoint = get_checkpoint()
    return None if checkpoint is None else str(checkpoint.path)


class TrialCallback(transformers.TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Reports logs and evaluations, saves when it is due and when this pod is to go. The Trainer's own saves, if
    `save_strategy` asks for some, are taken, too."""

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}
        self._saved_step = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse what could not be resumed.

        :raises ValueError: if the arguments say so.
        """
        if args.save_only_model:
            raise ValueError("save_only_model=True saves no optimizer: a trial could not be resumed from that")
        if args.save_strategy == "best":
            raise ValueError(
                'save_strategy="best" would skip saves that are due: use "no", checkpoints are kept by score'
            )
        if args.world_size > 1:
            raise ValueError(f"the Trainer runs in {args.world_size} processes, and TrialCallback is for one so far")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        later = state.epoch is not None and "epoch" in (args.logging_strategy, args.eval_strategy)
        self._decide(state, control, last=state.global_step >= state.max_steps and not later)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._decide(state, control, last=state.global_step >= state.max_steps)

    def _decide(self, state: Any, control: Any, *, last: bool) -> None:
        """Have the Trainer save at a report, if it is due there; and anywhere, if this pod is to go."""
        leaving = preemption() is not None
        reported = control.should_log or control.should_evaluate
        unsaved = state.global_step > self._saved_step
        if (last and unsaved) or ((reported or leaving) and checkpoint_due(state.global_step)):
            control.should_save = control.should_log = True
        if leaving:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or _SUMMARY in logs:
            return
        self._metrics |= {k: v for k, v in logs.items() if isinstance(v, (int, float)) and k != "epoch"}
        if not control.should_evaluate and not control.should_save:
            self._report(None)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_training_stop:
            control.should_save = True  # a callback has just stopped it early
        if not control.should_save:
            self._report(None)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved_step = state.global_step
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        # The Trainer looks for its best checkpoint when it ends.
        self._report(Checkpoint.from_directory(folder, move=not args.load_best_model_at_end))

    def _report(self, checkpoint: Checkpoint | None) -> None:
        metrics, self._metrics = self._metrics, {}
        report(metrics, checkpoint)
