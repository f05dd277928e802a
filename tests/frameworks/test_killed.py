"""Real training with each framework, killed at random steps: the weights are those of a run that nobody killed."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from frameworks.killing import trial

SEED = int(os.environ.get("TRIALKEEPER_SEED", "1"))

TORCH = """
import torch
from torch.utils.data import TensorDataset
from trialkeeper.integrations import torch as state

torch.manual_seed(5)
x = torch.randn(60, 8)
data = state.ResumableLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8, seed=5)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=24)
augment = torch.Generator().manual_seed(1)
everything = dict(model=model, optimizer=optimizer, scheduler=scheduler, data=data, augment=augment)
checkpoint = trialkeeper.get_checkpoint()
step = state.load(checkpoint.path, **everything)["step"] if checkpoint else 0
for epoch in data.epochs(3):
    for a, b in data:
        begin(step)
        loss = torch.nn.functional.cross_entropy(model(a + 0.1 * torch.randn(a.shape, generator=augment)), b)
        optimizer.zero_grad(); loss.backward(); optimizer.step(); scheduler.step()
        step += 1
        trialkeeper.report({"loss": loss}, checkpoint=lambda f: state.save(f, step=step, **everything))
end(*model.state_dict().values())
"""

LIGHTNING = """
import torch, lightning
from torch.utils.data import DataLoader, TensorDataset
from trialkeeper.integrations.lightning import TrialCallback, ckpt_path
from trialkeeper.integrations.torch import ResumableLoader

class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 2))
    def training_step(self, batch, _):
        begin(self.global_step)
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss
    def validation_step(self, batch, _):
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]

lightning.seed_everything(3, verbose=False)
x = torch.randn(60, 8)
data = TensorDataset(x, (x.sum(1) > 0).long())
loader = LOADER
trainer = lightning.Trainer(
    max_epochs=4, callbacks=[TrialCallback(mid_epoch=MID_EPOCH)], logger=False, accelerator="cpu",
    enable_progress_bar=False, enable_model_summary=False,
)
net = Net()
trainer.fit(net, loader, DataLoader(data, batch_size=30), ckpt_path=ckpt_path())
end(*net.state_dict().values())
"""
PLAIN = LIGHTNING.replace("LOADER", "DataLoader(data, batch_size=8, shuffle=True)")
EPOCHS = PLAIN.replace("MID_EPOCH", "None")
BATCHES = LIGHTNING.replace("LOADER", "ResumableLoader(data, batch_size=8, seed=3)").replace("MID_EPOCH", "None")

TRANSFORMERS = """
import torch, transformers
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from trialkeeper.integrations.transformers import TrialCallback, resume_from_checkpoint

class Mortal(TrainerCallback):
    def on_step_begin(self, args, state, control, **others):
        begin(state.global_step)

transformers.logging.set_verbosity_error()
transformers.set_seed(3)
text = torch.randint(64, (32, 16), generator=torch.Generator().manual_seed(1))
data = [{"input_ids": line, "labels": line} for line in text]
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2))
arguments = TrainingArguments(
    output_dir=f"out-{trialkeeper.get_context().attempt}", num_train_epochs=3, per_device_train_batch_size=4,
    learning_rate=1e-3, save_strategy="no", seed=3, use_cpu=True, disable_tqdm=True, report_to=[], ARGUMENTS
)
trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data[:8], callbacks=[TrialCallback(), Mortal()])
trainer.train(resume_from_checkpoint=resume_from_checkpoint())
end(*model.state_dict().values())
"""
STEPS = TRANSFORMERS.replace("ARGUMENTS", "logging_steps=3, eval_strategy='steps', eval_steps=6")
EPOCHWISE = TRANSFORMERS.replace("ARGUMENTS", "logging_strategy='epoch', eval_strategy='epoch'")

SKLEARN = """
import numpy as np
from sklearn.neural_network import MLPClassifier
from trialkeeper.integrations import sklearn as state

rng = np.random.default_rng(0)
x = rng.normal(size=(200, 6)); y = (x.sum(1) > 0).astype(int)
checkpoint = trialkeeper.get_checkpoint()
saved = state.load(checkpoint.path) if checkpoint else {"model": MLPClassifier((8,), random_state=1), "step": 0}
model = saved["model"]
for step in range(saved["step"], 24):
    begin(step)
    model.partial_fit(x, y, classes=[0, 1])
    trialkeeper.report({"loss": model.loss_}, checkpoint=lambda f: state.save(f, model=model, step=step + 1))
end(*(w.tobytes() for w in model.coefs_ + model.intercepts_))
"""

XGBOOST = """
import numpy as np, xgboost
from trialkeeper.integrations.xgboost import TrialCallback

class Mortal(xgboost.callback.TrainingCallback):
    def before_iteration(self, model, epoch, evals_log):
        begin(model.num_boosted_rounds())
        return False

