"""The trainer's environment, read once: what the operator said, or what a plain run assumes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from trialkeeper import contract

PLAIN_STORE = "trialkeeper-store"
DEFAULT_MTBF = 6 * 3600.0


@dataclass(frozen=True)
class Environment:
    """Who this trainer is. `plain`: nobody started it but a person."""

    plain: bool
    namespace: str
    experiment: str
    trial: str
    index: int
    attempt: int
    pod_uid: str
    seed: int
    parameters: Mapping[str, Any]
    settings: Mapping[str, Any]
    folder: Path  # of the trial's prefix in a directory store
    scratch: Path
    termination_log: Path | None
    report_file: Path | None
    mtbf: float
    hold: int = 0  # the iteration at which this attempt waits for the drill's kill, 0 for none


def path_of(url: str) -> Path:
    """The path of a file URL.

    :raises ValueError: if it is another kind of URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise ValueError(f"{url!r} is not a file:// URL, and this version of trialkeeper knows no other store")
    return Path(unquote(parts.path))


def _json(env: Mapping[str, str], name: str) -> dict[str, Any]:
    text = env.get(name)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as broken:
        raise ValueError(f"{name} is not JSON: {broken}") from broken
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object: {text[:80]}")
    return value


def read(env: Mapping[str, str]) -> Environment:
    """The environment of this process; a plain run's if no operator has set it.

    :raises ValueError: if a variable has a value that cannot be used; the message names it.
    """
    if contract.ENV_STORE not in env or contract.ENV_ATTEMPT not in env:
        return _plain(env)
    return Environment(
        plain=False,
        namespace=env.get(contract.ENV_NAMESPACE, ""),
        experiment=env.get(contract.ENV_EXPERIMENT, ""),
        trial=env.get(contract.ENV_TRIAL, ""),
        index=int(env.get(contract.ENV_INDEX, "0")),
        attempt=int(env[contract.ENV_ATTEMPT]),
        pod_uid=env.get(contract.ENV_POD_UID, ""),
        seed=int(env.get(contract.ENV_SEED, "0")),
        parameters=_json(env, contract.ENV_PARAMS),
        settings=_json(env, contract.ENV_SETTINGS),
        folder=path_of(env[contract.ENV_STORE]) / env.get(contract.ENV_PREFIX, "trial"),
        scratch=Path(env.get(contract.ENV_SCRATCH) or _default_scratch()),
        termination_log=Path(env.get(contract.ENV_TERMINATION_LOG, "/dev/termination-log")),
        report_file=path_of(env[contract.ENV_REPORT]) if env.get(contract.ENV_REPORT) else None,
        mtbf=float(env.get(contract.ENV_MTBF_SECONDS, DEFAULT_MTBF)),
        hold=_hold(env),
    )


def _hold(env: Mapping[str, str]) -> int:
    places = [int(place) for place in env.get(contract.ENV_HOLD, "").split(",") if place]
    return dict(enumerate(places, 1)).get(int(env[contract.ENV_ATTEMPT]), 0)


def _default_scratch() -> str:
    from tempfile import gettempdir

    return str(Path(gettempdir()) / f"trialkeeper-{os.getuid()}-{os.getpid()}")


def _script() -> str:
    """A name for a plain run's trials: the script's, or what stands for it in a notebook or on stdin."""
    name = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "interactive").stem
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name) or "script"


def _plain(env: Mapping[str, str]) -> Environment:
    root = Path.cwd() / PLAIN_STORE / _script()
    numbers = sorted(int(p.name) for p in root.glob("[0-9]*") if p.name.isdigit())
    resume = env.get(contract.ENV_RESUME) == "1" and bool(numbers)
    number = numbers[-1] if resume else (numbers[-1] if numbers else 0) + 1
    folder = root / f"{number:05d}"
    attempts = [a for p in folder.glob("attempts/*.json") if (a := contract.parse_attempt_key(f"attempts/{p.name}"))]
    return Environment(
        plain=True,
        namespace="",
        experiment=_script(),
        trial=f"{_script()}-{number}",
        index=number,
        attempt=max(attempts, default=0) + 1,
        pod_uid=f"plain-{os.getpid()}-{os.urandom(4).hex()}",
        seed=int(env.get(contract.ENV_SEED, "0")),
        parameters=_json(env, contract.ENV_PARAMS),
        settings=_json(env, contract.ENV_SETTINGS),
        folder=folder,
        scratch=folder / "scratch",
        termination_log=None,
        report_file=None,
        mtbf=DEFAULT_MTBF,
    )
