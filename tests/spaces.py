"""The spaces that the tests of the search share."""

from __future__ import annotations

from typing import Any

from trialkeeper_operator.api.parameters import Parameter
from trialkeeper_operator.search.space import Space

LR = {"name": "lr", "float": {"min": 1e-5, "max": 0.1, "scale": "Log"}}
HIDDEN = {"name": "hidden", "int": {"min": 8, "max": 128, "step": 8}}
OPTIMIZER = {"name": "optimizer", "choice": {"values": ["sgd", "adam", 1, True, "1"]}}
MOMENTUM = {
    "name": "momentum",
    "float": {"min": 0, "max": 0.9, "step": 0.1},
    "when": {"parameter": "optimizer", "in": ["sgd", 1]},
}
EPOCHS = {"name": "epochs", "fixed": 20}


def space(*parameters: dict[str, Any], directions: tuple[str, ...] = ("Minimize",)) -> Space:
    """A space of raw parameters."""
    return Space(tuple(Parameter.model_validate(p) for p in parameters), directions)