rng = np.random.default_rng(0)
x = rng.normal(size=(600, 8)); y = (x[:, 0] * x[:, 1] + 0.5 * rng.normal(size=600) > 0).astype(int)
training, held = xgboost.DMatrix(x[:400], y[:400]), xgboost.DMatrix(x[400:], y[400:])
params = {"objective": "binary:logistic", "max_depth": 3, "seed": 3, "nthread": 1} | PARAMS
stopping = xgboost.callback.EarlyStopping(rounds=5)
trial = TrialCallback(trialkeeper.get_checkpoint(), early_stopping=stopping)
booster = xgboost.train(
    params, training, trial.rounds(24), evals=[(held, "val")], xgb_model=trial.model, callbacks=[trial, Mortal()],
    verbose_eval=False,
)
print("best", booster.best_iteration, booster.best_score, "of", booster.num_boosted_rounds())
end(bytes(booster.save_raw("ubj")))
"""
TREES = XGBOOST.replace("PARAMS", '{"eta": 0.1}')
STOPPED = XGBOOST.replace("PARAMS", '{"eta": 1.0}')
SAMPLED = XGBOOST.replace("PARAMS", '{"eta": 0.1, "subsample": 0.5}')

# Steps of a whole run, and whether every attempt reports at the same steps as that does.
TRAINERS = {
    "torch": (TORCH, 24, True),
    "lightning, epochs": (EPOCHS, 32, True),
    "lightning, batches": (BATCHES, 32, False),
    "transformers, steps": (STEPS, 24, False),
    "transformers, epochs": (EPOCHWISE, 24, False),
    "sklearn": (SKLEARN, 24, True),
    "xgboost": (TREES, 24, True),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TRAINERS)
def test_killed_twice_it_ends_with_the_very_weights(name: str, tmp_path: Path) -> None:
    script, steps, regular = TRAINERS[name]
    rng = random.Random(f"{SEED} {name}")
    places = sorted(rng.sample(range(1, steps), 2))
    hows = rng.sample([signal.SIGKILL, signal.SIGTERM], 2)
    whole = trial(tmp_path / "whole", script)
    killed = trial(tmp_path / "killed", script, list(zip(places, hows, strict=True)))
    assert killed.fingerprint == whole.fingerprint, (places, hows)
    if regular:
        assert killed.curve == whole.curve, (places, hows)


@pytest.mark.timeout(1800)
def test_a_whole_run_of_lightning_reports_each_epoch_once(tmp_path: Path) -> None:
    ended = trial(tmp_path / "whole", EPOCHS, checkpoint={"frequency": 3})
    assert [sorted(row) for row in ended.curve.values()] == [["train_loss", "val_loss"]] * 4
    assert [m[-1] for m in ended.place.manifests()] == ["3", "4"]


@pytest.mark.timeout(1800)
def test_lightning_in_mid_epoch_with_a_loader_without_position_is_the_exception_it_says(tmp_path: Path) -> None:
    script = PLAIN.replace("MID_EPOCH", "True")
    whole = trial(tmp_path / "whole", script)
    killed = trial(tmp_path / "killed", script, [(11, signal.SIGTERM)])
    assert killed.attempts[0].code == 143
    assert len(killed.curve) == len(whole.curve) + 1  # saved where nothing would have been reported
    assert killed.fingerprint != whole.fingerprint


@pytest.mark.timeout(1800)
def test_a_whole_run_of_transformers_reports_each_step_once_and_saves_its_end(tmp_path: Path) -> None:
    script = TRANSFORMERS.replace("ARGUMENTS", "logging_steps=5, eval_strategy='steps', eval_steps=10")
    ended = trial(tmp_path / "whole", script, checkpoint={"frequency": 2})
    assert ["eval_loss" in row for row in ended.curve.values()] == [False, True, False, True, True]
    assert all({"loss", "learning_rate"} <= row.keys() for row in ended.curve.values())
    assert [m[-1] for m in ended.place.manifests()] == ["2", "4", "5"]
    assert "finished checkpoints" not in ended.attempts[0].err


@pytest.mark.timeout(600)
def test_early_stopping_of_xgboost_remembers_what_was_before(tmp_path: Path) -> None:
    whole = trial(tmp_path / "whole", STOPPED)
    rounds = len(whole.curve)
    assert 6 < rounds < 24
    killed = trial(tmp_path / "killed", STOPPED, [(rounds - 3, signal.SIGKILL)])
    assert killed.curve == whole.curve
    assert killed.fingerprint == whole.fingerprint
    said = [line for ended in (whole, killed) for line in ended.attempts[-1].out.splitlines() if "best" in line]
    assert said[0] == said[1]


@pytest.mark.timeout(600)
def test_sampling_of_xgboost_is_the_exception_it_says(tmp_path: Path) -> None:
    whole = trial(tmp_path / "whole", SAMPLED)
    killed = trial(tmp_path / "killed", SAMPLED, [(9, signal.SIGKILL)])
    before = {n: row for n, row in whole.curve.items() if n <= 9}
    assert before == {n: row for n, row in killed.curve.items() if n <= 9}
    assert killed.curve != whole.curve
