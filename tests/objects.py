"""The table of good and bad Experiments: what the models say of each, and whether the API server says no, too.

Each entry changes a good object by `path: value`; GONE removes. `both` means that a real API server with our
CRDs refuses the object as well; `operator` that it lets it in, and the operator says `Accepted=False`; `strict`
that it refuses it when it is asked to be strict, as kubectl asks.
"""

from __future__ import annotations

import copy
import re
from typing import Any, NamedTuple

from builders import experiment

GONE = object()
Changes = dict[str, Any]


class Bad(NamedTuple):
    """Changes, the path and the sentence of the one problem, and who refuses it in a cluster."""

    changes: Changes
    path: str
    sentence: str
    by: str = "both"


def changed(changes: Changes) -> dict[str, Any]:
    """A good Experiment with changes, without what a server adds."""
    found = copy.deepcopy(experiment())
    found["metadata"] = {"name": "exp", "namespace": "default"}
    for path, value in changes.items():
        here: Any = found
        steps: list[Any] = [int(s) if s.isdigit() else s for s in re.split(r"[.\[\]]+", path) if s]
        for step in steps[:-1]:
            here = here[step] if isinstance(here, list) else here.setdefault(step, {})
        if value is GONE:
            del here[steps[-1]]
        elif isinstance(here, list) and steps[-1] == len(here):
            here.append(copy.deepcopy(value))  # what is changed below it must not change the table
        else:
            here[steps[-1]] = copy.deepcopy(value)
    return found


LR = {"name": "lr", "float": {"min": 1e-5, "max": 0.1}}
OPTIMIZER = {"name": "optimizer", "choice": {"values": ["sgd", "adam", 3, True]}}
POD = {"name": "t", "image": "i"}

