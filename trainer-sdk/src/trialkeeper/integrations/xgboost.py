"""XGBoost: a callback that reports each round and saves the booster, by name and round.

    from trialkeeper.integrations.xgboost import TrialCallback

    trial = TrialCallback(trialkeeper.get_checkpoint())
    xgboost.train(params, data, trial.rounds(100), evals=[(held, "val")], xgb_model=trial.model, callbacks=[trial])

Resuming is bit-identical for trees without sampling (`subsample` and all `colsample_by*` are 1). What cannot be
restored is the state of XGBoost's random numbers, which no booster file has: with sampling, or dropped trees (`dart`),
the rounds after a resume draw others than an undisturbed run would have drawn, from a seed that depends on the round.
Updaters that race (`gblinear` with `shotgun`) are not reproducible in the first place. `evals_result` has the rounds of
this attempt only; Trialkeeper's results have all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import xgboost

from trialkeeper import Checkpoint, report

MODEL, STATE = "model.ubj", "state.json"


class TrialCallback(xgboost.callback.TrainingCallback):  # type: ignore[misc, unused-ignore]
    """Reports the evaluations of each round as `<data>/<metric>`, and saves the booster when that is due.

    `early_stopping`: an `xgboost.callback.EarlyStopping`, given here instead of in `callbacks`: then its history is
    saved and restored, too. Not for `xgboost.cv`.
    """

    def __init__(self, checkpoint: Checkpoint | None = None, *, early_stopping: Any = None) -> None:
        super().__init__()
        self.early_stopping = early_stopping
        self.model: Any = None  # to go on from, for `xgb_model`
        self._done, self._stopped = 0, False
        if checkpoint is None:
            return
        self.model = xgboost.Booster(model_file=str(checkpoint.path / MODEL))
        state = json.loads((checkpoint.path / STATE).read_text())
        self._done, self._stopped = state["rounds"], state["stopped"]
        if early_stopping is not None and state["early_stopping"] is not None:
            vars(early_stopping).update(state["early_stopping"])

    def rounds(self, number: int) -> int:
        """How many of so many rounds are left, for `num_boost_round` or `n_estimators`."""
        return 0 if self._stopped else max(number - self._done, 0)

    def before_training(self, model: Any) -> Any:
        if self._done:
            _go_on_drawing(model, self._done)
        return model if self.early_stopping is None else self.early_stopping.before_training(model)

    def after_iteration(self, model: Any, epoch: int, evals_log: Mapping[str, Any]) -> bool:
        """Report a round; True ends training."""
        self._done += 1
        if self.early_stopping is not None:
            self._stopped = bool(self.early_stopping.after_iteration(model, epoch, evals_log))
        values = {f"{data}/{name}": history[-1] for data, log in evals_log.items() for name, history in log.items()}
        report(values, checkpoint=partial(self._save, model))
        return self._stopped

    def after_training(self, model: Any) -> Any:
        return model if self.early_stopping is None else self.early_stopping.after_training(model)

    def _save(self, model: Any, folder: Path) -> None:
        early = None
        if self.early_stopping is not None:
            kept = ("stopping_history", "best_scores", "current_rounds", "maximize")
            early = {name: _plain(getattr(self.early_stopping, name)) for name in kept}
        (folder / MODEL).write_bytes(model.save_raw("ubj"))
        state = {"rounds": self._done, "stopped": self._stopped, "early_stopping": early}
        (folder / STATE).write_text(json.dumps(state))


def _go_on_drawing(model: Any, rounds: int) -> None:
    """Let a resumed booster not draw the samples of its first rounds once more."""
    learner = json.loads(model.save_config())["learner"]
    if learner["gradient_booster"]["name"] != "gblinear":
        model.set_param("seed", int(learner["generic_param"]["seed"]) + rounds)


def _plain(value: Any) -> Any:
    """Numbers of numpy as JSON knows them."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value
