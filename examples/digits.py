"""A small neural network on handwritten digits, that may be killed at any moment.

Everything that training depends on is in the checkpoint or follows from the seed and the epoch, so a resumed
run ends with the very weights of one that nobody killed. Plain numpy; the data come with scikit-learn.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import trialkeeper

BATCH = 32


def shifted(images):
    """Each image and its copies moved by one pixel in each direction: nine times the data."""
    square = images.reshape(-1, 8, 8)
    moves = [(down, right) for down in (0, 1, -1) for right in (0, 1, -1)]
    return np.concatenate([np.roll(square, move, axis=(1, 2)).reshape(-1, 64) for move in moves])


def data():
    """(training images, labels, validation images, labels), pixels between 0 and 1."""
    digits = load_digits()
    images, labels = digits.data / 16.0, digits.target
    return shifted(images[:1400]), np.tile(labels[:1400], 9), images[1400:], labels[1400:]


def fresh(hidden, seed):
    """The state of a network that has learnt nothing: weights, and the optimiser's moments."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.normal(0, np.sqrt(2 / 64), (64, hidden)),
        "b1": np.zeros(hidden),
        "w2": rng.normal(0, np.sqrt(2 / hidden), (hidden, 10)),
        "b2": np.zeros(10),
    }
    moments = {f"{kind}_{name}": np.zeros_like(w) for kind in "mv" for name, w in weights.items()}
    return weights | moments | {"epoch": np.array(0), "updates": np.array(0)}


def forward(state, x):
    """(hidden layer, probabilities of the ten digits)."""
    h = np.maximum(x @ state["w1"] + state["b1"], 0)
    z = h @ state["w2"] + state["b2"]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return h, e / e.sum(axis=1, keepdims=True)


def update(state, x, y, lr, optimizer):
    """One step of the optimiser on one batch."""
    h, p = forward(state, x)
    d = p.copy()
    d[np.arange(len(y)), y] -= 1
    d /= len(y)
    dh = (d @ state["w2"].T) * (h > 0)
    state["updates"] = state["updates"] + 1
    for name, g in {"w2": h.T @ d, "b2": d.sum(0), "w1": x.T @ dh, "b1": dh.sum(0)}.items():
        if optimizer == "sgd":
            m = state["m_" + name] = 0.9 * state["m_" + name] + g
            state[name] = state[name] - lr * m
        else:
            m = state["m_" + name] = 0.9 * state["m_" + name] + 0.1 * g
            v = state["v_" + name] = 0.999 * state["v_" + name] + 0.001 * g * g
            t = int(state["updates"])
            state[name] = state[name] - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def train():
    p = trialkeeper.get_params(lr=1e-3, hidden=256, optimizer="adam", epochs=24)
    seed = trialkeeper.get_context().seed
    x, y, x_val, y_val = data()

    state = fresh(p.hidden, seed)
    checkpoint = trialkeeper.get_checkpoint()
    if checkpoint:
        state = dict(np.load(checkpoint.path / "state.npz"))

    def save(folder: Path):
        np.savez(folder / "state.npz", **state)

    for epoch in range(int(state["epoch"]), p.epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(y))
        for start in range(0, len(y), BATCH):
            batch = order[start : start + BATCH]
            update(state, x[batch], y[batch], p.lr, p.optimizer)
        state["epoch"] = np.array(epoch + 1)
        _, q = forward(state, x_val)
        loss = -np.log(q[np.arange(len(y_val)), y_val] + 1e-12).mean()
        accuracy = (q.argmax(axis=1) == y_val).mean()
        trialkeeper.report({"val/loss": loss, "val/accuracy": accuracy}, checkpoint=save)


if __name__ == "__main__":
    train()
