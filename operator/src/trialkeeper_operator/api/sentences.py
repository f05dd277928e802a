"""What pydantic finds wrong with types and bounds, in words that say what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from trialkeeper_operator.api import names, parameters

# A value of any type fails once for each of them; the last step of the location says which.
_BRANCHES = frozenset({"bool", "constrained-int", "float", "constrained-str"})
_ANY_TYPE = "text, a number, true or false"


def path_of(location: Sequence[str | int]) -> str:
    """`spec.parameters[0].float.min`."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else (f".{step}" if path else step)
    return path


def shown(value: Any) -> str:
    """A value as a person recognises it."""
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _known(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The fields that a model knows at a place."""
    here: Any = model
    for step in location:
        if isinstance(step, int) or not (isinstance(here, type) and issubclass(here, BaseModel)):
            continue
        found = next((f for n, f in here.model_fields.items() if step in (n, f.alias)), None)
        if found is None:
            return []
        here = model_in(found.annotation)
    if isinstance(here, type) and issubclass(here, BaseModel):
        return [f.alias or n for n, f in here.model_fields.items()]
    return []


def model_in(annotation: Any) -> Any:
    """The model inside an annotation: of X, X | None, list[X], dict[str, X]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for inner in get_args(annotation) if (m := model_in(inner)) is not None), None)


def _misspelt(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.6)
    if close:
        return f"is not a field; did you mean {close[0]}?"
    return f"is not a field; there are: {', '.join(known)}" if known else "is not a field"


_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


_PATTERNS = {
    parameters.NAME: "use letters, digits and _, and begin with a letter or _",
    names.LABEL: "use lower-case letters, digits and -, and begin and end with a letter or digit",
    names.BUCKET: "a bucket's name has 3 to 63 lower-case letters, digits, - and .",
    names.ENDPOINT: "write http://host:port or https://host:port",
    names.FOLDER: "write an absolute path, without :",
    names.QUANTITY: "write a size of bytes above 0 with k, M, G, T, P, Ki, Mi, Gi, Ti or Pi, for example 50Gi",
    names.OBJECT_NAME: "use lower-case letters, digits, - and ., and begin and end with a letter or digit",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}


def _bound(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) and abs(bound) < 1e20 else f"{bound:g}"


def _sentence(error: Any, model: type[BaseModel]) -> str:
    kind, context, value = error["type"], error.get("ctx") or {}, error.get("input")
    location = error["loc"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return _misspelt(str(location[-1]), _known(model, location[:-1]))
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, not {shown(value)}"
    if kind == "finite_number":
        return "must be a finite number"
    if kind == "literal_error":
        return f"must be {context['expected'].replace(chr(39), '')}, not {shown(value)}"
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        return f"must be {word} {_bound(context[key])}, not {shown(value)}"
    if kind in ("too_short", "string_too_short"):
        return (
            "must not be empty" if context.get("min_length") == 1 else f"needs at least {context['min_length']} entries"
        )
    if kind == "too_long":
        return f"has {len(value)} entries, {context['max_length']} are the limit"
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters"
    if kind == "string_pattern_mismatch":
        return f"is {value[:60]!r}: {_PATTERNS[context['pattern']]}"
    return str(error["msg"]).lower()


def problems(wrong: ValidationError, model: type[BaseModel]) -> list[tuple[str, str]]:
    """(path, sentence) of each error; the branches of a value of any type are one."""
    errors = wrong.errors(include_url=False)
    branches: dict[tuple[str | int, ...], set[str | int]] = {}
    for error in errors:
        branches.setdefault(error["loc"][:-1], set()).update(error["loc"][-1:])
    found: dict[str, str] = {}
    for error in errors:
        location = error["loc"]
        if branches[location[:-1]] != _BRANCHES:
            found.setdefault(path_of(location), _sentence(error, model))
        elif error["type"].endswith("_type"):
            found.setdefault(path_of(location[:-1]), f"must be {_ANY_TYPE}, not {shown(error['input'])}")
        else:  # of the right type, but out of its bounds: that says more
            found[path_of(location[:-1])] = _sentence(error, model)
    return list(found.items())
