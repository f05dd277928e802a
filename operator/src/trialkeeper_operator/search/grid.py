"""The grid: every combination of finite parameters once, conditions respected, by number.

A condition names one earlier parameter, so parameters form trees. Points are counted from these and never
listed, since a person may write a grid far larger than what anybody wants to run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trialkeeper_operator.api.parameters import Parameter
from trialkeeper_operator.search.space import Key, Parameters, Space, active, count, key, misfit, nth, position


@dataclass(frozen=True)
class _Tree:
    """A parameter and what hangs on it: its points, and those of each value on which something hangs, by position.

    Every other value has one point.
    """

    points: int
    heavy: Mapping[int, int]


def size(space: Space) -> int | None:
    """How many points the grid has, None if a parameter is continuous."""
    trees = _trees(space)
    return None if trees is None else math.prod(trees[p.name].points for p in space.parameters if p.when is None)


def _trees(space: Space) -> dict[str, _Tree] | None:
    """Each parameter's tree, made from the last one up; None if a parameter is continuous."""
    trees: dict[str, _Tree] = {}
    hanging: dict[str, dict[Key, int]] = {}  # by parent: points of each value that a condition names
    for parameter in reversed(space.parameters):
        total = count(parameter)
        if total is None:
            return None
        heavy = _by_position(parameter, hanging.get(parameter.name, {}))
        tree = trees[parameter.name] = _Tree(total - len(heavy) + sum(heavy.values()), heavy)
        if parameter.when is not None:
            above = hanging.setdefault(parameter.when.parameter, {})
            for value in {key(v) for v in parameter.when.in_}:
                above[value] = above.get(value, 1) * tree.points
    return trees


def _by_position(parameter: Parameter, named: Mapping[Key, int]) -> dict[int, int]:
    """Points by position instead of value; a value that the parameter never has is left out."""
    if parameter.choice is not None:
        places = {key(value): place for place, value in enumerate(parameter.choice.values)}
        return {places[value]: points for value, points in named.items() if value in places}
    fitting = ((value, points) for (*_, value), points in named.items() if not misfit(parameter, value))
    return {position(parameter, value): points for value, points in fitting}


def point(space: Space, index: int) -> Parameters | None:
    """Point number `index`, the last parameter fastest; None beyond the end."""
    trees = _trees(space)
    if trees is None or not 0 <= index < (size(space) or 0):
        return None
    chosen: Parameters = {}
    for number, parameter in enumerate(space.parameters):
        if not active(parameter, chosen):
            continue
        # What hangs on values still to be chosen is not active yet: it is counted in their trees.
        rest = math.prod(trees[p.name].points for p in space.parameters[number + 1 :] if active(p, chosen))
        place, before = _place(trees[parameter.name].heavy, index // rest)
        index -= before * rest
        chosen[parameter.name] = nth(parameter, place)
    return chosen


def _place(heavy: Mapping[int, int], number: int) -> tuple[int, int]:
    """(the value's position to whose points number `number` belongs, points of all values before it)."""
    place = before = 0
    for next_heavy, points in sorted(heavy.items()):
        if number - before < next_heavy - place:
            break
        before += next_heavy - place
        if number - before < points:
            return next_heavy, before
        place, before = next_heavy + 1, before + points
    return place + number - before, number
