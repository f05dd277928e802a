"""Rendering the chart: `helm template`, once for each set of values."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "trialkeeper"
MODES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
# What is rendered for; a helm that was built from source takes itself for one of 1.20.
KUBE_VERSION = "1.37.0"

Object = dict[str, Any]


@functools.cache
def tool(name: str) -> str:
    """A program: what HELM, KUBECTL, HELM_UNITTEST name, what is in PATH, or what the testbed builds."""
    named = os.environ.get(name.upper().replace("-", "_")) or shutil.which(name)
    if named:
        return named
    from testbed.programs import program

    return str(program(name))


class Refused(Exception):
    """Raised when helm refuses; the message is its own."""


def helm(*arguments: str) -> str:
    """What helm writes.

    :raises Refused: if it fails.
    """
    done = subprocess.run([tool("helm"), *arguments], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


@functools.cache
def text(mode: str, *sets: str, release: str = "tk", namespace: str = "trialkeeper-system") -> str:
    """The manifests of a mode, with further `--set-json` values."""
    more = [part for value in sets for part in ("--set-json", value)]
    where = ["--namespace", namespace, "--kube-version", KUBE_VERSION, "--values", str(MODES[mode])]
    return helm("template", release, str(CHART), *where, *more)


def objects(mode: str, *sets: str, **where: str) -> list[Object]:
    """The objects of a mode."""
    return [obj for obj in yaml.safe_load_all(text(mode, *sets, **where)) if obj]


def find(found: list[Object], kind: str, name: str | None = None) -> Object:
    """The one object of a kind (and name)."""
    [one] = [o for o in found if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    return one


def pod_specs(found: list[Object]) -> list[tuple[str, Object, Object]]:
    """(name, metadata, spec) of each pod, as it stands in whatever makes it."""
    pods = [(o["metadata"]["name"], o["metadata"], o["spec"]) for o in found if o["kind"] == "Pod"]
    for o in found:
        if o["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            template = o["spec"]["template"]
            pods.append((o["metadata"]["name"], template.get("metadata", {}), template["spec"]))
    return pods


def config(found: list[Object]) -> Object:
    """The operator's configuration."""
    maps = [o for o in found if o["kind"] == "ConfigMap" and "config.yaml" in o.get("data", {})]
    loaded: Object = yaml.safe_load(maps[0]["data"]["config.yaml"])
    return loaded


def rules(found: list[Object]) -> list[tuple[Object, Object]]:
    """(role, rule) of each rule that is granted."""
    return [(o, rule) for o in found if o["kind"] in ("Role", "ClusterRole") for rule in o["rules"]]


def one_line(refused: pytest.ExceptionInfo[Refused]) -> str:
    """A refusal without its line breaks."""
    return re.sub(r"\s+", " ", str(refused.value))
