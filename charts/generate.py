"""What the chart has from elsewhere: its CRDs from crds/, its README's table from values.yaml.

`python charts/generate.py [--check]`: without --check the files are written, with it those that differ are named.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
CHART = HERE / "trialkeeper"
BEGIN, END = "<!-- values: written by `make chart` -->\n", "<!-- end of values -->\n"

_KEEP = "  annotations: {helm.sh/resource-policy: keep}\n"
_HEAD = """\
{{- /* Written by `make chart` from crds/: change the models. */ -}}
{{- if .Values.crds.enabled }}
"""
_META = """\
  labels:
    {{- include "trialkeeper.labels" . | nindent 4 }}
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
"""


class NotOurs(ValueError):
    """Raised when a source has not the form that is relied on here."""


def crd(text: str) -> str:
    """A CRD as a template."""
    body = text.split("\n", 1)[1] if text.startswith("#") else text
    if "{{" in body or body.count(_KEEP) != 1:
        raise NotOurs("a CRD with braces, or without its annotation")
    return _HEAD + body.replace(_KEEP, _META) + "{{- end }}\n"


def documented(text: str) -> Iterator[tuple[str, str]]:
    """(path, comment) of each key in values.yaml that has a comment of its own right above it or above its parent."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if match := re.match(r" *# (.*)", line):
            comment.append(match[1])
        elif match := re.match(r"( *)([A-Za-z]+):", line):
            depth = len(match[1])
            path = [*((d, k) for d, k in path if d < depth), (depth, match[2])]
            if comment:
                yield ".".join(k for _, k in path), " ".join(comment)
            comment = []
        else:
            comment = []


def table(text: str) -> str:
    """The README's table of values."""
    values = yaml.safe_load(text)
    rows = ["| value | default | what it is |", "|---|---|---|"]
    for name, about in documented(text):
        value = values
        for step in name.split("."):
            value = value[step]
        if isinstance(value, dict) and any(found.startswith(f"{name}.") for found, _ in documented(text)):
            rows.append(f"| `{name}` | | {about} |")
            continue
        shown = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).split("\n...")[0].strip()
        rows.append(f"| `{name}` | `{shown}` | {about} |".replace("`''`", '`""`'))
    return "\n".join(rows) + "\n"


def files() -> dict[Path, str]:
    """Every file that is written here."""
    found = {
        CHART / "templates" / f"crd-{path.name}": crd(path.read_text())
        for path in sorted((HERE.parent / "crds").glob("*.yaml"))
    }
    readme = CHART / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise NotOurs("README.md without the place for its table")
    found[readme] = before + BEGIN + "\n" + table((CHART / "values.yaml").read_text()) + "\n" + END + after
    return found


def main(arguments: list[str]) -> int:
    """Write the files, or name those that differ."""
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" in arguments:
            sys.stderr.write(f"{path.relative_to(HERE.parent)} is stale: make chart\n")
        else:
            path.write_text(files()[path])
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
