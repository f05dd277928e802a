"""The trainer's environment, read once: what the operator said, or what a plain run assumes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trialkeeper import contract, ranks
from trialkeeper.store.address import check, path_of

PLAIN_STORE = "trialkeeper-store"
ENV_PLAIN = "TRIALKEEPER_PLAIN"  # set by a plain run for its workers: attempt:folder
DEFAULT_MTBF = contract.PRIOR_MTBF_SECONDS
DEFAULT_GRACE = 30.0  # as Kubernetes has it
PLAIN_PATIENCE = 120.0  # seconds for a plain run's rank 0 to tell its folder


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
    store: str  # a URL
    prefix: str  # of the trial's keys in it
    scratch: Path
    termination_log: Path | None
    report: str  # a URL, empty for nowhere
    mtbf: float
    base: tuple[str, ...] = ()  # inherited checkpoints that the first attempt may begin from, the nearest first
    fork: str = ""  # the inherited checkpoint that it is to begin from and no other, empty if it is no fork
    hold: int = 0  # the iteration at which this attempt waits for the drill's kill, 0 for none
    grace: float = DEFAULT_GRACE  # seconds from SIGTERM to SIGKILL
    scratch_bytes: int = 0  # that may lie in `scratch`, 0: not known
    store_ca: str = ""
    report_ca: str = ""
    token_file: Path | None = None
    rank: int = 0  # this process among the trial's
    world: int = 1  # how many they are
    local_rank: int = 0  # among those of its pod
    local_world: int = 1
    life: int = 0  # how often a launcher has started all of them anew in this attempt
    master: str = ""  # a name of rank 0's pod, empty if nobody said one

    @property
    def one_pod(self) -> bool:
        """Whether all processes of the trial are in this pod."""
        return self.local_world >= self.world

    @property
    def folder(self) -> Path:
        """The trial's folder in a directory store.

        :raises ValueError: if the store is none.
        """
        return path_of(self.store) / self.prefix

    @property
    def place(self) -> str:
        """The URL of the trial's folder."""
        if self.store.startswith("file://"):
            return self.folder.as_uri()
        bucket, query, asked = self.store.partition("?")
        return f"{bucket.rstrip('/')}/{self.prefix}{query}{asked}"


def _number(env: Mapping[str, str], name: str, default: float) -> float:
    """A variable's number, not negative."""
    text = env.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is not a number: {text[:80]!r}")
    return value


def _whole(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name} is not a whole number: {text[:80]!r}") from None


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


