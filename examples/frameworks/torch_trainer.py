"""A plain PyTorch loop, that may be killed between any two batches."""

import torch
from torch.utils.data import TensorDataset

import trialkeeper
from trialkeeper.integrations import torch as state


def train():
    p = trialkeeper.get_params(lr=1e-2, epochs=4)
    seed = trialkeeper.get_context().seed
    torch.manual_seed(seed)
    x = torch.randn(256, 16)
    data = state.ResumableLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=32, seed=seed)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Dropout(0.2), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=p.lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, p.lr, total_steps=p.epochs * len(data))
    everything = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "data": data}

    checkpoint = trialkeeper.get_checkpoint()
    if checkpoint:
        state.load(checkpoint.path, **everything)

    for _ in data.epochs(p.epochs):
        for images, labels in data:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            trialkeeper.report({"loss": loss}, checkpoint=lambda folder: state.save(folder, **everything))


if __name__ == "__main__":
    train()
