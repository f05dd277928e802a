"""Parameters to vary: float, int, choice, or fixed; some only when another has a certain value."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr

from trialkeeper_operator.api.resource import Model

WHOLE = 2**53  # beyond it a JSON number need not be what was written, and max - min would overflow in CEL
REAL = 1e18  # the API server compares whole numbers with bounds as int64

# What JSON and the API server can hold, and a variable of the trainer's environment.
Whole = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
Text = Annotated[StrictStr, Field(max_length=1024)]
Scalar = StrictBool | Whole | StrictFloat | Text
Scale = Literal["Linear", "Log"]
NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"


class FloatRange(Model):
    """Real numbers from min to max, both included; with `step`, min + k * step."""

    min: float = Field(ge=-REAL, le=REAL)
    max: float = Field(ge=-REAL, le=REAL)
    scale: Scale = "Linear"
    step: float | None = None


class IntRange(Model):
    """Whole numbers from min to max, both included; min + k * step."""

    min: StrictInt = Field(ge=-WHOLE, le=WHOLE)
    max: StrictInt = Field(ge=-WHOLE, le=WHOLE)
    scale: Scale = "Linear"
    step: StrictInt = 1


class Choice(Model):
    """One of the values, as it is written: 1, "1" and true are three."""

    values: list[Scalar] = Field(min_length=1, max_length=100)


class When(Model):
    """The condition under which a parameter exists: an earlier one has one of these values."""

    parameter: str = Field(max_length=63)
    in_: list[Scalar] = Field(alias="in", min_length=1, max_length=100)


class Parameter(Model):
    """One parameter; exactly one of float, int, choice, fixed."""

    name: str = Field(min_length=1, max_length=63, pattern=NAME)
    float_: FloatRange | None = Field(default=None, alias="float")
    int_: IntRange | None = Field(default=None, alias="int")
    choice: Choice | None = None
    fixed: Scalar | None = None
    when: When | None = None
