"""Dictionaries as files without pickle: JSON with a few tags, arrays as .npy, nothing that runs when read."""

from __future__ import annotations

import binascii
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trialkeeper.errors import CheckpointCorrupt

FILE = "dict.json"
PICKLE_FILE = "dict.pickle"
_TAG = "__trialkeeper__"


def write(data: Mapping[Any, Any], folder: Path) -> None:
    """Write a dictionary of JSON values, tuples, bytes, and numpy arrays and scalars into a folder.

    :raises TypeError: if it holds anything else; the message says where.
    """
    arrays: list[Any] = []
    skeleton = _pack(data, "checkpoint", arrays)
    (folder / FILE).write_text(json.dumps(skeleton, separators=(",", ":")))
    for number, array in enumerate(arrays):
        import numpy as np

        np.save(folder / f"array-{number}.npy", array, allow_pickle=False)


def _pack(value: Any, path: str, arrays: list[Any]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {_TAG: "float", "value": repr(value)}
    if isinstance(value, (bytes, bytearray)):
        return {_TAG: "bytes", "value": binascii.b2a_base64(value).decode()}
    if isinstance(value, Mapping):
        if all(type(k) is str for k in value) and _TAG not in value:
            return {k: _pack(v, f"{path}[{k!r}]", arrays) for k, v in value.items()}
        pairs = [[_pack(k, f"{path} key", arrays), _pack(v, f"{path}[{k!r}]", arrays)] for k, v in value.items()]
        return {_TAG: "dict", "value": pairs}
    if type(value) in (list, tuple):
        items = [_pack(v, f"{path}[{i}]", arrays) for i, v in enumerate(value)]
        return items if type(value) is list else {_TAG: "tuple", "value": items}
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and not value.dtype.hasobject:
        if value.ndim == 0 and type(value).__name__ != "ndarray" and value.dtype.names is None:
            return {_TAG: "scalar", "type": value.dtype.str, "value": binascii.b2a_base64(value.tobytes()).decode()}
        arrays.append(value)
        return {_TAG: "array", "value": len(arrays) - 1}
    raise TypeError(
        f"{path} is {type(value).__name__}, which needs pickle: convert it to numbers, text, lists or numpy arrays, "
        'save files with Checkpoint.from_directory, or pass format="pickle"'
    )


def read(folder: Path) -> dict[Any, Any]:
    """The dictionary that `write` has put into a folder.

    :raises CheckpointCorrupt: if it is not one.
    """
    try:
        value = _unpack(json.loads((folder / FILE).read_text()), folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as broken:
        raise CheckpointCorrupt(f"the checkpoint holds no readable dictionary: {broken}") from broken
    if not isinstance(value, dict):
        raise CheckpointCorrupt("the checkpoint holds no dictionary")
    return value


def _unpack(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_unpack(v, folder) for v in value]
    if not isinstance(value, dict):
        return value
    tag, inner = value.get(_TAG), value.get("value")
    if tag is None:
        return {k: _unpack(v, folder) for k, v in value.items()}
    if tag == "float":
        return float(str(inner))
    if tag == "bytes":
        return binascii.a2b_base64(str(inner))
    if tag == "tuple":
        return tuple(_unpack(v, folder) for v in inner or ())
    if tag == "dict":
        return {_unpack(k, folder): _unpack(v, folder) for k, v in inner or ()}
    if tag == "scalar":
        import numpy as np

        return np.frombuffer(binascii.a2b_base64(str(inner)), dtype=np.dtype(str(value["type"])))[0]
    if tag == "array":
        import numpy as np

        return np.load(folder / f"array-{int(str(inner))}.npy", allow_pickle=False)
    raise ValueError(f"unknown tag {tag!r}")
