"""Reading an experiment's YAML file as kubectl reads it, so that one file means one thing in both worlds.

kubectl goes through YAML 1.1 as Go's library has it: `1e-5` is a number, `on` and `y` are booleans, `1:30` is
text. Beyond that a key that stands twice is refused here, since one of the two is always a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from trialkeeper_operator.api import names
from trialkeeper_operator.api.validate import InvalidObject, Problem

NODES = 100_000  # values in a file, aliases counted each time: more is a bomb
DEPTH = 100
BYTES = 4 << 20

_PLAIN = "plain"
_MERGE = "tag:yaml.org,2002:merge"
_TRUE = frozenset(["y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"])
_FALSE = frozenset(["n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"])
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INT = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Loader(yaml.SafeLoader):
    """Composes nodes; what a plain scalar means is decided by `scalar`."""

    def resolve(self, kind: type[Node], value: str | None, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            return _MERGE if value == "<<" else _PLAIN
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Manifest:
    """One Experiment as it was written, the folder that its paths are relative to, and what was passed over."""

    raw: dict[str, Any]
    folder: Path
    notes: tuple[str, ...] = ()


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
    plain = text.replace("_", "")
    if _INT.fullmatch(plain):
        return _integer(plain)
    if _FLOAT.fullmatch(plain):
        number = float(plain)
        return number if abs(number) != float("inf") else text
    return text


def _integer(plain: str) -> int | float:
    sign, digits = (-1 if plain[0] == "-" else 1), plain.lstrip("+-").lower()
    if digits[:2] in ("0x", "0b", "0o"):
        value = int(digits, 0)
    elif len(digits) > 1 and digits[0] == "0":
        value = int(digits, 8)
    else:
        value = int(digits)
    value *= sign
    return value if -(2**63) <= value < 2**64 else float(value)


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
        try:
            if tag == _PLAIN or tag in ("int", "float", "bool", "null"):
                return scalar(node.value)
        except ValueError as wrong:
            raise _problem(node, str(wrong)) from wrong
        if tag in ("str", "merge", "timestamp", "value"):
            return node.value
        raise _problem(node, f"the tag {node.tag} is not known")

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                sources = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                for source in sources:
                    value = self.of(source, depth + 1)
                    if not isinstance(value, dict):
                        raise _problem(source, "<< takes a mapping")
                    merged = value | merged
                continue
            key = self.of(key_node, depth + 1)
            if isinstance(key, (dict, list)) or key is None:
                raise _problem(key_node, "a key must be text")
            key = str(key).lower() if isinstance(key, bool) else str(key)
            if key in found:
                raise _problem(key_node, f"the key {key!r} stands twice")
            found[key] = self.of(value_node, depth + 1)
        return merged | found


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
        hint = " (YAML is indented by spaces, never by tabs)" if "'\\t'" in str(broken.problem) else ""
        raise InvalidObject([Problem("", f"{where}{broken.problem}{hint}")]) from broken
    except (yaml.YAMLError, RecursionError) as broken:
        raise InvalidObject([Problem("", f"this is no YAML: {str(broken).splitlines()[0]}")]) from broken


def load(path: Path, sets: list[str] | None = None) -> Manifest:
    """The one Experiment in a file, with `--set path=value` applied; not yet checked against its rules.

    :raises InvalidObject: if there is not exactly one, or it cannot be read.
    """
    try:
        if path.stat().st_size > BYTES:
            raise InvalidObject([Problem("", f"the file has more than {BYTES >> 20} MiB")])
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidObject([Problem("", f"the file cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise InvalidObject([Problem("", "the file is not UTF-8 text")]) from error
    found = [document for document in documents(text) if document is not None]
    experiments, notes = [], []
    for number, document in enumerate(found, 1):
        if not isinstance(document, dict):
            kind = {list: "a list"}.get(type(document), "no mapping")
            raise InvalidObject(
                [Problem("", f"document {number} is {kind}: an object with apiVersion and kind is needed")]
            )
        if document.get("kind") == names.EXPERIMENT:
            experiments.append(document)
        else:
            notes.append(f"document {number} ({document.get('kind', 'without kind')}) is passed over")
    if not experiments:
        what = f"kind is {found[0].get('kind')!r}" if len(found) == 1 else f"there are {len(found)} documents"
        raise InvalidObject(
            [Problem("kind" if found else "", f"no Experiment in this file: {what}" if found else "the file is empty")]
        )
    if len(experiments) > 1:
        raise InvalidObject(
            [Problem("", f"{len(experiments)} Experiments in one file: put each into a file of its own")]
        )
    raw = experiments[0]
    if raw.get("apiVersion") != names.API_VERSION:
        raise InvalidObject([Problem("apiVersion", f"must be {names.API_VERSION}, not {raw.get('apiVersion')!r}")])
    for assignment in sets or ():
        _set(raw, assignment)
    return Manifest(raw, path.resolve().parent, tuple(notes))


def _set(raw: dict[str, Any], assignment: str) -> None:
    """Apply one `path=value`; lists are entered by index, or by the `name` of their entries."""
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise InvalidObject([Problem("", f"--set {assignment}: write path=value, for example spec.maxTrials=4")])
    value = next(documents(text), None)
    steps = [step for step in re.split(r"[.\[\]]+", path) if step]
    here: Any = raw
    for step in steps[:-1]:
        here = _entered(here, step, assignment)
    last = steps[-1]
    if isinstance(here, list):
        here[_index(here, last, assignment)] = value
    else:
        here[last] = value


def _entered(here: Any, step: str, assignment: str) -> Any:
    if isinstance(here, list):
        return here[_index(here, step, assignment)]
    if isinstance(here, dict):
        here = here.setdefault(step, {})
    if not isinstance(here, (dict, list)):
        raise InvalidObject([Problem("", f"--set {assignment}: {step} holds no fields")])
    return here


def _index(here: list[Any], step: str, assignment: str) -> int:
    for index, entry in enumerate(here):
        if step == str(index) or (isinstance(entry, dict) and entry.get("name") == step):
            return index
    raise InvalidObject([Problem("", f"--set {assignment}: there is no entry {step}")])
