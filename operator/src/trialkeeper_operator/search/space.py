"""The space of parameters: what a value of each looks like, and how a point of the unit cube becomes one.

Parameters come in the order in which they are declared; one whose condition does not hold is absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trialkeeper_operator.api.parameters import FloatRange, IntRange, Parameter

DIGITS = 8  # of a continuous value that a search suggests: people read them, and a snapshot holds all of them
Parameters = dict[str, Any]
Key = tuple[bool, bool, Any]


@dataclass(frozen=True)
class Space:
    """Parameters by declaration, and the directions of the objectives ("Minimize" or "Maximize")."""

    parameters: tuple[Parameter, ...]
    directions: tuple[str, ...] = ("Minimize",)


def key(value: Any) -> Key:
    """What makes a value one of its own: 1, true and "1" are three, 1 and 1.0 are one."""
    return (isinstance(value, bool), isinstance(value, str), value)


def same(a: Any, b: Any) -> bool:
    """Whether two values are one."""
    return bool(key(a) == key(b))


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
    """Digits behind the point of a number as people write it."""
    mantissa, _, exponent = repr(float(number)).partition("e")
    return max(0, len(mantissa.partition(".")[2].rstrip("0")) - int(exponent or 0))


def stepped(low: float, step: float, k: int) -> float:
    """low + k * step, without the noise of binary fractions: 0.1 + 2 * 0.1 is 0.3."""
    return round(low + k * step, max(_decimals(low), _decimals(step)))


def count(parameter: Parameter) -> int | None:
    """How many values a parameter has, None if it is continuous."""
    if parameter.fixed is not None:
        return 1
    if parameter.choice is not None:
        return len(parameter.choice.values)
    if (i := parameter.int_) is not None:
        return (i.max - i.min) // i.step + 1
    f = parameter.float_
    assert f is not None
    return None if f.step is None else math.floor((f.max - f.min) / f.step + 1e-9) + 1


def nth(parameter: Parameter, k: int) -> Any:
    """Value number `k` of a finite parameter, from 0."""
    if parameter.fixed is not None:
        return parameter.fixed
    if parameter.choice is not None:
        return parameter.choice.values[k]
    if (i := parameter.int_) is not None:
        return i.min + k * i.step
    f = parameter.float_
    assert f is not None and f.step is not None
    return stepped(f.min, f.step, k)


def position(parameter: Parameter, value: Any) -> int:
    """The number of one of a finite parameter's values, the other way round than `nth`."""
    if parameter.fixed is not None:
        return 0
    if parameter.choice is not None:
        return next(k for k, v in enumerate(parameter.choice.values) if same(v, value))
    if (i := parameter.int_) is not None:
        return (int(value) - i.min) // i.step
    f = parameter.float_
    assert f is not None and f.step is not None
    return round((float(value) - f.min) / f.step)


def is_log(parameter: Parameter) -> bool:
    """Whether equal ratios of a parameter weigh the same."""
    kind = parameter.int_ or parameter.float_
    return kind is not None and kind.scale == "Log"


def at(parameter: Parameter, u: float) -> Any:
    """The value of a parameter at u in [0, 1]: every value of a discrete one gets an equal part.

    On a log scale equal parts are equal ratios.
    """
    number = count(parameter)
    if number is not None and not is_log(parameter):
        return nth(parameter, min(int(u * number), number - 1))
    low, high = _ends(parameter)
    x = low + u * (high - low)
    x = math.exp(x) if is_log(parameter) else x
    if (i := parameter.int_) is not None:
        return nth(parameter, min(max(round((x - i.min) / i.step), 0), (number or 1) - 1))
    f = parameter.float_
    assert f is not None
    return min(max(_short(x, f), f.min), f.max)


def _short(x: float, f: FloatRange) -> float:
    """A continuous value without digits that mean nothing: to a 10^8th of its range, or of itself on a log scale."""
    width = min(f.max - f.min, abs(x)) if f.scale == "Log" else f.max - f.min
    return round(x, DIGITS - math.ceil(math.log10(width))) if width > 0 else x


def where(parameter: Parameter, value: float) -> float:
    """The u in [0, 1] of a number, the other way round than `at`; a discrete one's is amid its part."""
    number = count(parameter)
    if number is not None and not is_log(parameter):
        return (position(parameter, value) + 0.5) / number
    low, high = _ends(parameter)
    x = math.log(value) if is_log(parameter) else value
    return min(max((x - low) / (high - low), 0.0), 1.0)


def _ends(parameter: Parameter) -> tuple[float, float]:
    """Where a range begins and ends on its scale; a whole number on a log scale reaches half a step to each side."""
    if (i := parameter.int_) is not None:
        return math.log(i.min - 0.5), math.log(i.max + 0.5)
    f = parameter.float_
    assert f is not None
    return (math.log(f.min), math.log(f.max)) if f.scale == "Log" else (f.min, f.max)


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
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(kind, IntRange) and value != int(value):
        return "must be a whole number"
    # A stepped value is written without binary noise, which may put the last one a hair beyond max.
    slack = 1e-9 * kind.step if isinstance(kind, FloatRange) and kind.step is not None else 0.0
    if not kind.min - slack <= value <= kind.max + slack:
        return f"must be between {kind.min} and {kind.max}"
    if kind.step is not None and not _on_step(kind, value):
        return f"must be {kind.min} plus a multiple of {kind.step}"
    return ""


def _on_step(kind: FloatRange | IntRange, value: float) -> bool:
    if isinstance(kind, IntRange):
        return (int(value) - kind.min) % kind.step == 0
    k = (value - kind.min) / (kind.step or 1.0)
    return abs(k - round(k)) <= 1e-6


def typed(parameter: Parameter, value: Any) -> Any:
    """A value that fits, in the parameter's own type: JSON has 1 for 1.0, and people write 64.0 for 64."""
    if parameter.float_ is not None:
        return float(value)
    return value if parameter.fixed is not None else nth(parameter, position(parameter, value))


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
