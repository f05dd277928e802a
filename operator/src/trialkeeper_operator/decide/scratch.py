"""The scratch folder of a pod: which volume it is, and how many bytes may lie in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

VOLUME = "trialkeeper-scratch"

_QUANTITY = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([numkMGTPE]?|[KMGTPE]i|[eE][+-]?[0-9]{1,2})")
_SUFFIXES = {
    **{suffix: Decimal(1000) ** n for n, suffix in enumerate(("n", "u", "m", "", *"kMGTPE"), -3)},
    **{f"{letter}i": Decimal(1024) ** n for n, letter in enumerate("KMGTPE", 1)},
}


def volume(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The source of the scratch volume: the template's own, if it lives as long as its pod, else an emptyDir."""
    volumes = spec.get("volumes")
    for found in volumes if isinstance(volumes, list) else ():
        if isinstance(found, dict) and found.get("name") == VOLUME:
            own = {kind: found[kind] for kind in ("emptyDir", "ephemeral") if isinstance(found.get(kind), dict)}
            if len(own) == 1:
                return own
    return {"emptyDir": {}}


def room(source: Mapping[str, Any], container: Mapping[str, Any]) -> int | None:
    """Bytes that may lie in the scratch folder before the kubelet evicts the pod, None if nothing says so.

    What lies in an emptyDir on disk counts as ephemeral storage as well, so the smaller of both limits holds.
    """
    directory, claim = source.get("emptyDir"), at(source, "ephemeral", "volumeClaimTemplate", "spec", "resources")
    limits = [at(directory, "sizeLimit"), at(claim, "requests", "storage")]
    if isinstance(directory, dict) and directory.get("medium") in (None, ""):
        limits.append(at(container, "resources", "limits", "ephemeral-storage"))
    return min((size for limit in limits if (size := size_of(limit))), default=None)


def at(value: Any, *path: str) -> Any:
    """A member of nested objects, None if there is none."""
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def size_of(quantity: Any) -> int | None:
    """Bytes of a Kubernetes quantity such as `20Gi`, None if it is none."""
    if isinstance(quantity, bool) or not isinstance(quantity, (int, float, str)):
        return None
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None:
        return None
    number, suffix = match.groups()
    try:
        factor = _SUFFIXES[suffix] if suffix in _SUFFIXES else Decimal(f"1{suffix}")
        return int(Decimal(number) * factor)
    except (InvalidOperation, OverflowError):
        return None