GOOD: dict[str, Changes] = {
    "as it is": {},
    "four objectives": {"spec.objectives": [{"metric": f"m{i}"} for i in range(4)]},
    "a metric with slashes and dots": {"spec.objectives[0].metric": "val/loss.top-1"},
    "a target of zero": {"spec.objectives[0].target": 0},
    "maximised, best of the history": {"spec.objectives[0]": {"metric": "a", "direction": "Maximize", "value": "Best"}},
    "an int parameter": {"spec.parameters[1]": {"name": "n", "int": {"min": -3, "max": 5}}},
    "an int parameter on a log scale": {
        "spec.parameters[1]": {"name": "n", "int": {"min": 1, "max": 512, "scale": "Log"}}
    },
    "a stepped int": {"spec.parameters[1]": {"name": "n", "int": {"min": 8, "max": 64, "step": 8}}},
    "a stepped float": {"spec.parameters[1]": {"name": "n", "float": {"min": 0, "max": 1, "step": 0.1}}},
    "whole numbers as bounds of a float": {"spec.parameters[1]": {"name": "n", "float": {"min": 0, "max": 1}}},
    "choices of all types": {"spec.parameters[1]": OPTIMIZER},
    "1, the text 1 and true are three choices": {
        "spec.parameters[1]": {"name": "c", "choice": {"values": [1, "1", True]}}
    },
    "a fixed number": {"spec.parameters[1]": {"name": "epochs", "fixed": 20}},
    "a fixed text": {"spec.parameters[1]": {"name": "mode", "fixed": "fast"}},
    "a fixed false": {"spec.parameters[1]": {"name": "amp", "fixed": False}},
    "a conditional parameter": {
        "spec.parameters": [OPTIMIZER, {**LR, "name": "momentum", "when": {"parameter": "optimizer", "in": ["sgd"]}}]
    },
    "TPE with settings": {"spec.search": {"algorithm": "TPE", "seed": 7, "settings": {"startupTrials": 4}}},
    "a grid": {
        "spec.search.algorithm": "Grid",
        "spec.parameters": [OPTIMIZER, {"name": "n", "float": {"min": 0, "max": 1, "step": 0.5}}],
        "spec.maxTrials": GONE,
    },
    "enqueued points": {"spec.enqueue": [{"name": "first", "parameters": {"lr": 0.001}}, {"parameters": {}}]},
    "a fork, a fork at an iteration, and one with other parameters": {
        "spec.enqueue": [
            {"base": {"trial": "exp-0"}},
            {"name": "again", "base": {"trial": "exp-0", "iteration": 40}},
            {"base": {"trial": "other-12"}, "parameters": {"lr": 0.001}},
        ]
    },
    "all stop rules": {
        "spec.stop": {
            "maxIterations": 10,
            "metrics": {"loss": {"below": 0.1}, "acc": {"above": 0.9}},
            "timeoutSeconds": 3600,
            "plateau": {"results": 5},
        }
    },
    "no saves by count": {"spec.checkpoint": {"frequency": 0}},
    "every half minute": {"spec.checkpoint": {"intervalSeconds": 30}},
    "milestones, and a save that waits for its turn": {
        "spec.checkpoint": {"milestones": [1, 10, 10], "onBusy": "Wait"}
    },
    "the best three of another objective": {
        "spec.objectives": [{"metric": "loss"}, {"metric": "val/acc", "direction": "Maximize"}],
        "spec.checkpoint": {"numToKeep": 3, "scoreAttribute": "val/acc"},
    },
    "the best of a metric that is no objective": {
        "spec.checkpoint": {"numToKeep": 0, "scoreAttribute": "any/metric", "scoreOrder": "Max"}
    },
    "a budget": {"spec.checkpoint": {"budget": "50Gi"}},
    "a budget of a half": {"spec.checkpoint": {"budget": "1.5T", "scoreOrder": "Min"}},
    "a budget of bytes": {"spec.checkpoint.budget": "1000000"},
    "onNonFinite Continue": {"spec.onNonFinite": "Continue"},
    "a failure policy": {
        "spec.failurePolicy": {"maxFailures": 0, "maxFailedTrials": 0, "maxRepeatedErrors": 0, "backoffSeconds": 0}
    },
    "rules for failures": {
        "spec.failurePolicy.rules": [
            {
                "action": "Ignore",
                "onPodConditions": [{"type": "DisruptionTarget"}, {"type": "a/b", "status": "Unknown"}],
            },
            {"action": "FailTrial", "onExitCodes": {"operator": "In", "values": [1, 255]}},
            {"action": "Count", "onExitCodes": {"containerName": "fetch", "operator": "NotIn", "values": [3]}},
            {"action": "FailExperiment", "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [42]}},
        ],
        "spec.template.spec.initContainers": [{"name": "fetch", "image": "i"}],
    },
    "watchdogs": {
        "spec.timeouts": {"startSeconds": 60, "firstReportSeconds": 60, "progressSeconds": 600, "graceSeconds": 110}
    },
    "a bucket of one's own": {
        "spec.storage": {"s3": {"bucket": "team-a", "endpoint": "https://s3.local:9000", "secretName": "keys"}}
    },
    "a bucket by workload identity": {"spec.storage": {"s3": {"bucket": "team-a", "region": "eu-central-1"}}},
    "a volume of one's own": {"spec.storage": {"volume": {"claimName": "checkpoints"}}},
    "gone on from a snapshot": {"spec.restoreFrom": {"configMap": "exp-snapshot"}},
    "gone on from a snapshot with dots in its name": {"spec.restoreFrom.configMap": "exp-snapshot.2026-11-24"},
    "the snapshot goes with its experiment": {"spec.deletionPolicy": {"snapshot": "Delete"}},
    "everything goes with its experiment": {"spec.deletionPolicy": {"snapshot": "Delete", "checkpoints": "Delete"}},
    "a deletion policy that says nothing": {"spec.deletionPolicy": {}},
    "parallelism 0": {"spec.parallelism": 0},
    "one node": {"spec.nodes": 1},
    "a thousand nodes": {"spec.nodes": 1000},
    "suspended from the beginning": {"spec.suspend": True},
    "a sidecar, and who is the trainer": {
        "spec.template.spec.containers": [POD, {"name": "s", "image": "i"}],
        "spec.trainerContainer": "t",
    },
    "pod fields that we do not know": {
        "spec.template.spec.nodeSelector": {"pool": "spot"},
        "spec.template.spec.containers[0].resources": {"limits": {"nvidia.com/gpu": 1}},
    },
    "labels and annotations of pods": {"spec.template.metadata": {"labels": {"team": "a"}, "annotations": {"b": "c"}}},
    "a name of 40 characters": {"metadata.name": "a" * 40},
    "a name of one letter": {"metadata.name": "a"},
    "nulls where a field may be absent": {
        "spec.maxTrials": None,
        "spec.parallelism": None,
        "spec.stop": None,
        "spec.search": None,
        "spec.objectives[0].target": None,
        "spec.parameters[0].when": None,
        "spec.template.metadata": {"labels": None},
        "spec.template.spec.restartPolicy": None,
    },
    "the widest int": {"spec.parameters[1]": {"name": "n", "int": {"min": -(2**53), "max": 2**53}}},
    "the widest float": {"spec.parameters[1]": {"name": "n", "float": {"min": -1e18, "max": 1e18}}},
    "a step as large as the range": {"spec.parameters[1]": {"name": "n", "float": {"min": 0, "max": 1, "step": 1}}},
    "a million steps": {"spec.parameters[1]": {"name": "n", "float": {"min": 0, "max": 1, "step": 0.000001}}},
    "a condition on a stepped int": {
        "spec.parameters": [
            {"name": "layers", "int": {"min": 2, "max": 8, "step": 2}},
            {**LR, "when": {"parameter": "layers", "in": [4, 8.0]}},
        ]
    },
    "a condition on a condition": {
        "spec.parameters": [
            OPTIMIZER,
            {"name": "n", "int": {"min": 1, "max": 3}, "when": {"parameter": "optimizer", "in": [3, True]}},
            {**LR, "when": {"parameter": "n", "in": [1]}},
        ]
    },
    "parameters called like kinds and fields": {
        "spec.parameters": [{"name": n, "fixed": 1} for n in ("float", "int", "bool", "str", "name", "_")]
    },
    "a metric to stop at whose name is long": {"spec.stop": {"metrics": {"m" * 256: {"below": 1}}}},
    "a container with all that we look at": {
        "spec.template.spec.containers[0]": {
            "name": "trainer-1",
            "image": "registry.example/train:1",
            "command": ["python"],
            "args": ["train.py", ""],
            "env": [
                {"name": "A", "value": ""},
                {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            ],
            "workingDir": "src",
            "securityContext": {"runAsNonRoot": True},
        },
        "spec.template.spec.terminationGracePeriodSeconds": 0,
        "spec.template.spec.activeDeadlineSeconds": 60,
    },
    "everything is off": {
        "spec.checkpoint": {"frequency": 0, "intervalSeconds": 0, "atEnd": False},
        "spec.timeouts": {"startSeconds": 0, "firstReportSeconds": 0, "progressSeconds": 0},
    },
}

BAD: dict[str, Bad] = {
    "name too long": Bad(
        {"metadata.name": "a" * 41},
        "metadata.name",
        "must have at most 40 characters, since pods add index and attempt to it",
    ),
    "name with a capital": Bad({"metadata.name": "Exp"}, "metadata.name", "NAME"),
    "name with a dot": Bad({"metadata.name": "a.b"}, "metadata.name", "NAME"),
    "name that ends with a dash": Bad({"metadata.name": "a-"}, "metadata.name", "NAME"),
    "no objectives": Bad({"spec.objectives": []}, "spec.objectives", "must not be empty"),
    "objectives missing": Bad({"spec.objectives": GONE}, "spec.objectives", "is missing"),
    "five objectives": Bad(
        {"spec.objectives": [{"metric": f"m{i}"} for i in range(5)]},
        "spec.objectives",
        "has 5 entries, 4 are the limit",
    ),
    "an empty metric": Bad({"spec.objectives[0].metric": ""}, "spec.objectives[0].metric", "must not be empty"),
    "a metric of 257 characters": Bad(
        {"spec.objectives[0].metric": "m" * 257}, "spec.objectives[0].metric", "must have at most 256 characters"
    ),
    "the same metric twice": Bad(
        {"spec.objectives": [{"metric": "a"}, {"metric": "a"}]},
        "spec.objectives[1].metric",
        "stands twice: each objective needs a metric of its own",
    ),
    "an unknown direction": Bad(
        {"spec.objectives[0].direction": "min"},
        "spec.objectives[0].direction",
        "must be Minimize or Maximize, not the text 'min'",
    ),
    "a target that is text": Bad(
        {"spec.objectives[0].target": "0.1"}, "spec.objectives[0].target", "must be a number, not the text '0.1'"
    ),
    "no parameters": Bad({"spec.parameters": []}, "spec.parameters", "must not be empty"),
    "a parameter without a kind": Bad(
        {"spec.parameters[0]": {"name": "lr"}},
        "spec.parameters[0]",
        "needs exactly one of float, int, choice, fixed",
        "operator",
    ),
    "a parameter of two kinds": Bad(
        {"spec.parameters[0].int": {"min": 1, "max": 2}},
        "spec.parameters[0]",
        "needs exactly one of float, int, choice, fixed",
    ),
    "fixed and varied": Bad(
        {"spec.parameters[0].fixed": 1},
        "spec.parameters[0]",
        "needs exactly one of float, int, choice, fixed",
        "operator",
    ),
    "the same parameter twice": Bad(
        {"spec.parameters": [LR, LR]},
        "spec.parameters[1].name",
        "stands twice: each parameter needs a name of its own",
    ),
    "a parameter's name with a dash": Bad(
        {"spec.parameters[0].name": "learning-rate"},
        "spec.parameters[0].name",
        "is 'learning-rate': use letters, digits and _, and begin with a letter or _",
    ),
    "a parameter's name too long": Bad(
        {"spec.parameters[0].name": "p" * 64}, "spec.parameters[0].name", "must have at most 63 characters"
    ),
    "min above max": Bad(
        {"spec.parameters[0].float": {"min": 1, "max": 0.1}},
        "spec.parameters[0].float.min",
        "min must be below max (one value only? use fixed)",
    ),
    "min is max": Bad(
        {"spec.parameters[0].float": {"min": 1, "max": 1}},
        "spec.parameters[0].float.min",
        "min must be below max (one value only? use fixed)",
    ),
    "log scale from 0": Bad(
        {"spec.parameters[0].float": {"min": 0, "max": 1, "scale": "Log"}},
        "spec.parameters[0].float.min",
        "a log scale needs min above 0",
    ),
    "a step of 0": Bad(
        {"spec.parameters[0].float": {"min": 0, "max": 1, "step": 0}},
        "spec.parameters[0].float.step",
        "step must be above 0 and at most max - min",
    ),
    "a step larger than the range": Bad(
        {"spec.parameters[0].float": {"min": 0, "max": 1, "step": 2}},
        "spec.parameters[0].float.step",
        "step must be above 0 and at most max - min",
    ),
    "a step on a log scale": Bad(
        {"spec.parameters[0].float": {"min": 1, "max": 10, "step": 1, "scale": "Log"}},
        "spec.parameters[0].float.step",
        "step goes with a linear scale only: leave one of the two out",
    ),
    "a bound that is text": Bad(
        {"spec.parameters[0].float.min": "1e-5"},
        "spec.parameters[0].float.min",
        "must be a number, not the text '1e-5'",
    ),
    "a bound that is a boolean": Bad(
        {"spec.parameters[0].float.max": True}, "spec.parameters[0].float.max", "must be a number, not true"
    ),
    "a bound is missing": Bad({"spec.parameters[0].float.max": GONE}, "spec.parameters[0].float.max", "is missing"),
    "a broken int bound": Bad(
        {"spec.parameters[0]": {"name": "n", "int": {"min": 0.5, "max": 2}}},
        "spec.parameters[0].int.min",
        "must be a whole number, not 0.5",
    ),
    "int min above max": Bad(
        {"spec.parameters[0]": {"name": "n", "int": {"min": 3, "max": 2}}},
        "spec.parameters[0].int.min",
        "min must be below max (one value only? use fixed)",
    ),
    "int log scale from 0": Bad(
        {"spec.parameters[0]": {"name": "n", "int": {"min": 0, "max": 2, "scale": "Log"}}},
        "spec.parameters[0].int.min",
        "a log scale needs min above 0",
    ),
    "int step of 0": Bad(
        {"spec.parameters[0]": {"name": "n", "int": {"min": 0, "max": 2, "step": 0}}},
        "spec.parameters[0].int.step",
        "step must be above 0 and at most max - min",
    ),
    "an unknown scale": Bad(
        {"spec.parameters[0].float.scale": "log"},
        "spec.parameters[0].float.scale",
        "must be Linear or Log, not the text 'log'",
    ),
    "a kind that is a number": Bad(
        {"spec.parameters[0]": {"name": "n", "int": 5}}, "spec.parameters[0].int", "must be a mapping, not 5"
    ),
    "an int bound that no float can hold": Bad(
        {"spec.parameters[0]": {"name": "n", "int": {"min": 0, "max": 2**53 + 1}}},
        "spec.parameters[0].int.max",
        "must be at most 9007199254740992, not 9007199254740993",
    ),
    "a float bound beyond reason": Bad(
        {"spec.parameters[0].float.min": -2 * 10**18},
        "spec.parameters[0].float.min",
        "must be at least -1000000000000000000, not -2000000000000000000",
    ),
    "a step that gives millions of values": Bad(
        {"spec.parameters[0].float": {"min": 0, "max": 1, "step": 1e-7}},
        "spec.parameters[0].float.step",
        "step gives more than 1000000 values: make it larger, or leave it out",
    ),
    "fixed and null": Bad(
        {"spec.parameters[0]": {"name": "a", "fixed": None}},
        "spec.parameters[0]",
        "needs exactly one of float, int, choice, fixed",
        "operator",
    ),
    "a fixed value without end": Bad(
        {"spec.parameters[0]": {"name": "a", "fixed": "x" * 1025}},
        "spec.parameters[0].fixed",
        "must have at most 1024 characters",
        "operator",
    ),
    "names that differ by case": Bad(
        {"spec.parameters": [LR, {"name": "LR", "fixed": 1}]},
        "spec.parameters[1].name",
        "differs from another parameter's name by case only, and variables of trainers are upper-case",
        "operator",
    ),
    "a choice that is null": Bad(
        {"spec.parameters[0]": {"name": "c", "choice": {"values": ["a", None]}}},
        "spec.parameters[0].choice.values[1]",
        "must be text, a number, true or false, not nothing",
        "operator",
    ),
    "no choices": Bad(
        {"spec.parameters[0]": {"name": "c", "choice": {"values": []}}},
        "spec.parameters[0].choice.values",
        "must not be empty",
    ),
    "a choice that is a list": Bad(
        {"spec.parameters[0]": {"name": "c", "choice": {"values": [[1]]}}},
        "spec.parameters[0].choice.values[0]",
        "must be text, a number, true or false, not a list",
        "operator",
    ),
    "the same choice twice": Bad(
        {"spec.parameters[0]": {"name": "c", "choice": {"values": ["a", "b", "a"]}}},
        "spec.parameters[0].choice.values[2]",
        "stands twice: leave one out",
        "operator",
    ),
    "when on an unknown parameter": Bad(
        {"spec.parameters[0].when": {"parameter": "optimizer", "in": ["sgd"]}},
        "spec.parameters[0].when.parameter",
        "is not the name of a parameter",
    ),
    "when on a later parameter": Bad(
        {"spec.parameters": [{**LR, "when": {"parameter": "optimizer", "in": ["sgd"]}}, OPTIMIZER]},
        "spec.parameters[0].when.parameter",
        "must be declared before the parameter that depends on it",
        "operator",
    ),
    "when on itself": Bad(
        {"spec.parameters[0]": {**OPTIMIZER, "when": {"parameter": "optimizer", "in": [3]}}},
        "spec.parameters[0].when.parameter",
        "must be declared before the parameter that depends on it",
        "operator",
    ),
    "when on a value that does not exist": Bad(
        {"spec.parameters": [OPTIMIZER, {**LR, "when": {"parameter": "optimizer", "in": ["adagrad"]}}]},
        "spec.parameters[1].when.in[0]",
        "is not one of that parameter's values, so the parameter would never exist",
        "operator",
    ),
    "when on an int out of its range": Bad(
        {
            "spec.parameters": [
                {"name": "n", "int": {"min": 1, "max": 3}},
                {**LR, "when": {"parameter": "n", "in": [7]}},
            ]
        },
        "spec.parameters[1].when.in[0]",
        "is not one of that parameter's values, so the parameter would never exist",
        "operator",
    ),
    "when on a fixed parameter's other value": Bad(
        {"spec.parameters": [{"name": "n", "fixed": True}, {**LR, "when": {"parameter": "n", "in": [True, 1]}}]},
        "spec.parameters[1].when.in[1]",
        "is not one of that parameter's values, so the parameter would never exist",
        "operator",
    ),
    "when on a float": Bad(
        {"spec.parameters": [LR, {**OPTIMIZER, "when": {"parameter": "lr", "in": [0.1]}}]},
        "spec.parameters[1].when.parameter",
        "is a float, which no condition can hang on: use a choice, int or fixed parameter",
    ),
    "when without values": Bad(
        {"spec.parameters": [OPTIMIZER, {**LR, "when": {"parameter": "optimizer", "in": []}}]},
        "spec.parameters[1].when.in",
        "must not be empty",
    ),
    "an unknown algorithm": Bad(
        {"spec.search.algorithm": "Bayes"},
        "spec.search.algorithm",
        "Bayes is not known; there are: Grid, QMC, Random, TPE",
        "operator",
    ),
    "a negative seed": Bad({"spec.search.seed": -1}, "spec.search.seed", "must be at least 0, not -1"),
    "an unknown setting": Bad(
        {"spec.search": {"algorithm": "TPE", "settings": {"startup": 3}}},
        "spec.search.settings.startup",
        "is not a setting; TPE has startupTrials, candidates",
        "operator",
    ),
    "a setting of the wrong kind": Bad(
        {"spec.search": {"algorithm": "TPE", "settings": {"startupTrials": "four"}}},
        "spec.search.settings.startupTrials",
        "must be a whole number of at least 1, not 'four'",
        "operator",
    ),
    "a grid over a continuous parameter": Bad(
        {"spec.search.algorithm": "Grid"},
        "spec.parameters[0].float",
        "Grid needs finite parameters: give it a step, or use another algorithm",
    ),
    "an enqueued value out of range": Bad(
        {"spec.enqueue": [{"parameters": {"lr": 5}}]},
        "spec.enqueue[0].parameters.lr",
        "must be between 1e-05 and 0.1, not 5",
        "operator",
    ),
    "an enqueued parameter that does not exist": Bad(
        {"spec.enqueue": [{"parameters": {"rate": 0.1}}]},
        "spec.enqueue[0].parameters.rate",
        "is not a parameter; there are: lr",
        "operator",
    ),
    "an enqueued null": Bad(
        {"spec.enqueue": [{"parameters": {"lr": None}}]},
        "spec.enqueue[0].parameters.lr",
        "must be text, a number, true or false, not nothing",
        "operator",
    ),
    "a search's setting that is a mapping": Bad(
        {"spec.search": {"algorithm": "TPE", "settings": {"int": {"a": 1}}}},
        "spec.search.settings.int",
        "must be text, a number, true or false, not a mapping",
        "operator",
    ),
    "a search's setting that is null": Bad(
        {"spec.search": {"algorithm": "TPE", "settings": {"startupTrials": None}}},
        "spec.search.settings.startupTrials",
        "must be text, a number, true or false, not nothing",
        "operator",
    ),
    "when on nothing": Bad(
        {"spec.parameters": [OPTIMIZER, {**LR, "when": {"parameter": "optimizer", "in": [None]}}]},
        "spec.parameters[1].when.in[0]",
        "must be text, a number, true or false, not nothing",
        "operator",
    ),
    "a fork of nothing": Bad({"spec.enqueue": [{"base": {}}]}, "spec.enqueue[0].base.trial", "is missing"),
    "a fork at the start": Bad(
        {"spec.enqueue": [{"base": {"trial": "exp-0", "iteration": 0}}]},
        "spec.enqueue[0].base.iteration",
        "must be at least 1, not 0",
    ),
    "a fork of a path": Bad(
        {"spec.enqueue": [{"base": {"trial": "other/exp-0"}}]},
        "spec.enqueue[0].base.trial",
        "is 'other/exp-0': use lower-case letters, digits and -, and begin and end with a letter or digit",
    ),
    "enqueued names twice": Bad(
        {"spec.enqueue": [{"name": "a", "parameters": {}}, {"name": "a", "parameters": {}}]},
        "spec.enqueue[1].name",
        "stands twice: each enqueued entry needs a name of its own, or none",
        "operator",
    ),
    "no trials": Bad({"spec.maxTrials": 0}, "spec.maxTrials", "must be at least 1, not 0"),
    "too many trials": Bad({"spec.maxTrials": 10_001}, "spec.maxTrials", "must be at most 10000, not 10001"),
    "a negative parallelism": Bad({"spec.parallelism": -1}, "spec.parallelism", "must be at least 0, not -1"),
    "parallelism as text": Bad(
        {"spec.parallelism": "two"}, "spec.parallelism", "must be a whole number, not the text 'two'"
    ),
    "a stop rule with both sides": Bad(
        {"spec.stop": {"metrics": {"loss": {"below": 1, "above": 2}}}},
        "spec.stop.metrics.loss",
        "needs exactly one of below, above",
    ),
    "a stop rule with no side": Bad(
        {"spec.stop": {"metrics": {"loss": {}}}}, "spec.stop.metrics.loss", "needs exactly one of below, above"
    ),
    "a metric without a name to stop at": Bad(
        {"spec.stop": {"metrics": {"": {"below": 1}}}},
        "spec.stop.metrics.",
        "a metric's name has 1 to 256 characters",
    ),
    "a metric to stop at whose name is too long": Bad(
        {"spec.stop": {"metrics": {"m" * 257: {"below": 1}}}},
        "spec.stop.metrics." + "m" * 257,
        "a metric's name has 1 to 256 characters",
    ),
    "too many metrics to stop at": Bad(
        {"spec.stop": {"metrics": {f"m{i}": {"below": 1} for i in range(17)}}},
        "spec.stop.metrics",
        "has 17 entries, 16 are the limit",
    ),
    "a timeout beyond any clock": Bad(
        {"spec.stop": {"timeoutSeconds": 1e300}},
        "spec.stop.timeoutSeconds",
        "must be at most 315360000, not 1e+300",
    ),
    "stop after no iterations": Bad(
        {"spec.stop": {"maxIterations": 0}}, "spec.stop.maxIterations", "must be at least 1, not 0"
    ),
    "stop after no time": Bad(
        {"spec.stop": {"timeoutSeconds": 0}}, "spec.stop.timeoutSeconds", "must be above 0, not 0"
    ),
    "a plateau of one result": Bad(
        {"spec.stop": {"plateau": {"results": 1}}}, "spec.stop.plateau.results", "must be at least 2, not 1"
    ),
    "an unknown onNonFinite": Bad(
        {"spec.onNonFinite": "Ignore"}, "spec.onNonFinite", "must be Stop or Continue, not the text 'Ignore'"
    ),
    "a negative frequency": Bad(
        {"spec.checkpoint": {"frequency": -1}}, "spec.checkpoint.frequency", "must be at least 0, not -1"
    ),
    "atEnd as text": Bad(
        {"spec.checkpoint": {"atEnd": "yes"}}, "spec.checkpoint.atEnd", "must be true or false, not the text 'yes'"
    ),
    "a milestone before the first iteration": Bad(
        {"spec.checkpoint": {"milestones": [5, 0]}}, "spec.checkpoint.milestones[1]", "must be at least 1, not 0"
    ),
    "an unknown way to be busy": Bad(
        {"spec.checkpoint": {"onBusy": "Drop"}},
        "spec.checkpoint.onBusy",
        "must be Latest, Wait or Skip, not the text 'Drop'",
    ),
    "fewer checkpoints than none": Bad(
        {"spec.checkpoint": {"numToKeep": -1}}, "spec.checkpoint.numToKeep", "must be at least 0, not -1"
    ),
    "an unknown order": Bad(
        {"spec.checkpoint": {"scoreOrder": "max"}},
        "spec.checkpoint.scoreOrder",
        "must be Max or Min, not the text 'max'",
    ),
    "the best of what has no order": Bad(
        {"spec.checkpoint": {"numToKeep": 3, "scoreAttribute": "other"}},
        "spec.checkpoint.scoreAttribute",
        "is no objective's metric, so say in scoreOrder which is best: Max or Min",
    ),
    **{
        f"a budget of {budget}": Bad(
            {"spec.checkpoint": {"budget": budget}},
            "spec.checkpoint.budget",
            f"is {budget!r}: write a size of bytes above 0 with k, M, G, T, P, Ki, Mi, Gi, Ti or Pi, for example 50Gi",
        )
        for budget in ("0Gi", "50GB", "-1Gi", "50 Gi", "1e9")
    },
    "a budget that is a number": Bad(
        {"spec.checkpoint": {"budget": 50}}, "spec.checkpoint.budget", "must be text, not 50"
    ),
    "too many failures": Bad(
        {"spec.failurePolicy": {"maxFailures": 101}}, "spec.failurePolicy.maxFailures", "must be at most 100, not 101"
    ),
    "a rule about nothing": Bad(
        {"spec.failurePolicy.rules": [{"action": "Ignore"}]},
        "spec.failurePolicy.rules[0]",
        "needs exactly one of onExitCodes, onPodConditions",
    ),
    "a rule about two things": Bad(
        {
            "spec.failurePolicy.rules": [
                {
                    "action": "Ignore",
                    "onExitCodes": {"operator": "In", "values": [1]},
                    "onPodConditions": [{"type": "DisruptionTarget"}],
                }
            ]
        },
        "spec.failurePolicy.rules[0]",
        "needs exactly one of onExitCodes, onPodConditions",
    ),
    "a rule of a Job": Bad(
        {"spec.failurePolicy.rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}}]},
        "spec.failurePolicy.rules[0].action",
        "must be Ignore, Count, FailTrial or FailExperiment, not the text 'FailJob'",
    ),
    "a rule on success": Bad(
        {"spec.failurePolicy.rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [0]}}]},
        "spec.failurePolicy.rules[0].onExitCodes.values[0]",
        "must be at least 1, not 0",
    ),
    "a rule on no exit code": Bad(
        {"spec.failurePolicy.rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": []}}]},
        "spec.failurePolicy.rules[0].onExitCodes.values",
        "must not be empty",
    ),
    "a rule on a container that is not there": Bad(
        {
            "spec.failurePolicy.rules": [
                {"action": "Ignore", "onExitCodes": {"containerName": "main", "operator": "In", "values": [1]}}
            ]
        },
        "spec.failurePolicy.rules[0].onExitCodes.containerName",
        "is not the name of a container or init container in spec.template",
        "operator",
    ),
    "a rule on a condition whose status is a boolean": Bad(
        {
            "spec.failurePolicy.rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": True}]}
            ]
        },
        "spec.failurePolicy.rules[0].onPodConditions[0].status",
        "must be True, False or Unknown, not true",
    ),
    "no nodes": Bad({"spec.nodes": 0}, "spec.nodes", "must be at least 1, not 0"),
    "too many nodes": Bad({"spec.nodes": 1001}, "spec.nodes", "must be at most 1000, not 1001"),
    "half a node": Bad({"spec.nodes": 1.5}, "spec.nodes", "must be a whole number, not 1.5"),
    "no placements": Bad({"spec.placements": []}, "spec.placements", "must not be empty"),
    "five placements": Bad(
        {"spec.placements": [{"name": f"p{i}"} for i in range(5)]},
        "spec.placements",
        "has 5 entries, 4 are the limit",
    ),
    "the same placement twice": Bad(
        {"spec.placements": [{"name": "spot"}, {"name": "spot"}]},
        "spec.placements[1].name",
        "stands twice: each placement needs a name of its own",
    ),
    "a placement that no disruption may come to": Bad(
        {"spec.placements": [{"name": "spot", "maxDisruptions": 0}]},
        "spec.placements[0].maxDisruptions",
        "must be at least 1, not 0",
    ),
    "a placement that changes more of a pod": Bad(
        {"spec.placements": [{"name": "spot", "serviceAccountName": "admin"}]},
        "spec.placements[0].serviceAccountName",
        "is not a field; there are: name, maxDisruptions, nodeSelector, tolerations",
        "strict",
    ),
    "a placement's toleration that is text": Bad(
        {"spec.placements": [{"name": "spot", "tolerations": ["spot"]}]},
        "spec.placements[0].tolerations[0]",
        "must be a mapping, not the text 'spot'",
    ),
    "a start before it began": Bad(
        {"spec.timeouts": {"startSeconds": -1}}, "spec.timeouts.startSeconds", "must be at least 0, not -1"
    ),
    "no grace": Bad({"spec.timeouts": {"graceSeconds": 0}}, "spec.timeouts.graceSeconds", "must be at least 1, not 0"),
    "a trainer container that does not exist": Bad(
        {"spec.trainerContainer": "x"}, "spec.trainerContainer", "is not the name of a container in spec.template"
    ),
    "several containers and no word": Bad(
        {"spec.template.spec.containers[1]": POD},
        "spec.template.spec.containers",
        "there are several containers: say in spec.trainerContainer which of them is the trainer",
    ),
    "two containers of one name": Bad(
        {"spec.template.spec.containers": [POD, POD], "spec.trainerContainer": "t"},
        "spec.template.spec.containers[1].name",
        "stands twice: each container needs a name of its own",
    ),
    "no containers": Bad({"spec.template.spec.containers": []}, "spec.template.spec.containers", "must not be empty"),
    "no template": Bad({"spec.template": GONE}, "spec.template", "is missing"),
    "no image": Bad(
        {"spec.template.spec.containers[0].image": GONE}, "spec.template.spec.containers[0].image", "is missing"
    ),
    "a container's name that is none": Bad(
        {"spec.template.spec.containers[0].name": "A b"},
        "spec.template.spec.containers[0].name",
        "is 'A b': use lower-case letters, digits and -, and begin and end with a letter or digit",
    ),
    "a command that is text": Bad(
        {"spec.template.spec.containers[0].command": "python t.py"},
        "spec.template.spec.containers[0].command",
        "must be a list, not the text 'python t.py'",
    ),
    "an argument that is a number": Bad(
        {"spec.template.spec.containers[0].args": ["--epochs", 3]},
        "spec.template.spec.containers[0].args[1]",
        "must be text, not 3",
    ),
    "a variable that is a number": Bad(
        {"spec.template.spec.containers[0].env": [{"name": "A", "value": 1}]},
        "spec.template.spec.containers[0].env[0].value",
        "must be text, not 1",
    ),
    "variables as a mapping": Bad(
        {"spec.template.spec.containers[0].env": {"A": "1"}},
        "spec.template.spec.containers[0].env",
        "must be a list, not a mapping",
    ),
    "a grace that is text": Bad(
        {"spec.template.spec.terminationGracePeriodSeconds": "30s"},
        "spec.template.spec.terminationGracePeriodSeconds",
        "must be a whole number, not the text '30s'",
    ),
    "a label that is a number": Bad(
        {"spec.template.metadata": {"labels": {"str": 1}}},
        "spec.template.metadata.labels.str",
        "must be text, not 1",
    ),
    "a template's name": Bad(
        {"spec.template.metadata": {"name": "x"}},
        "spec.template.metadata.name",
        "is not a field; there are: labels, annotations",
        "strict",
    ),
    "a pod that restarts": Bad(
        {"spec.template.spec.restartPolicy": "Always"},
        "spec.template.spec.restartPolicy",
        "must be Never, not the text 'Always'",
    ),
    "a misspelt field": Bad(
        {"spec.paralelism": 2}, "spec.paralelism", "is not a field; did you mean parallelism?", "strict"
    ),
    "a misspelt field further down": Bad(
        {"spec.parameters[0].float.stp": 2},
        "spec.parameters[0].float.stp",
        "is not a field; did you mean step?",
        "strict",
    ),
    "a field that has nothing like it": Bad(
        {"spec.stop": {"whenever": 2}},
        "spec.stop.whenever",
        "is not a field; there are: maxIterations, metrics, timeoutSeconds, plateau",
        "strict",
    ),
    "a field of spec beside it": Bad(
        {"maxTrials": 4}, "maxTrials", "is not a field; did you mean spec.maxTrials?", "strict"
    ),
    "a field beside spec": Bad({"extra": 4}, "extra", "is not a field of an object", "strict"),
    "a store of no kind": Bad({"spec.storage": {}}, "spec.storage", "needs exactly one of s3, volume"),
    "two stores": Bad(
        {"spec.storage": {"s3": {"bucket": "abc"}, "volume": {"claimName": "c"}}},
        "spec.storage",
        "needs exactly one of s3, volume",
    ),
    "a bucket's name with capitals": Bad(
        {"spec.storage": {"s3": {"bucket": "Team"}}},
        "spec.storage.s3.bucket",
        "is 'Team': a bucket's name has 3 to 63 lower-case letters, digits, - and .",
    ),
    "an endpoint without a scheme": Bad(
        {"spec.storage": {"s3": {"bucket": "abc", "endpoint": "minio:9000"}}},
        "spec.storage.s3.endpoint",
        "is 'minio:9000': write http://host:port or https://host:port",
    ),
    "an endpoint with keys": Bad(
        {"spec.storage": {"s3": {"bucket": "abc", "endpoint": "http://a:b@minio:9000"}}},
        "spec.storage.s3.endpoint",
        "is 'http://a:b@minio:9000': write http://host:port or https://host:port",
    ),
    "a volume at no absolute path": Bad(
        {"spec.storage": {"volume": {"claimName": "c", "path": "data/x"}}},
        "spec.storage.volume.path",
        "is 'data/x': write an absolute path, without :",
    ),
    "gone on from nothing": Bad({"spec.restoreFrom": {}}, "spec.restoreFrom.configMap", "is missing"),
    "gone on from a snapshot without a name": Bad(
        {"spec.restoreFrom.configMap": ""}, "spec.restoreFrom.configMap", "must not be empty"
    ),
    "gone on from another namespace": Bad(
        {"spec.restoreFrom.configMap": "other/exp-snapshot"},
        "spec.restoreFrom.configMap",
        "is 'other/exp-snapshot': use lower-case letters, digits, - and ., and begin and end with a letter or digit",
    ),
    "gone on from a namespace by name": Bad(
        {"spec.restoreFrom": {"configMap": "exp-snapshot", "namespace": "other"}},
        "spec.restoreFrom.namespace",
        "is not a field; there are: configMap",
        "strict",
    ),
    "a name of a snapshot that is too long": Bad(
        {"spec.restoreFrom.configMap": "a" * 254}, "spec.restoreFrom.configMap", "must have at most 253 characters"
    ),
    "a deletion policy that is not known": Bad(
        {"spec.deletionPolicy.snapshot": "Retain"},
        "spec.deletionPolicy.snapshot",
        "must be Keep or Delete, not the text 'Retain'",
    ),
    "a deletion policy for what nobody deletes": Bad(
        {"spec.deletionPolicy": {"results": "Keep"}},
        "spec.deletionPolicy.results",
        "is not a field; there are: checkpoints, snapshot",
        "strict",
    ),
    "a deletion policy for checkpoints that is not known": Bad(
        {"spec.deletionPolicy.checkpoints": "keep"},
        "spec.deletionPolicy.checkpoints",
        "must be Keep or Delete, not the text 'keep'",
    ),
    "spec is a list": Bad({"spec": []}, "spec", "must be a mapping, not a list"),
    "objectives is a mapping": Bad(
        {"spec.objectives": {"metric": "loss"}}, "spec.objectives", "must be a list, not a mapping"
    ),
}
_NAME = "must begin with a letter and consist of lower-case letters, digits and -"
BAD = {name: bad._replace(sentence=_NAME) if bad.sentence == "NAME" else bad for name, bad in BAD.items()}


