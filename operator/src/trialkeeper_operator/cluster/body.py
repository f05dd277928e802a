"""An object as a request brings it: what an API server asks of any body before it looks at what it means. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.reconcile.ports import Invalid, Object

Key = tuple[str, str, str]  # kind, namespace, name

KINDS = frozenset({names.EXPERIMENT, names.TRIAL, names.POD, names.CONFIG_MAP, names.SERVICE})
# Fields of metadata that are the server's: whatever a request says there is left out.
SERVER_FIELDS = (
    "uid",
    "creationTimestamp",
    "generation",
    "resourceVersion",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_ATOMS = frozenset({str, int, bool, type(None)})


def copy(value: Any) -> Any:
    """A deep copy of what JSON can express; several times as fast as the general one.

    :raises Invalid: if JSON cannot express it, as a number that is not finite or a key that is no text.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        copied = {key: item if type(item) in _ATOMS else copy(item) for key, item in value.items()}
        for key in copied:
            if type(key) is not str:
                raise Invalid(f"{key!r} is a key: a key must be text")
        return copied
    if kind is list:
        return [item if type(item) in _ATOMS else copy(item) for item in value]
    return _unusual(value)


def _unusual(value: Any) -> Any:
    """Floats, and the relatives of what JSON knows: they become what they are stored as."""
    if isinstance(value, float):
        if not isfinite(value):
            raise Invalid(f"{value} is no number that JSON has: leave it out, or write it as text")
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return copy(dict(value))
    if isinstance(value, (list, tuple)):
        return copy(list(value))
    raise Invalid(f"{value!r} is nothing that JSON has: write it as text")


def key_of(obj: Mapping[str, Any]) -> Key:
    """Where an object is stored.

    :raises Invalid: if its kind is not served, or it has no name or namespace.
    """
    kind, meta = obj.get("kind"), obj.get("metadata")
    if kind not in KINDS:
        raise Invalid(f"kind: {kind!r} is not served: it is one of {', '.join(sorted(KINDS))}")
    if not isinstance(meta, dict):
        raise Invalid(f"{kind}: metadata: name and namespace are needed")
    namespace, name = meta.get("namespace"), meta.get("name")
    for field, text in (("namespace", namespace), ("name", name)):
        if not isinstance(text, str) or not _NAME.fullmatch(text):
            raise Invalid(f"{kind}: metadata.{field}: {text!r} is no name: write a-z, 0-9, '-' and '.', at most 253")
    return str(kind), str(namespace), str(name)


def check(obj: Mapping[str, Any]) -> None:
    """What metadata may say.

    :raises Invalid: for labels or annotations that are not text, owners without uid, finalizers.
    """
    meta = obj["metadata"]
    where = f"{obj['kind']} {meta['name']}: metadata"
    for field in ("labels", "annotations"):
        pairs = meta.get(field) or {}
        if not isinstance(pairs, dict) or not all(type(text) is str for text in pairs.values()):
            raise Invalid(f"{where}.{field}: every value must be text: put it in quotes")
    if meta.get("finalizers"):
        raise Invalid(f"{where}.finalizers: nobody would remove them here: leave them out")
    references = meta.get("ownerReferences") or []
    if not isinstance(references, list) or not all(_is_reference(reference) for reference in references):
        raise Invalid(f"{where}.ownerReferences: each needs apiVersion, kind, name and uid")
    if sum(reference.get("controller") is True for reference in references) > 1:
        raise Invalid(f"{where}.ownerReferences: only one of them can be the controller")


def _is_reference(value: Any) -> bool:
    fields = ("apiVersion", "kind", "name", "uid")
    return isinstance(value, dict) and all(isinstance(value.get(f), str) and value[f] for f in fields)


def owners(obj: Object) -> frozenset[str]:
    """The uids of an object's owners."""
    return frozenset(reference["uid"] for reference in obj["metadata"].get("ownerReferences") or ())


def matches(obj: Object, labels: Mapping[str, str] | None) -> bool:
    """Whether an object has all of these labels."""
    if not labels:
        return True
    found = obj["metadata"].get("labels") or {}
    return all(found.get(name) == value for name, value in labels.items())
