"""The space of parameters: what a value of each looks like, and how a point of the unit cube becomes one.

Parameters come in the order in which they are declared; one whose condition does not hold is absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trialkeeper_operator.api.parameters import FloatRange, IntRange, Parameter

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """Parameters by declaration, and the directions of the objectives ("Minimize" or "Maximize")."""

    parameters: tuple[Parameter, ...]
    directions: tuple[str, ...] = ("Minimize",)


def same(a: Any, b: Any) -> bool:
    """Whether two values are one: 1, true and "1" are three, 1 and 1.0 are one."""
    return a == b and isinstance(a, bool) == isinstance(b, bool) and isinstance(a, str) == isinstance(b, str)


def active(parameter: Parameter, chosen: Mapping[str, Any]) -> bool:
    """Whether a parameter exists, given the earlier ones' values."""
    when = parameter.when
    return when is None or (when.parameter in chosen and any(same(chosen[when.parameter], v) for v in when.in_))


def choose(space: Space, value: Callable[[Parameter], Any]) -> Parameters:
    """A point: `value` is asked for each active parameter, in order; fixed ones are not asked for."""
    chosen: Parameters = {}
    for parameter in space.parameters:
        if active(parameter, chosen):
            chosen[parameter.name] = parameter.fixed if parameter.fixed is not None else value(parameter)
    return chosen


def _decimals(number: float) -> int:
    text = f"{number:.12g}"
    mantissa, _, exponent = text.partition("e")
    return max(0, len(mantissa.partition(".")[2]) - int(exponent or 0))


def stepped(low: float, step: float, k: int) -> float:
    """low + k * step, without the noise of binary fractions: 0.1 + 2 * 0.1 is 0.3."""
    return round(low + k * step, max(_decimals(low), _decimals(step)))


def steps(kind: FloatRange | IntRange) -> int | None:
    """How many values a range has, None if it is continuous."""
    if kind.step is None:
        return None
    return math.floor((kind.max - kind.min) / kind.step + 1e-9) + 1


def at(parameter: Parameter, u: float) -> Any:
    """The value of a parameter at u in [0, 1): every value of a discrete one gets an equal part.

    On a log scale equal parts are equal ratios.
    """
    if parameter.choice is not None:
        values = parameter.choice.values
        return values[min(int(u * len(values)), len(values) - 1)]
    if parameter.int_ is not None:
        return _int_at(parameter.int_, u)
    kind = parameter.float_
    assert kind is not None
    count = steps(kind)
    if count is not None:
        return stepped(kind.min, kind.step or 0.0, min(int(u * count), count - 1))
    if kind.scale == "Log":
        value = math.exp(math.log(kind.min) + u * (math.log(kind.max) - math.log(kind.min)))
    else:
        value = kind.min + u * (kind.max - kind.min)
    return min(max(value, kind.min), kind.max)


def _int_at(kind: IntRange, u: float) -> int:
    count = steps(kind) or 1
    if kind.scale == "Log":
        low, high = math.log(kind.min - 0.5), math.log(kind.max + 0.5)
        k = round((math.exp(low + u * (high - low)) - kind.min) / kind.step)
        return kind.min + min(max(k, 0), count - 1) * kind.step
    return kind.min + min(int(u * count), count - 1) * kind.step


def values(parameter: Parameter) -> Sequence[Any] | None:
    """Every value of a finite parameter in order, None if it is continuous."""
    if parameter.fixed is not None:
        return [parameter.fixed]
    if parameter.choice is not None:
        return parameter.choice.values
    kind = parameter.int_ or parameter.float_
    assert kind is not None
    count = steps(kind)
    if count is None:
        return None
    if isinstance(kind, IntRange):
        return range(kind.min, kind.min + count * kind.step, kind.step)
    return [stepped(kind.min, kind.step or 0.0, k) for k in range(count)]


def misfit(parameter: Parameter, value: Any) -> str:
    """Why a value is not one of a parameter's, as one clause; empty if it is."""
    if parameter.fixed is not None:
        return "" if same(value, parameter.fixed) else f"must be {parameter.fixed!r}, which is fixed"
    if parameter.choice is not None:
        fits = any(same(value, v) for v in parameter.choice.values)
        return "" if fits else f"must be one of {', '.join(map(repr, parameter.choice.values))}"
    kind = parameter.int_ or parameter.float_
    assert kind is not None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "must be a number"
    if isinstance(kind, IntRange) and value != int(value):
        return "must be a whole number"
    # A stepped value is written without binary noise, which may put the last one a hair beyond max.
    slack = 1e-9 * kind.step if isinstance(kind, FloatRange) and kind.step is not None else 0.0
    if not kind.min - slack <= value <= kind.max + slack:
        return f"must be between {kind.min} and {kind.max}"
    if kind.step is not None and abs((k := (value - kind.min) / kind.step) - round(k)) > 1e-6:
        return f"must be {kind.min} plus a multiple of {kind.step}"
    return ""


def fits(space: Space, parameters: Mapping[str, Any]) -> list[str]:
    """What is wrong with a whole point; empty if nothing is."""
    wrong, chosen = [], dict[str, Any]()
    for parameter in space.parameters:
        if not active(parameter, chosen):
            continue
        if parameter.name not in parameters:
            wrong.append(f"{parameter.name} is missing")
            continue
        chosen[parameter.name] = parameters[parameter.name]
        clause = misfit(parameter, chosen[parameter.name])
        wrong += [f"{parameter.name} {clause}"] if clause else []
    return wrong + [f"{name} is not active" for name in parameters if name not in chosen]
