"""What a rule is, and how rules are put to an object. Which rules there are stands in rules.py.

A twin gets the part of the object (as YAML has it, defaults filled in) that the rule hangs on, and answers
with the paths below it that break the rule; a transition's twin also gets the part's old value. `cel` None
means that CEL cannot say it, for the reason in `without_cel`; such a rule is checked when the operator sees
the object. A rule with CEL alone is the part of another one that CEL can say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Part = Mapping[str, Any]
Twin = Callable[[Any], list[str]]
Transition = Callable[[Any, Any], list[str]]


@dataclass(frozen=True)
class Rule:
    """`on`: a path in the schema, `[]` for each entry of a list, `{}` for each value of a map."""

    on: str
    message: str
    cel: str | None = None
    twin: Twin | None = None
    transition: Transition | None = None
    without_cel: str = ""


def parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(concrete path, value) of every part of an object that a rule's path means."""
    head, _, rest = path.partition(".")
    if not head:
        yield "", value
        return
    name = head.rstrip("[]{}")
    inner = value.get(name) if isinstance(value, Mapping) else None
    if inner is None:
        return
    if head.endswith("[]"):
        entries = [(f"{name}[{i}]", entry) for i, entry in enumerate(inner)]
    elif head.endswith("{}"):
        entries = [(f"{name}.{key}", entry) for key, entry in inner.items()]
    else:
        entries = [(name, inner)]
    for where, entry in entries:
        for below, found in parts(entry, rest):
            yield (f"{where}.{below}" if below else where), found


def broken(rules: tuple[Rule, ...], new: Part, old: Part | None) -> Iterator[tuple[str, str]]:
    """(path, message) for every rule that an object breaks, as it is or as what follows `old`."""
    for rule in rules:
        if rule.twin is not None:
            for where, part in parts(new, rule.on):
                for below in rule.twin(part):
                    yield ".".join(p for p in (where, below) if p), rule.message
        if rule.transition is not None and old is not None:
            before = dict(parts(old, rule.on))
            for where, part in parts(new, rule.on):
                for below in rule.transition(part, before[where]) if where in before else ():
                    yield ".".join(p for p in (where, below) if p), rule.message
