"""A linear classifier that learns in pieces, and may be killed between any two."""

from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

import trialkeeper
from trialkeeper.integrations import sklearn as state


def train():
    p = trialkeeper.get_params(alpha=1e-4, epochs=8)
    digits = load_digits()
    x, y = digits.data[:1400] / 16, digits.target[:1400]
    x_val, y_val = digits.data[1400:] / 16, digits.target[1400:]

    checkpoint = trialkeeper.get_checkpoint()
    if checkpoint:
        saved = state.load(checkpoint.path)
    else:
        fresh = SGDClassifier(alpha=p.alpha, average=True, random_state=trialkeeper.get_context().seed)
        saved = {"model": fresh, "epoch": 0}
    model = saved["model"]

    for epoch in range(saved["epoch"], p.epochs):
        model.partial_fit(x, y, classes=range(10))

        def save(folder, done=epoch + 1):
            state.save(folder, model=model, epoch=done)

        trialkeeper.report({"accuracy": model.score(x_val, y_val)}, checkpoint=save)


if __name__ == "__main__":
    train()
