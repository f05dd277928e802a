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

    A parameter that no later condition names is a factor, which keeps large grids countable.
    """
    if number == len(space.parameters):
        return 1
    parameter = space.parameters[number]
    if not active(parameter, chosen):
        return _count(space, number + 1, chosen)
    if not any(p.when and p.when.parameter == parameter.name for p in space.parameters[number + 1 :]):
        return len(values(parameter) or ()) * _count(space, number + 1, chosen)
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
