"""Rules beyond types, each declared once: where it hangs, its CEL text for the API server, its Python twin.

The message says what to write instead, and is the same sentence from both. `TRIAL` and `EXPERIMENT` are all
of them; schema.py hangs the CEL texts into the CRDs, validate.py asks the twins.
"""

from __future__ import annotations

from trialkeeper_operator.api import names, twins
from trialkeeper_operator.api.rule import Rule
from trialkeeper_operator.api.twins import METRIC_LIMIT, STEPS, changed, unless


def _equal_cel(*fields: str) -> str:
    """CEL for fields that stay as they are, or stay absent."""
    return " && ".join(
        f"has(self.{f}) == has(oldSelf.{f}) && (!has(self.{f}) || self.{f} == oldSelf.{f})" for f in fields
    )


_PARAMETER = "spec.parameters[]"
_UNKNOWN_TYPE = "its values have no one type, and CEL cannot look at such fields"

EXPERIMENT: tuple[Rule, ...] = (
    Rule(
        "",
        f"must have at most {names.EXPERIMENT_NAME_LIMIT} characters, since pods add index and attempt to it",
        f"self.metadata.name.size() <= {names.EXPERIMENT_NAME_LIMIT}",
        unless("metadata.name", lambda o: len(o["metadata"]["name"]) <= names.EXPERIMENT_NAME_LIMIT),
    ),
    Rule(
        "",
        "must begin with a letter and consist of lower-case letters, digits and -",
        f"self.metadata.name.matches('{names.EXPERIMENT_NAME}')",
        unless("metadata.name", lambda o: names.is_experiment_name(o["metadata"]["name"])),
    ),
    Rule(
        _PARAMETER,
        "needs exactly one of float, int, choice, fixed",
        None,
        unless("", lambda p: twins.kinds(p) == 1),
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
        unless("min", lambda f: f["min"] < f["max"]),
    ),
    Rule(
        f"{_PARAMETER}.float",
        "a log scale needs min above 0",
        "self.scale != 'Log' || self.min > 0.0",
        unless("min", lambda f: f["scale"] != "Log" or f["min"] > 0),
    ),
    Rule(
        f"{_PARAMETER}.float",
        "step must be above 0 and at most max - min",
        "!has(self.step) || (self.step > 0.0 && self.step <= self.max - self.min)",
        unless("step", lambda f: "step" not in f or f["min"] >= f["max"] or 0 < f["step"] <= f["max"] - f["min"]),
    ),
    Rule(
        f"{_PARAMETER}.float",
        f"step gives more than {STEPS} values: make it larger, or leave it out",
        f"!has(self.step) || self.step <= 0.0 || self.max - self.min <= self.step * {STEPS}.0",
        unless("step", lambda f: f.get("step", 0) <= 0 or f["max"] - f["min"] <= f["step"] * STEPS),
    ),
    Rule(
        f"{_PARAMETER}.float",
        "step goes with a linear scale only: leave one of the two out",
        "!has(self.step) || self.scale == 'Linear'",
        unless("step", lambda f: "step" not in f or f["scale"] == "Linear"),
    ),
    Rule(
        f"{_PARAMETER}.int",
        "min must be below max (one value only? use fixed)",
        "self.min < self.max",
        unless("min", lambda i: i["min"] < i["max"]),
    ),
    Rule(
        f"{_PARAMETER}.int",
        "a log scale needs min above 0",
        "self.scale != 'Log' || self.min > 0",
        unless("min", lambda i: i["scale"] != "Log" or i["min"] > 0),
    ),
    Rule(
        f"{_PARAMETER}.int",
        "step must be above 0 and at most max - min",
        "self.step > 0 && self.step <= self.max - self.min",
        unless("step", lambda i: i["min"] >= i["max"] or 0 < i["step"] <= i["max"] - i["min"]),
    ),
    Rule(f"{_PARAMETER}.choice", "stands twice: leave one out", None, twins.twice, without_cel=_UNKNOWN_TYPE),
    Rule(
        "spec",
        "stands twice: each parameter needs a name of its own",
        None,
        lambda s: [f"parameters[{i}].name" for i in twins.later(s["parameters"], "name")],
        without_cel="the list is a map by name: the API server refuses it by itself",
    ),
    Rule(
        "spec",
        "differs from another parameter's name by case only, and variables of trainers are upper-case",
        None,
        twins.alike,
        without_cel="comparing each of 64 names with each other is beyond CEL's budget",
    ),
    Rule(
        "spec",
        "stands twice: each objective needs a metric of its own",
        None,
        lambda s: [f"objectives[{i}].metric" for i in twins.later(s["objectives"], "metric")],
        without_cel="the list is a map by metric: the API server refuses it by itself",
    ),
    Rule(
        "spec",
        "stands twice: each container needs a name of its own",
        None,
        lambda s: [f"template.spec.containers[{i}].name" for i in twins.later(twins.containers(s), "name")],
        without_cel="the list is a map by name: the API server refuses it by itself",
    ),
    Rule(
        "spec",
        "stands twice: each placement needs a name of its own",
        None,
        lambda s: [f"placements[{i}].name" for i in twins.later(s.get("placements"), "name")],
        without_cel="the list is a map by name: the API server refuses it by itself",
    ),
    Rule(
        "spec",
        "stands twice: each enqueued entry needs a name of its own, or none",
        None,
        lambda s: [f"enqueue[{i}].name" for i in twins.later(s.get("enqueue"), "name")],
        without_cel="comparing each of 1,000 entries with each other is beyond CEL's budget",
    ),
    Rule(
        "spec",
        "is not the name of a parameter",
        "self.parameters.all(p, !has(p.when) || self.parameters.exists(q, q.name == p.when.parameter))",
        twins.when_known,
    ),
    Rule(
        "spec",
        "must be declared before the parameter that depends on it",
        None,
        twins.when_earlier,
        without_cel="CEL knows no positions",
    ),
    Rule(
        "spec",
        "is a float, which no condition can hang on: use a choice, int or fixed parameter",
        "self.parameters.all(p, !has(p.when) || "
        "!self.parameters.exists(q, q.name == p.when.parameter && has(q.float)))",
        twins.when_discrete,
    ),
    Rule(
        "spec",
        "is not one of that parameter's values, so the parameter would never exist",
        None,
        twins.when_possible,
        without_cel=_UNKNOWN_TYPE,
    ),
    Rule(
        "spec.stop",
        f"a metric's name has 1 to {METRIC_LIMIT} characters",
        f"!has(self.metrics) || self.metrics.all(m, m.size() >= 1 && m.size() <= {METRIC_LIMIT})",
        twins.metric_names,
    ),
    Rule(
        "spec.stop.metrics{}",
        "needs exactly one of below, above",
        "has(self.below) != has(self.above)",
        unless("", lambda t: ("below" in t) != ("above" in t)),
    ),
    Rule(
        "spec",
        "is no objective's metric, so say in scoreOrder which is best: Max or Min",
        "!has(self.checkpoint) || !has(self.checkpoint.scoreAttribute) || has(self.checkpoint.scoreOrder) || "
        "self.objectives.exists(o, o.metric == self.checkpoint.scoreAttribute)",
        unless("checkpoint.scoreAttribute", twins.score_order_known),
    ),
    Rule(
        "spec.failurePolicy.rules[]",
        "needs exactly one of onExitCodes, onPodConditions",
        "has(self.onExitCodes) != has(self.onPodConditions)",
        unless("", lambda r: ("onExitCodes" in r) != ("onPodConditions" in r)),
    ),
    Rule(
        "spec",
        "is not the name of a container or init container in spec.template",
        None,
        twins.ruled_containers,
        without_cel="init containers are not declared, and CEL sees declared fields only",
    ),
    Rule(
        "spec.storage",
        "needs exactly one of s3, volume",
        "has(self.s3) != has(self.volume)",
        unless("", lambda s: ("s3" in s) != ("volume" in s)),
    ),
    Rule(
        "spec",
        "is not the name of a container in spec.template",
        "!has(self.trainerContainer) || self.template.spec.containers.exists(c, c.name == self.trainerContainer)",
        unless("trainerContainer", twins.trainer),
    ),
    Rule(
        "spec",
        "there are several containers: say in spec.trainerContainer which of them is the trainer",
        "has(self.trainerContainer) || self.template.spec.containers.size() == 1",
        unless("template.spec.containers", lambda s: "trainerContainer" in s or len(twins.containers(s)) == 1),
    ),
    Rule(
        "spec",
        "Grid needs finite parameters: give it a step, or use another algorithm",
        "!has(self.search.algorithm) || self.search.algorithm != 'Grid' || "
        "self.parameters.all(p, !has(p.float) || has(p.float.step))",
        twins.continuous_on_grid,
    ),
    Rule(
        "spec",
        "cannot change: create a new experiment",
        _equal_cel("search", "trainerContainer", "onNonFinite", "restoreFrom", "storage", "nodes"),
        transition=changed("search", "trainerContainer", "onNonFinite", "restoreFrom", "storage", "nodes"),
    ),
    Rule(
        "spec",
        "cannot change: create a new experiment",
        "self.parameters == oldSelf.parameters && "  # lists with keys are equal in any order
        "self.parameters.map(p, p.name) == oldSelf.parameters.map(p, p.name)",
        transition=changed("parameters"),
    ),
    Rule(
        "spec",
        "cannot change: create a new experiment",
        "self.template == oldSelf.template && self.template.spec.containers.map(c, c.name) == "
        "oldSelf.template.spec.containers.map(c, c.name)",
        transition=changed("template"),
    ),
    Rule(
        "spec",
        "cannot change but for target: create a new experiment",
        "self.objectives.map(o, [o.metric, o.direction, o.value]) == "
        "oldSelf.objectives.map(o, [o.metric, o.direction, o.value])",
        transition=twins.objectives_changed,
    ),
    Rule(
        "spec",
        "must not become shorter: enqueue can only be appended to",
        "!has(oldSelf.enqueue) || oldSelf.enqueue.size() == 0 || "
        "(has(self.enqueue) && self.enqueue.size() >= oldSelf.enqueue.size())",
        None,
    ),
    Rule(
        "spec",
        "can only be appended to",
        None,
        transition=twins.enqueue_rewritten,
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
        "cannot change: only spec.desired and spec.retries may",
        _equal_cel(
            "experiment", "experimentUid", "index", "name", "parameters", "note", "seed", "base", "enqueued", "fork"
        ),
        transition=changed(
            "experiment", "experimentUid", "index", "name", "parameters", "note", "seed", "base", "enqueued", "fork"
        ),
    ),
    Rule(
        "spec",
        "can only grow",
        "!has(oldSelf.retries) || (has(self.retries) && self.retries >= oldSelf.retries)",
        transition=lambda new, old: ["retries"] if new.get("retries", 0) < old.get("retries", 0) else [],
    ),
)
