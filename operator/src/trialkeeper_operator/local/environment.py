"""A container's environment, command and folder on this machine: Kubernetes' rules, without Kubernetes.

Pure. What a cluster would take from Secrets and ConfigMaps comes from variables of the same name in the
shell, since that is where people keep such things on a laptop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.\-][A-Za-z0-9_.\-]*)\)")
_FIELD_LABEL = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class CannotStart(ValueError):
    """Raised when a container cannot be started here; the message says what to change."""


def expand(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` replaced by its value; `$$` is a dollar sign, an unknown name stays as it is."""

    def replaced(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else values.get(match[1], match[0])

    return _REFERENCE.sub(replaced, text)


def variables(container: Mapping[str, Any], pod: Mapping[str, Any], shell: Mapping[str, str]) -> dict[str, str]:
    """The container's own variables, in order, each seeing those before it.

    :raises CannotStart: if one comes from somewhere that this machine does not have.
    """
    values: dict[str, str] = {}
    for entry in container.get("env") or ():
        name = entry["name"]
        if entry.get("valueFrom") is not None:
            found = _from(name, entry["valueFrom"], pod, shell)
            if found is not None:
                values[name] = found
        else:
            values[name] = expand(str(entry.get("value") or ""), values)
    return values


def _from(name: str, source: Any, pod: Mapping[str, Any], shell: Mapping[str, str]) -> str | None:
    if not isinstance(source, Mapping) or not all(isinstance(given, Mapping) for given in source.values()):
        raise CannotStart(f"env {name}: valueFrom takes one reference, for example secretKeyRef: {{name: s, key: k}}")
    for kind in ("secretKeyRef", "configMapKeyRef"):
        reference = source.get(kind)
        if reference:
            if name in shell:
                return shell[name]
            if reference.get("optional"):
                return None
            what = "Secret" if kind == "secretKeyRef" else "ConfigMap"
            raise CannotStart(
                f"env {name}: there are no {what}s on one machine: export {name}=... in the shell "
                f"(in a cluster it is key {reference.get('key')} of {what} {reference.get('name')})"
            )
    path = (source.get("fieldRef") or {}).get("fieldPath")
    if path is not None:
        return _field(name, path, pod)
    raise CannotStart(
        f"env {name}: valueFrom {', '.join(source) or 'nothing'} is not known on one machine: give a value"
    )


def _field(name: str, path: str, pod: Mapping[str, Any]) -> str:
    meta = pod["metadata"]
    match = _FIELD_LABEL.fullmatch(path)
    if match:
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    known = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta.get("namespace", ""),
        "metadata.uid": meta["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", "default"),
        "status.podIP": "127.0.0.1",
        "status.hostIP": "127.0.0.1",
    }
    if path not in known:
        raise CannotStart(f"env {name}: the field {path} is not known on one machine: give a value")
    return str(known[path])


def command(container: Mapping[str, Any], values: Mapping[str, str]) -> list[str]:
    """The command line.

    :raises CannotStart: if the template leaves it to the image, which is not here.
    """
    own = container.get("command") or []
    if not own:
        raise CannotStart(
            f"container {container['name']} has no command, and its image's entrypoint is not known on one machine: "
            'write it down, for example command: ["python", "train.py"]'
        )
    return [expand(str(word), values) for word in [*own, *(container.get("args") or [])]]


def folder(container: Mapping[str, Any], base: Path) -> Path:
    """Where the command runs: the YAML file's folder, or workingDir below it.

    :raises CannotStart: if there is no such folder.
    """
    found = base / (container.get("workingDir") or ".")
    if not found.is_dir():
        raise CannotStart(f"workingDir {container.get('workingDir')} is no folder on this machine (seen from {base})")
    return found


def trainer(pod: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """The container that is run here."""
    containers: Sequence[Mapping[str, Any]] = pod["spec"]["containers"]
    return next((c for c in containers if c["name"] == name), containers[0])


def gpus(container: Mapping[str, Any]) -> int:
    """How many GPUs a container asks for.

    :raises CannotStart: if that is no number.
    """
    resources = container.get("resources")
    for part in ("limits", "requests"):
        amounts = resources.get(part) if isinstance(resources, Mapping) else None
        asked = amounts.get("nvidia.com/gpu") if isinstance(amounts, Mapping) else None
        if asked is not None:
            if not str(asked).isdecimal():
                raise CannotStart(f"resources.{part}.nvidia.com/gpu is {asked!r}, not a whole number")
            return int(asked)
    return 0
