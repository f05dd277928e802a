"""The grid: every combination of finite parameters once, conditions respected, by number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trialkeeper_operator.search.space import Parameters, Space, active, values


def size(space: Space) -> int | None:
    """How many points the grid has, None if a parameter is continuous."""
    if any(values(p) is None for p in space.parameters):
        return None
    return _count(space, 0, {})


def _count(space: Space, number: int, chosen: Mapping[str, Any]) -> int:
    """Points from parameter `number` on, given the earlier ones' values.

    Without conditions further on the rest is a product, which keeps large grids countable.
    """
    rest = space.parameters[number:]
    if not any(p.when for p in rest):
        product = 1
        for parameter in rest:
            product *= len(values(parameter) or ())
        return product
    parameter = rest[0]
    if not active(parameter, chosen):
        return _count(space, number + 1, chosen)
    return sum(_count(space, number + 1, {**chosen, parameter.name: v}) for v in values(parameter) or ())


def point(space: Space, index: int) -> Parameters | None:
    """Point number `index`, the last parameter fastest; None beyond the end."""
    total = size(space)
    if total is None or not 0 <= index < total:
        return None
    chosen: Parameters = {}
    for number, parameter in enumerate(space.parameters):
        if not active(parameter, chosen):
            continue
        for value in values(parameter) or ():
            below = _count(space, number + 1, {**chosen, parameter.name: value})
            if index < below:
                chosen[parameter.name] = value
                break
            index -= below
    return chosen
