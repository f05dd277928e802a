"""Rules beyond types, each declared once: where it hangs, its CEL text for the API server, its Python twin.

A twin gets the part of the object (as YAML has it, defaults filled in) that the rule hangs on, and answers
with the paths below it that break the rule; a transition's twin also gets the part's old value. `cel` None
means that CEL cannot say it, for the reason in `without_cel`; such a rule is checked when the operator sees
the object. The message says what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trialkeeper_operator.api import names

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


def _unless(path: str, holds: Callable[[Any], bool]) -> Twin:
    return lambda part: [] if holds(part) else [path]


def _kinds(parameter: Part) -> int:
    return sum(kind in parameter for kind in ("float", "int", "choice", "fixed"))


def _later(entries: Any, key: str) -> list[int]:
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


def _twice(choice: Part) -> list[str]:
    values = choice["values"]
    return [f"values[{i}]" for i, v in enumerate(values) if any(_same(v, w) for w in values[:i])]


def _when_known(spec: Part) -> list[str]:
    known = {p["name"] for p in spec["parameters"]}
    return [
        f"parameters[{i}].when.parameter"
        for i, p in enumerate(spec["parameters"])
        if "when" in p and p["when"]["parameter"] not in known
    ]


def _when_earlier(spec: Part) -> list[str]:
    order = {p["name"]: i for i, p in reversed(list(enumerate(spec["parameters"])))}
    return [
        f"parameters[{i}].when.parameter"
        for i, p in enumerate(spec["parameters"])
        if "when" in p and order.get(p["when"]["parameter"], -1) >= i
    ]


def _when_possible(spec: Part) -> list[str]:
    values = {p["name"]: p["choice"]["values"] for p in spec["parameters"] if "choice" in p}
    return [
        f"parameters[{i}].when.in[{k}]"
        for i, p in enumerate(spec["parameters"])
        if "when" in p and p["when"]["parameter"] in values
        for k, wanted in enumerate(p["when"]["in"])
        if not any(_same(wanted, v) for v in values[p["when"]["parameter"]])
    ]


def _containers(spec: Part) -> list[Part]:
    found: list[Part] = spec["template"]["spec"]["containers"]
    return found


def _trainer(spec: Part) -> bool:
    name = spec.get("trainerContainer")
    return name is None or any(c["name"] == name for c in _containers(spec))


def _continuous_on_grid(spec: Part) -> list[str]:
    if spec["search"]["algorithm"] != "Grid":
        return []
    return [
        f"parameters[{i}].float" for i, p in enumerate(spec["parameters"]) if "float" in p and "step" not in p["float"]
    ]


def _changed(*fields: str) -> Transition:
    return lambda new, old: [f for f in fields if new.get(f) != old.get(f)]


def _equal_cel(*fields: str) -> str:
    """CEL for fields that stay as they are, or stay absent."""
    return " && ".join(
        f"has(self.{f}) == has(oldSelf.{f}) && (!has(self.{f}) || self.{f} == oldSelf.{f})" for f in fields
    )


def _objectives_changed(new: Part, old: Part) -> list[str]:
    def aims(spec: Part) -> list[Any]:
        return [{k: v for k, v in o.items() if k != "target"} for o in spec["objectives"]]

    return [] if aims(new) == aims(old) else ["objectives"]


def _enqueue_rewritten(new: Part, old: Part) -> list[str]:
    before = old.get("enqueue") or []
    return [] if (new.get("enqueue") or [])[: len(before)] == before else ["enqueue"]


_PARAMETER = "spec.parameters[]"
_UNKNOWN_TYPE = "its values have no one type, and CEL cannot look at such fields"

EXPERIMENT: tuple[Rule, ...] = (
    Rule(
        "",
        f"must have at most {names.EXPERIMENT_NAME_LIMIT} characters, since pods add index and attempt to it",
        f"self.metadata.name.size() <= {names.EXPERIMENT_NAME_LIMIT}",
        _unless("metadata.name", lambda o: len(o["metadata"]["name"]) <= names.EXPERIMENT_NAME_LIMIT),
    ),
    Rule(
        "",
        "must begin with a letter and consist of lower-case letters, digits and -",
        f"self.metadata.name.matches('{names.EXPERIMENT_NAME}')",
        _unless("metadata.name", lambda o: names.is_experiment_name(o["metadata"]["name"])),
    ),
    Rule(
        _PARAMETER,
        "needs exactly one of float, int, choice, fixed",
        None,
        _unless("", lambda p: _kinds(p) == 1),
        without_cel=_UNKNOWN_TYPE,
    ),
    Rule(
        _PARAMETER,
        "needs no more than one of float, int, choice",
        "[has(self.float), has(self.int), has(self.choice)].filter(x, x).size() <= 1",
        None,
    ),
    Rule(
        f"{_PARAMETER}.float",
        "min must be below max (one value only? use fixed)",
        "self.min < self.max",
        _unless("min", lambda f: f["min"] < f["max"]),
    ),
    Rule(
        f"{_PARAMETER}.float",
        "a log scale needs min above 0",
        "self.scale != 'Log' || self.min > 0.0",
        _unless("min", lambda f: f["scale"] != "Log" or f["min"] > 0),
    ),
    Rule(
        f"{_PARAMETER}.float",
        "step must be above 0 and at most max - min",
        "!has(self.step) || (self.step > 0.0 && self.step <= self.max - self.min)",
        _unless("step", lambda f: "step" not in f or f["min"] >= f["max"] or 0 < f["step"] <= f["max"] - f["min"]),
    ),
    Rule(
        f"{_PARAMETER}.float",
        "step goes with a linear scale only: leave one of the two out",
        "!has(self.step) || self.scale == 'Linear'",
        _unless("step", lambda f: "step" not in f or f["scale"] == "Linear"),
    ),
    Rule(
        f"{_PARAMETER}.int",
        "min must be below max (one value only? use fixed)",
        "self.min < self.max",
        _unless("min", lambda i: i["min"] < i["max"]),
    ),
    Rule(
        f"{_PARAMETER}.int",
        "a log scale needs min above 0",
        "self.scale != 'Log' || self.min > 0",
        _unless("min", lambda i: i["scale"] != "Log" or i["min"] > 0),
    ),
    Rule(
        f"{_PARAMETER}.int",
        "step must be above 0 and at most max - min",
        "self.step > 0 && self.step <= self.max - self.min",
        _unless("step", lambda i: i["min"] >= i["max"] or 0 < i["step"] <= i["max"] - i["min"]),
    ),
    Rule(f"{_PARAMETER}.choice", "stands twice: leave one out", None, _twice, without_cel=_UNKNOWN_TYPE),
    Rule(
        "spec",
        "stands twice: each parameter needs a name of its own",
        None,
        lambda s: [f"parameters[{i}].name" for i in _later(s["parameters"], "name")],
        without_cel="the list is a map by name: the API server refuses it by itself",
    ),
    Rule(
        "spec",
        "stands twice: each objective needs a metric of its own",
        None,
        lambda s: [f"objectives[{i}].metric" for i in _later(s["objectives"], "metric")],
        without_cel="the list is a map by metric: the API server refuses it by itself",
    ),
    Rule(
        "spec",
        "stands twice: each container needs a name of its own",
        None,
        lambda s: [f"template.spec.containers[{i}].name" for i in _later(_containers(s), "name")],
        without_cel="the list is a map by name: the API server refuses it by itself",
    ),
    Rule(
        "spec",
        "stands twice: each enqueued entry needs a name of its own, or none",
        None,
        lambda s: [f"enqueue[{i}].name" for i in _later(s.get("enqueue"), "name")],
        without_cel="comparing each of 1,000 entries with each other is beyond CEL's budget",
    ),
    Rule(
        "spec",
        "is not the name of a parameter",
        "self.parameters.all(p, !has(p.when) || self.parameters.exists(q, q.name == p.when.parameter))",
        _when_known,
    ),
    Rule(
        "spec",
        "must be declared before the parameter that depends on it",
        None,
        lambda s: [p for p in _when_earlier(s) if p not in _when_known(s)],
        without_cel="CEL knows no positions",
    ),
    Rule(
        "spec",
        "is not one of that parameter's values, so the parameter would never exist",
        None,
        _when_possible,
        without_cel=_UNKNOWN_TYPE,
    ),
    Rule(
        "spec.stop.metrics{}",
        "needs exactly one of below, above",
        "has(self.below) != has(self.above)",
        _unless("", lambda t: ("below" in t) != ("above" in t)),
    ),
    Rule(
        "spec",
        "is not the name of a container in spec.template",
        "!has(self.trainerContainer) || self.template.spec.containers.exists(c, c.name == self.trainerContainer)",
        _unless("trainerContainer", _trainer),
    ),
    Rule(
        "spec",
        "there are several containers: say in spec.trainerContainer which of them is the trainer",
        "has(self.trainerContainer) || self.template.spec.containers.size() == 1",
        _unless("template.spec.containers", lambda s: "trainerContainer" in s or len(_containers(s)) == 1),
    ),
    Rule(
        "spec",
        "Grid needs finite parameters: give it a step, or use another algorithm",
        "!has(self.search.algorithm) || self.search.algorithm != 'Grid' || "
        "self.parameters.all(p, !has(p.float) || has(p.float.step))",
        _continuous_on_grid,
    ),
    Rule(
        "spec",
        "cannot change: create a new experiment",
        _equal_cel("search", "trainerContainer", "onNonFinite"),
        transition=_changed("search", "trainerContainer", "onNonFinite"),
    ),
    Rule(
        "spec",
        "cannot change: create a new experiment",
        "self.parameters == oldSelf.parameters",
        transition=_changed("parameters"),
    ),
    Rule(
        "spec",
        "cannot change: create a new experiment",
        "self.template == oldSelf.template",
        transition=_changed("template"),
    ),
    Rule(
        "spec",
        "cannot change but for target: create a new experiment",
        "self.objectives.size() == oldSelf.objectives.size() && self.objectives.all(o, oldSelf.objectives.exists(p, "
        "p.metric == o.metric && p.direction == o.direction && p.value == o.value))",
        transition=_objectives_changed,
    ),
    Rule(
        "spec",
        "can only be appended to",
        None,
        transition=_enqueue_rewritten,
        without_cel="CEL knows no prefixes of lists",
    ),
    Rule(
        "spec",
        "can only grow",
        "!has(oldSelf.maxTrials) || (has(self.maxTrials) && self.maxTrials >= oldSelf.maxTrials)",
        transition=lambda new, old: (
            ["maxTrials"] if old.get("maxTrials") and new.get("maxTrials", 0) < old["maxTrials"] else []
        ),
    ),
)

TRIAL: tuple[Rule, ...] = (
    Rule(
        "spec",
        "cannot change: only spec.desired may",
        _equal_cel("experiment", "experimentUid", "index", "name", "parameters", "note", "seed"),
        transition=_changed("experiment", "experimentUid", "index", "name", "parameters", "note", "seed"),
    ),
)


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