class Change(NamedTuple):
    """From one good Experiment to another; `path` and `sentence` of the problem, empty if it is allowed."""

    old: Changes
    new: Changes
    path: str = ""
    sentence: str = ""
    by: str = "both"


FIXED = "cannot change: create a new experiment"
CHANGES: dict[str, Change] = {
    "nothing": Change({}, {}),
    "more parallelism": Change({}, {"spec.parallelism": 9}),
    "more trials": Change({}, {"spec.maxTrials": 9}),
    "fewer trials": Change({}, {"spec.maxTrials": 3}, "spec.maxTrials", "can only grow"),
    "another stop rule": Change({}, {"spec.stop": {"maxIterations": 3}}),
    "another failure policy": Change({}, {"spec.failurePolicy": {"maxFailures": 9}}),
    "rules for failures, afterwards": Change(
        {}, {"spec.failurePolicy.rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [3]}}]}
    ),
    "placements, afterwards": Change({}, {"spec.placements": [{"name": "spot"}, {"name": "on-demand"}]}),
    "more nodes, afterwards": Change({}, {"spec.nodes": 2}, "spec.nodes", FIXED),
    "fewer nodes, afterwards": Change({"spec.nodes": 4}, {"spec.nodes": 2}, "spec.nodes", FIXED),
    "one node said, that was meant": Change({}, {"spec.nodes": 1}),
    "other placements": Change({"spec.placements": [{"name": "spot"}]}, {"spec.placements": [{"name": "on-demand"}]}),
    "another target": Change({}, {"spec.objectives[0].target": 0.1}),
    "another checkpoint policy": Change({}, {"spec.checkpoint": {"frequency": 5}}),
    "another number to keep, and another budget": Change(
        {"spec.checkpoint": {"numToKeep": 5, "budget": "5Gi"}}, {"spec.checkpoint": {"numToKeep": 1, "budget": "1Gi"}}
    ),
    "another metric": Change(
        {},
        {"spec.objectives[0].metric": "other"},
        "spec.objectives",
        "cannot change but for target: create a new experiment",
    ),
    "another parameter": Change({}, {"spec.parameters[0].float.max": 0.2}, "spec.parameters", FIXED),
    "another seed": Change({}, {"spec.search.seed": 2}, "spec.search", FIXED),
    "another image": Change({}, {"spec.template.spec.containers[0].image": "u"}, "spec.template", FIXED),
    "another onNonFinite": Change({}, {"spec.onNonFinite": "Continue"}, "spec.onNonFinite", FIXED),
    "a snapshot to go on from, afterwards": Change(
        {}, {"spec.restoreFrom.configMap": "exp-snapshot"}, "spec.restoreFrom", FIXED
    ),
    "another snapshot": Change(
        {"spec.restoreFrom.configMap": "exp-snapshot"},
        {"spec.restoreFrom.configMap": "other-snapshot"},
        "spec.restoreFrom",
        FIXED,
    ),
    "another store": Change(
        {"spec.storage": {"volume": {"claimName": "a"}}},
        {"spec.storage": {"volume": {"claimName": "b"}}},
        "spec.storage",
        FIXED,
    ),
    "no snapshot any more": Change({"spec.restoreFrom.configMap": "exp-snapshot"}, {}, "spec.restoreFrom", FIXED),
    "suspended, and going on": Change({"spec.suspend": True}, {"spec.suspend": False}),
    "another deletion policy": Change({}, {"spec.deletionPolicy": {"snapshot": "Delete", "checkpoints": "Delete"}}),
    "one more enqueued": Change(
        {"spec.enqueue": [{"parameters": {"lr": 0.01}}]},
        {"spec.enqueue": [{"parameters": {"lr": 0.01}}, {"parameters": {"lr": 0.02}}]},
    ),
    "an enqueued one rewritten": Change(
        {"spec.enqueue": [{"parameters": {"lr": 0.01}}]},
        {"spec.enqueue": [{"parameters": {"lr": 0.02}}]},
        "spec.enqueue",
        "can only be appended to",
        "operator",
    ),
    "another fixed value": Change(
        {"spec.parameters[0]": {"name": "a", "fixed": 1}},
        {"spec.parameters[0]": {"name": "a", "fixed": True}},
        "spec.parameters",
        FIXED,
    ),
    "another choice": Change(
        {"spec.parameters[0]": OPTIMIZER},
        {"spec.parameters[0]": {"name": "optimizer", "choice": {"values": ["sgd", "adam", 3, False]}}},
        "spec.parameters",
        FIXED,
    ),
    "parameters in another order": Change(
        {"spec.parameters": [LR, OPTIMIZER]}, {"spec.parameters": [OPTIMIZER, LR]}, "spec.parameters", FIXED
    ),
    "objectives in another order": Change(
        {"spec.objectives": [{"metric": "a"}, {"metric": "b"}]},
        {"spec.objectives": [{"metric": "b"}, {"metric": "a"}]},
        "spec.objectives",
        "cannot change but for target: create a new experiment",
    ),
    "a default that is written out": Change(
        {}, {"spec.search.settings": {}, "spec.objectives[0].value": "Last", "spec.onNonFinite": "Stop"}
    ),
    "a whole number that gets a fraction of nothing": Change(
        {"spec.parameters[0].float": {"min": 0, "max": 1}}, {"spec.parameters[0].float": {"min": 0.0, "max": 1.0}}
    ),
    "a first setting": Change(
        {"spec.search": {"algorithm": "TPE"}},
        {"spec.search": {"algorithm": "TPE", "settings": {"startupTrials": 5}}},
        "spec.search",
        FIXED,
    ),
    "the trainer is named": Change({}, {"spec.trainerContainer": "trainer"}, "spec.trainerContainer", FIXED),
    "another command": Change(
        {}, {"spec.template.spec.containers[0].command": ["python", "u.py"]}, "spec.template", FIXED
    ),
    "a node selector": Change({}, {"spec.template.spec.nodeSelector": {"pool": "spot"}}, "spec.template", FIXED),
    "another node selector": Change(
        {"spec.template.spec.nodeSelector": {"pool": "spot"}},
        {"spec.template.spec.nodeSelector": {"pool": "other"}},
        "spec.template",
        FIXED,
    ),
    "the node selector removed": Change(
        {"spec.template.spec.nodeSelector": {"pool": "spot"}}, {}, "spec.template", FIXED
    ),
    "maxTrials removed": Change({}, {"spec.maxTrials": GONE}, "spec.maxTrials", "can only grow"),
    "the enqueued ones removed": Change(
        {"spec.enqueue": [{"parameters": {"lr": 0.01}}]}, {}, "spec.enqueue", "can only be appended to"
    ),
    "the enqueued ones in another order": Change(
        {"spec.enqueue": [{"parameters": {"lr": 0.01}}, {"parameters": {"lr": 0.02}}]},
        {"spec.enqueue": [{"parameters": {"lr": 0.02}}, {"parameters": {"lr": 0.01}}]},
        "spec.enqueue",
        "can only be appended to",
        "operator",
    ),
    "a first enqueued one": Change({}, {"spec.enqueue": [{"parameters": {"lr": 0.01}}]}),
}
