"""The words about frameworks: their code runs, and the examples are trainers that resume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from words import ROOT, blocks, section

PAGE = ROOT / "docs" / "frameworks.md"
GIVEN = {  # what a block takes for granted
    "Lightning": """
import lightning, torch
class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__(); self.net = torch.nn.Linear(4, 1)
    def training_step(self, batch, _): return self.net(batch[0]).square().mean()
    def validation_step(self, batch, _): self.log("val_loss", self.net(batch[0]).square().mean())
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=0.1)
model = Net()
training = validation = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 4)), batch_size=4)
""",
    "transformers": """
import torch
from transformers import GPT2Config, GPT2LMHeadModel
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2))
data = [{"input_ids": line, "labels": line} for line in torch.randint(64, (32, 16))]
""",
    "XGBoost": """
import numpy as np, xgboost
training = held = xgboost.DMatrix(np.random.rand(50, 3), np.random.randint(2, size=50))
params = {"objective": "binary:logistic"}
""",
}


def environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRIALKEEPER_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    return env | {"OMP_NUM_THREADS": "1", "PATH": path, "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("heading", ["PyTorch", "Lightning", "transformers", "scikit-learn", "XGBoost"])
def test_the_code_runs_and_resumes(heading: str, tmp_path: Path) -> None:
    (code,) = blocks(section(PAGE, heading), "python")
    (tmp_path / "train.py").write_text(GIVEN.get(heading, "") + code.replace('"/tmp/out"', '"out"'))
    for resume in ("", "1"):
        done = subprocess.run(
            [sys.executable, "train.py"],
            cwd=tmp_path,
            env=environment() | {"TRIALKEEPER_RESUME": resume},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    store = tmp_path / "trialkeeper-store" / "train" / "00001"
    assert list((store / "manifests").iterdir())
    assert len(list((store / "attempts").iterdir())) == 2


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "frameworks").glob("*.yaml")), ids=lambda f: f.stem)
def test_an_example_passes_the_drill(file: Path, tmp_path: Path) -> None:
    command = "from trialkeeper_operator.local.commands import drill; drill()"
    done = subprocess.run(
        [sys.executable, "-c", command, str(file), "--kills", "2"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "your trainer resumes: 2 kills, 3 attempts" in done.stdout
