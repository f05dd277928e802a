"""The Python side of rules that take more than a comparison: where, below its part, a rule is broken.

Each function looks at raw parts with their defaults filled in, whose types are right already; what they
mean to the API server stands beside their names in rules.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trialkeeper_operator.api.rule import Part, Transition, Twin

METRIC_LIMIT = 256  # characters of a metric's name
STEPS = 1_000_000  # values of a stepped float: more is a continuous one by another name


def unless(path: str, holds: Callable[[Any], bool]) -> Twin:
    return lambda part: [] if holds(part) else [path]


def kinds(parameter: Part) -> int:
    return sum(kind in parameter for kind in ("float", "int", "choice", "fixed"))


def later(entries: Any, key: str) -> list[int]:
    """Positions of entries whose key an earlier one has already."""
    seen: set[Any] = set()
    found = []
    for position, entry in enumerate(entries or ()):
        value = entry.get(key)
        if value is not None and value in seen:
            found.append(position)
        seen.add(value)
    return found


def _same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool) and isinstance(a, str) == isinstance(b, str)


def twice(choice: Part) -> list[str]:
    values = choice["values"]
    return [f"values[{i}]" for i, v in enumerate(values) if any(_same(v, w) for w in values[:i])]


def _conditions(spec: Part) -> Iterator[tuple[int, Part, Part | None, bool]]:
    """(position, condition, the first parameter that it names, whether that stands earlier)."""
    entries = spec["parameters"]
    first = {p["name"]: (i, p) for i, p in reversed(list(enumerate(entries)))}
    for i, p in enumerate(entries):
        if "when" in p:
            position, parent = first.get(p["when"]["parameter"], (i, None))
            yield i, p["when"], parent, position < i


def when_known(spec: Part) -> list[str]:
    return [f"parameters[{i}].when.parameter" for i, _, parent, _ in _conditions(spec) if parent is None]


def when_earlier(spec: Part) -> list[str]:
    found = _conditions(spec)
    return [f"parameters[{i}].when.parameter" for i, _, parent, earlier in found if parent is not None and not earlier]


def when_discrete(spec: Part) -> list[str]:
    found = _conditions(spec)
    return [
        f"parameters[{i}].when.parameter" for i, _, parent, earlier in found if earlier and parent and "float" in parent
    ]


def _takes(parameter: Part, value: Any) -> bool:
    """Whether a discrete parameter can have a value."""
    if "choice" in parameter:
        return any(_same(value, v) for v in parameter["choice"]["values"])
    if "int" in parameter:
        low, high, step = (parameter["int"][k] for k in ("min", "max", "step"))
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and low <= value <= high and (step <= 0 or (value - low) % step == 0)
    return "fixed" not in parameter or _same(value, parameter["fixed"])


def when_possible(spec: Part) -> list[str]:
    return [
        f"parameters[{i}].when.in[{k}]"
        for i, when, parent, earlier in _conditions(spec)
        if earlier and parent
        for k, wanted in enumerate(when["in"])
        if not _takes(parent, wanted)
    ]


def alike(spec: Part) -> list[str]:
    """Names that differ from an earlier one, but only by case."""
    seen: dict[str, str] = {}
    found = []
    for i, parameter in enumerate(spec["parameters"]):
        first = seen.setdefault(parameter["name"].upper(), parameter["name"])
        found += [f"parameters[{i}].name"] if first != parameter["name"] else []
    return found


def metric_names(stop: Part) -> list[str]:
    return [f"metrics.{name}" for name in stop.get("metrics", ()) if not 1 <= len(name) <= METRIC_LIMIT]


def containers(spec: Part) -> list[Part]:
    found: list[Part] = spec["template"]["spec"]["containers"]
    return found


def trainer(spec: Part) -> bool:
    name = spec.get("trainerContainer")
    return name is None or any(c["name"] == name for c in containers(spec))


def ruled_containers(spec: Part) -> list[str]:
    """Rules on exit codes of a container that is not there."""
    beside = spec["template"]["spec"].get("initContainers")
    known = {c["name"] for c in containers(spec)}
    known |= {c.get("name") for c in (beside if isinstance(beside, list) else ()) if isinstance(c, Mapping)}
    named = (
        (i, r.get("onExitCodes", {}).get("containerName")) for i, r in enumerate(spec["failurePolicy"].get("rules", ()))
    )
    return [f"failurePolicy.rules[{i}].onExitCodes.containerName" for i, name in named if name and name not in known]


def score_order_known(spec: Part) -> bool:
    attribute = spec["checkpoint"].get("scoreAttribute")
    known = "scoreOrder" in spec["checkpoint"] or any(o["metric"] == attribute for o in spec["objectives"])
    return attribute is None or known


def continuous_on_grid(spec: Part) -> list[str]:
    if spec["search"]["algorithm"] != "Grid":
        return []
    return [
        f"parameters[{i}].float" for i, p in enumerate(spec["parameters"]) if "float" in p and "step" not in p["float"]
    ]


def _equal(a: Any, b: Any) -> bool:
    """As the API server compares: 1 is 1.0, but not true."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return _same(a, b)


def changed(*fields: str) -> Transition:
    return lambda new, old: [f for f in fields if not _equal(new.get(f), old.get(f))]


def objectives_changed(new: Part, old: Part) -> list[str]:
    def aims(spec: Part) -> list[Any]:
        return [{k: v for k, v in o.items() if k != "target"} for o in spec["objectives"]]

    return [] if aims(new) == aims(old) else ["objectives"]


def enqueue_rewritten(new: Part, old: Part) -> list[str]:
    before = old.get("enqueue") or []
    return [] if _equal((new.get("enqueue") or [])[: len(before)], before) else ["enqueue"]
