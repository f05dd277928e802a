"""What others may write, drawn: anything that JSON has, and good values in which a few parts are spoiled.

Spoiled values find more than pure garbage, which the first look throws away. TRIALKEEPER_HOSTILE=500 draws so many
examples for each test instead of a few.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

Path = tuple[str | int, ...]


def examples(few: int) -> settings:
    """How many are drawn in a run of all suites; as many as the environment says, if it says so."""
    many = int(os.environ.get("TRIALKEEPER_HOSTILE", "0")) or few
    return settings(
        max_examples=many,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        derandomize=many == few,  # CI tells the same stories each time, and a search of hours does not
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


TEXTS = st.text(max_size=12) | st.sampled_from(
    (
        "",
        " ",
        "NaN",
        "-Infinity",
        "1e999",
        "null",
        "True",
        "2026-13-45T99:99:99Z",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999999Z",
        "2026-11-30T00:00:00+25:00",
        "../../../etc/passwd",
        "\ud800",
        "\x00\x1b[2J",
        "{{{{",
        "x" * 5000,
    )
)
NUMBERS = st.sampled_from(
    (0, -1, 1, 3, 255, 256, 2**31, -(2**31), 2**53, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, 5e-324)
)
ATOMS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES: st.SearchStrategy[Any] = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


def paths(value: Any, here: Path = ()) -> Iterator[Path]:
    """Where every part of a value is; the value itself is at ()."""
    yield here
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, part in parts:
        yield from paths(part, (*here, step))


def put(value: Any, path: Path, change: Any) -> Any:
    """A value with another part at a path; the part goes if it is `put` itself."""
    if not path:
        return None if change is put else change
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    if change is put:
        del holder[path[-1]]
    else:
        holder[path[-1]] = change
    return value


def part(value: Any, path: Path) -> Any:
    """What is at a path."""
    for step in path:
        value = value[step]
    return value


@st.composite
def spoiled(draw: st.DrawFn, good: Any, most: int = 4, values: st.SearchStrategy[Any] = VALUES) -> Any:
    """A good value of which some parts are missing, doubled, wrapped in a list, or replaced by garbage."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(0, most))):
        path = draw(st.sampled_from(list(paths(value))))
        found = part(value, path)
        how = draw(st.sampled_from(("replace", "replace", "remove", "wrap", "double")))
        if how == "replace":
            change = draw(values)
        elif how == "remove":
            change = put
        elif how == "wrap":
            change = [found]
        else:
            change = [*found, *copy.deepcopy(found)] if isinstance(found, list) else found
        value = put(value, path, change)
    return value
