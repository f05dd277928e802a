"""Experiments, drawn: good ones joined, and spoiled in a few places by what people write."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import strategies as st

from objects import GOOD, changed
from simulation.hostile.garbage import VALUES, spoiled

# What somebody might write, in the right place or in a wrong one.
PLAUSIBLE: st.SearchStrategy[Any] = st.sampled_from(
    (
        0,
        1,
        2,
        3,
        7,
        -1,
        0.5,
        1e-5,
        100,
        10_000,
        True,
        False,
        "",
        "loss",
        "lr",
        "Max",
        "Stop",
        "10Gi",
        "exp-0",
        "a",
        {},
        [],
    )
)


@st.composite
def merged(draw: st.DrawFn) -> dict[str, Any]:
    """A good Experiment with up to three of the table's good changes at once, which need not go together."""
    changes: dict[str, Any] = {}
    found = changed(changes)
    for name in draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=3)):
        with contextlib.suppress(KeyError, IndexError, TypeError):  # a part of what another one has replaced
            found = changed(changes | GOOD[name])
            changes |= GOOD[name]
    return found


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """An Experiment, good or not; its metadata are always good."""
    found = draw(merged())
    spec = draw(spoiled(found["spec"], 2, PLAUSIBLE | VALUES))
    return {**found, "spec": spec}