def _url(env: Mapping[str, str], name: str, check_it: Callable[[str], object]) -> str:
    try:
        check_it(env[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return env[name]


def _check_report(url: str) -> None:
    host = url.removeprefix("https://").rstrip("/")
    if not url.startswith("https://"):
        path_of(url)
    elif not host or "@" in host or "/" in host or "?" in host:
        raise ValueError("it is not https://host:port")


def read(env: Mapping[str, str], *, worker: bool = False) -> Environment:
    """The environment of this process; a plain run's if no operator has set it, its parent's in a plain `worker`.

    :raises ValueError: if a variable has a value that cannot be used; the message names it.
    """
    place = ranks.place(env)
    if contract.ENV_STORE not in env or contract.ENV_ATTEMPT not in env:
        parent = env.get(ENV_PLAIN, "") if worker else ""
        return replace(_plain(env, parent or _told_by_rank_zero(place)), **asdict(place))
    return Environment(
        plain=False,
        namespace=env.get(contract.ENV_NAMESPACE, ""),
        experiment=env.get(contract.ENV_EXPERIMENT, ""),
        trial=env.get(contract.ENV_TRIAL, ""),
        index=_whole(env, contract.ENV_INDEX, 0),
        attempt=_whole(env, contract.ENV_ATTEMPT, 1),
        pod_uid=env.get(contract.ENV_POD_UID, ""),
        seed=_whole(env, contract.ENV_SEED, 0),
        parameters=_json(env, contract.ENV_PARAMS),
        settings=_json(env, contract.ENV_SETTINGS),
        store=_url(env, contract.ENV_STORE, check),
        prefix=env.get(contract.ENV_PREFIX, "trial"),
        scratch=Path(env.get(contract.ENV_SCRATCH) or _default_scratch(env)),
        termination_log=Path(env.get(contract.ENV_TERMINATION_LOG, "/dev/termination-log")),
        report=_url(env, contract.ENV_REPORT, _check_report) if env.get(contract.ENV_REPORT) else "",
        mtbf=_number(env, contract.ENV_MTBF_SECONDS, DEFAULT_MTBF),
        base=_bases(env, contract.ENV_BASE),
        fork=next(iter(_bases(env, contract.ENV_FORK)), ""),
        hold=_hold(env),
        grace=_number(env, contract.ENV_GRACE_SECONDS, DEFAULT_GRACE),
        scratch_bytes=max(0, _whole(env, contract.ENV_SCRATCH_BYTES, 0)),
        store_ca=env.get(contract.ENV_STORE_CA, ""),
        report_ca=env.get(contract.ENV_REPORT_CA, ""),
        token_file=Path(env[contract.ENV_TOKEN_FILE]) if env.get(contract.ENV_TOKEN_FILE) else None,
        **asdict(place),
    )


def _bases(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    keys = tuple(key for key in env.get(name, "").split(",") if key)
    for key in keys:
        if contract.parse_inherited_key(key) is None:
            raise ValueError(f"{name} names no checkpoint: {key[:80]!r}")
    return keys


def _hold(env: Mapping[str, str]) -> int:
    places = [int(place) for place in env.get(contract.ENV_HOLD, "").split(",") if place]
    return dict(enumerate(places, 1)).get(_whole(env, contract.ENV_ATTEMPT, 1), 0)


def _default_scratch(env: Mapping[str, str]) -> str:
    """The same folder for every process of a pod."""
    from tempfile import gettempdir

    pod = "".join(c for c in env.get(contract.ENV_POD_UID, "") if c.isalnum() or c == "-")
    return str(Path(gettempdir()) / f"trialkeeper-{os.getuid()}-{pod or env.get(contract.ENV_ATTEMPT)}")


def _script() -> str:
    """A name for a plain run's trials: the script's, or what stands for it in a notebook or on stdin."""
    name = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "interactive").stem
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name) or "script"


def _root() -> Path:
    return Path.cwd() / PLAIN_STORE / _script()


def told_file(life: int) -> Path:
    """Where a plain run's rank 0 tells the others its folder: they are all children of one launcher."""
    return _root() / f".ranks-{os.getppid()}-{life}"


def _told_by_rank_zero(place: ranks.Place) -> str:
    """What a plain run's rank 0 has told about its folder, empty in rank 0 itself.

    :raises ValueError: if it does not come.
    """
    if place.rank == 0:
        return ""
    end = time.monotonic() + PLAIN_PATIENCE
    while time.monotonic() < end:
        try:
            return told_file(place.life).read_text()
        except OSError:
            time.sleep(0.05)
    raise ValueError(
        f"rank {place.rank} has not heard from rank 0 in {PLAIN_PATIENCE:.0f} s: without an operator all processes "
        "must be on one machine, started by one launcher, and all must call trialkeeper"
    )


def _plain(env: Mapping[str, str], parent: str) -> Environment:
    root = _root()
    numbers = [int(p.name) for p in root.glob("[0-9]*") if p.name.isdigit()]
    newest = max(numbers, default=0)
    resumes = newest > 0 and env.get(contract.ENV_RESUME) == "1"
    folder = root / f"{newest if resumes else newest + 1:05d}"
    # A folder that is there by now is another run's, that has begun meanwhile.
    files = folder.glob("attempts/*.json") if resumes else ()
    attempts = [a for p in files if (a := contract.parse_attempt_key(f"attempts/{p.name}"))]
    attempt = max(attempts, default=0) + 1
    if parent:
        said, _, place = parent.partition(":")
        attempt, folder = int(said), Path(place)
    return Environment(
        plain=True,
        namespace="",
        experiment=folder.parent.name,
        trial=f"{folder.parent.name}-{int(folder.name)}",
        index=int(folder.name),
        attempt=attempt,
        pod_uid=f"plain-{os.getpid()}-{os.urandom(4).hex()}",
        seed=_whole(env, contract.ENV_SEED, 0),
        parameters=_json(env, contract.ENV_PARAMS),
        settings=_json(env, contract.ENV_SETTINGS),
        store=folder.parent.as_uri(),
        prefix=folder.name,
        scratch=folder / "scratch",
        termination_log=None,
        report="",
        mtbf=DEFAULT_MTBF,
    )


def reserved(env: Environment) -> Environment:
    """A plain run's environment with a folder that is its own, also when several start at once; told to its workers."""
    while env.attempt == 1:
        try:
            env.folder.mkdir(parents=True)
            break
        except FileExistsError:
            if not env.folder.is_dir():
                break
            number = int(env.folder.name) + 1
            folder = env.folder.with_name(f"{number:05d}")
            trial = f"{env.experiment}-{number}"
            env = replace(env, prefix=folder.name, scratch=folder / "scratch", index=number, trial=trial)
        except OSError:
            break  # said when something is to be written
    tell_workers(env)
    if env.world > 1:
        told = told_file(env.life)
        told.with_name(f"{told.name}.new").write_text(os.environ[ENV_PLAIN])
        told.with_name(f"{told.name}.new").replace(told)
    return env


def tell_workers(env: Environment) -> None:
    """Tell the children of a plain run's process which folder is theirs."""
    os.environ[ENV_PLAIN] = f"{env.attempt}:{env.folder}"
