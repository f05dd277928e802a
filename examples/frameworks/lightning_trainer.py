"""A LightningModule, that may be killed at any moment and goes on at the beginning of that epoch."""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import trialkeeper
from trialkeeper.integrations.lightning import TrialCallback, ckpt_path


class Net(lightning.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr
        self.net = torch.nn.Sequential(
            torch.nn.Linear(16, 32), torch.nn.Dropout(0.2), torch.nn.ReLU(), torch.nn.Linear(32, 2)
        )

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


def train():
    p = trialkeeper.get_params(lr=1e-2, epochs=8)
    lightning.seed_everything(trialkeeper.get_context().seed, verbose=False)
    x = torch.randn(512, 16)
    data = TensorDataset(x, (x.sum(1) > 0).long())
    training, validation = torch.utils.data.random_split(data, [384, 128])
    trainer = lightning.Trainer(
        max_epochs=p.epochs, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[TrialCallback()]
    )
    trainer.fit(Net(p.lr), DataLoader(training, 32, shuffle=True), DataLoader(validation, 128), ckpt_path=ckpt_path())


if __name__ == "__main__":
    train()
