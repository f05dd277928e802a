"""Boosted trees with early stopping, that may be killed at any round."""

import xgboost
from sklearn.datasets import load_digits

import trialkeeper
from trialkeeper.integrations.xgboost import TrialCallback


def train():
    p = trialkeeper.get_params(eta=0.3, rounds=12)
    digits = load_digits()
    training = xgboost.DMatrix(digits.data[:1400], digits.target[:1400])
    validation = xgboost.DMatrix(digits.data[1400:], digits.target[1400:])
    settings = {"objective": "multi:softprob", "num_class": 10, "max_depth": 3, "eta": p.eta, "nthread": 1}

    stopping = xgboost.callback.EarlyStopping(rounds=3)
    trial = TrialCallback(trialkeeper.get_checkpoint(), early_stopping=stopping)
    xgboost.train(
        settings | {"seed": trialkeeper.get_context().seed},
        training,
        trial.rounds(p.rounds),
        evals=[(validation, "val")],
        xgb_model=trial.model,
        callbacks=[trial],
        verbose_eval=False,
    )


if __name__ == "__main__":
    train()
