"""scikit-learn, whatever has `partial_fit` or `warm_start`: estimators in a folder, and back, by skops, without pickle.

    from trialkeeper.integrations import sklearn as state

    checkpoint = trialkeeper.get_checkpoint()
    saved = state.load(checkpoint.path) if checkpoint else {"model": SGDClassifier(random_state=seed), "epoch": 0}
    model = saved["model"]
    for epoch in range(saved["epoch"], epochs):
        model.partial_fit(x, y, classes=classes)
        trialkeeper.report({"accuracy": ...}, checkpoint=lambda f: state.save(f, model=model, epoch=epoch + 1))

Resuming is bit-identical for estimators whose `random_state` is a number, with the same version of scikit-learn. What
cannot be restored: that several objects share one generator of random numbers. With `random_state=None` an estimator
has after resuming a copy of the global generator that it used before; each goes on where it was, by itself.
"""

from __future__ import annotations

import os
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from trialkeeper import codec

VALUES = "values"
# What skops knows to be scikit-learn's, and does not trust by itself: plain objects that hold numbers.
_TRUSTED = frozenset(
    f"sklearn.neural_network._stochastic_optimizers.{name}" for name in ("AdamOptimizer", "SGDOptimizer")
)


def save(folder: str | os.PathLike[str], /, *, pickle: bool = False, **state: Any) -> None:
    """Write into a folder: estimators as `<name>.skops`, other values as JSON and arrays, and the state of the global
    generators of random numbers.

    `pickle=True` writes estimators as `<name>.pickle`, for those that skops cannot take.

    :raises TypeError: if a value is neither an estimator nor plain (numbers, text, lists, dictionaries, arrays).
    """
    target = Path(folder)
    estimators = {name: value for name, value in state.items() if hasattr(value, "get_params")}
    for name, value in estimators.items():
        if pickle:
            import pickle as pickles

            (target / f"{name}.pickle").write_bytes(pickles.dumps(value))
        else:
            import skops.io

            skops.io.dump(value, target / f"{name}.skops")
    (target / VALUES).mkdir()
    plain = {name: value for name, value in state.items() if name not in estimators}
    rng = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False)}
    codec.write({"values": plain, "random": rng}, target / VALUES)


def load(
    folder: str | os.PathLike[str], /, *, allow_pickle: bool = False, trusted: Collection[str] = ()
) -> dict[str, Any]:
    """What `save` was given, by name; the global generators of random numbers are set to what they were.

    `trusted`: full names of types of yours that estimators hold. `allow_pickle`: read pickles, too, which runs code
    from the checkpoint.

    :raises ValueError: if there are pickles and that is not allowed, or types that nobody trusts.
    """
    source = Path(folder)
    found = codec.read(source / VALUES)
    loaded: dict[str, Any] = dict(found["values"])
    for file in sorted(source.glob("*.skops")):
        import skops.io

        wanted = set(skops.io.get_untrusted_types(file=file))
        strange = wanted - _TRUSTED - set(trusted)
        if strange:
            raise ValueError(
                f"{file.name} holds {', '.join(sorted(strange))}: pass them as trusted= if you trust whoever wrote it"
            )
        loaded[file.stem] = skops.io.load(file, trusted=sorted(wanted))
    for file in sorted(source.glob("*.pickle")):
        if not allow_pickle:
            raise ValueError(
                f"{file.name} is a pickle, and reading it runs code from it: "
                "pass allow_pickle=True if you trust whoever wrote it"
            )
        import pickle as pickles

        loaded[file.stem] = pickles.loads(file.read_bytes())
    random.setstate(found["random"]["python"])
    np.random.set_state(found["random"]["numpy"])
    return loaded
