"""YAML text into values, as kubectl reads it, so that one file means one thing in both worlds.

kubectl goes through YAML 1.1 as Go's library has it: `1e-5` is a number, `on` and `y` are booleans, `1:30` is
text, and `1.0` reaches the API server as 1. Beyond that whatever kubectl takes in silence, although it is a mistake
or means something else to other readers, is refused here: a key that stands twice, `<<` below the keys it overrides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trialkeeper_operator.api.validate import InvalidObject, Problem

NODES = 100_000  # values in a file, aliases counted each time: more is a bomb
DEPTH = 100
_DIGITS = 70  # of a whole number of 64 bits, in base 2 and with its sign

_PLAIN = "plain"
_MERGE = "tag:yaml.org,2002:merge"
_TRUE = frozenset(["y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"])
_FALSE = frozenset(["n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"])
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INT = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


# What people usually meant where YAML's own words do not say it.
_HINTS = {
    "'\\t'": "YAML is indented by spaces, never by tabs",
    "mapping values are not allowed": "text with ': ' in it needs quotes; or an earlier line is indented otherwise",
    "expected <block end>": "a line is indented otherwise than those it belongs to",
    "'@'": "text that begins with it needs quotes",
    "'`'": "text that begins with it needs quotes",
    "'%'": "text that begins with it needs quotes",
    "undefined alias": "text that begins with * needs quotes",
    "expected alphabetic or numeric character": "text that begins with * or & needs quotes",
}


class _Loader(yaml.SafeLoader):
    """Composes nodes; what a plain scalar means is decided by `scalar`."""

    def resolve(self, kind: type[Node], value: str | None, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            return _MERGE if value == "<<" else _PLAIN
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


def scalar(text: str) -> Any:
    """What a plain scalar means to kubectl.

    :raises ValueError: for infinities and NaN, which JSON does not know.
    """
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INFINITE.fullmatch(text):
        raise ValueError(f"{text} is no number that Kubernetes knows")
    if text[0] not in "+-.0123456789":
        return text
    plain = text if text[0] == "." else text.replace("_", "")
    whole = _integer(plain) if _INT.fullmatch(plain) and len(plain) <= _DIGITS else None
    if whole is not None:
        return whole
    if not _FLOAT.fullmatch(plain):
        return text
    number = float(plain)
    if math.isinf(number):
        return text
    if not number.is_integer():
        return number
    # Go writes a whole float as its shortest digits and zeros, and the API server reads an integer.
    written = int(Decimal(repr(number)))
    return written if -(2**63) <= written < 2**63 else number


def _integer(plain: str) -> int | float | None:
    """A whole number of 64 bits, None if there is no such; the API server reads those beyond int64 as floats."""
    sign, digits = (-1 if plain[0] == "-" else 1), plain.lstrip("+-").lower()
    if digits[:2] in ("0x", "0b", "0o"):
        value = int(digits, 0)
    elif len(digits) > 1 and digits[0] == "0":
        value = int(digits, 8)
    else:
        value = int(digits)
    value *= sign
    if -(2**63) <= value < 2**63:
        return value
    return float(value) if 0 < value < 2**64 else None


def _fits(tag: str, text: str, value: Any) -> bool:
    """Whether a value may have the type that its tag says."""
    return {
        "int": _INT.fullmatch(text.replace("_", "")) is not None,
        "float": isinstance(value, (int, float)) and not isinstance(value, bool),
        "bool": isinstance(value, bool),
        "null": value is None,
    }.get(tag, True)


class _Values:
    """Nodes into values, counting what it makes."""

    def __init__(self) -> None:
        self._left = NODES

    def of(self, node: Node, depth: int = 0) -> Any:
        self._left -= 1
        if self._left < 0 or depth > DEPTH:
            raise _problem(node, "the file is too large or too deep, or an alias contains itself")
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if isinstance(node, SequenceNode):
            return [self.of(item, depth + 1) for item in node.value]
        if isinstance(node, MappingNode):
            return self._mapping(node, depth)
        raise _problem(node, f"the tag {node.tag} is not known")

    def _scalar(self, node: ScalarNode) -> Any:
        tag = node.tag.rpartition(":")[2]
        if tag in (_PLAIN, "int", "float", "bool", "null"):
            try:
                value = scalar(node.value)
            except ValueError as wrong:
                raise _problem(node, str(wrong)) from wrong
            if not _fits(tag, node.value, value):
                raise _problem(node, f"{node.value!r} is not what its tag !!{tag} says")
            return value
        if tag in ("str", "merge", "timestamp", "value"):
            return _text(node)
        raise _problem(node, f"the tag {node.tag} is not known")

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] | None = None
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                if merged is not None:
                    raise _problem(key_node, "the key '<<' stands twice: write <<: [*one, *two]")
                merged = self._merged(value_node, depth)
                if both := sorted(merged.keys() & found.keys()):
                    raise _problem(key_node, f"<< would override {both[0]!r} above it: put << first")
                continue
            key = self._key(key_node, depth)
            if key in found:
                raise _problem(key_node, f"the key {key!r} stands twice")
            found[key] = self.of(value_node, depth + 1)
        return (merged or {}) | found

    def _merged(self, node: Node, depth: int) -> dict[str, Any]:
        """What `<<` brings; of several mappings the first that has a key."""
        merged: dict[str, Any] = {}
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            value = self.of(source, depth + 1)
            if not isinstance(value, dict):
                raise _problem(source, "<< takes a mapping")
            merged = value | merged
        return merged

    def _key(self, node: Node, depth: int) -> str:
        key = self.of(node, depth + 1)
        if isinstance(key, (dict, list)) or key is None:
            raise _problem(node, "a key must be text")
        return str(key).lower() if isinstance(key, bool) else str(key)


def _text(node: ScalarNode) -> str:
    """Text that a file, a variable and a command line can hold."""
    text: str = node.value
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise _problem(node, "text with NUL or half a character in it can be given to no program")
    return text


def _problem(node: Node, sentence: str) -> InvalidObject:
    mark = node.start_mark
    return InvalidObject([Problem("", f"line {mark.line + 1}, column {mark.column + 1}: {sentence}")])


def documents(text: str) -> Iterator[Any]:
    """Every document of a YAML text.

    :raises InvalidObject: if it cannot be read; the sentence has line and column.
    """
    try:
        for node in yaml.compose_all(text, Loader=_Loader):
            yield None if node is None else _Values().of(node)
    except yaml.MarkedYAMLError as broken:
        mark = broken.problem_mark or broken.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = next((f" ({said})" for part, said in _HINTS.items() if part in str(broken.problem)), "")
        raise InvalidObject([Problem("", f"{where}{broken.problem}{hint}")]) from broken
    except RecursionError as broken:
        raise InvalidObject([Problem("", "the file is too deep: no Experiment has so many levels")]) from broken
    except yaml.YAMLError as broken:
        raise InvalidObject([Problem("", f"this is no YAML: {str(broken).splitlines()[0]}")]) from broken
