"""How the other ranks find rank 0: a file in the scratch folder for those of its pod, an object in the store for all.

Both are of one attempt, and of one life of its processes: a launcher may start all of them anew.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trialkeeper import contract
from trialkeeper.ranks.wire import Address, Departed
from trialkeeper.store import AlreadyThere, Missing, Store

HOSTS = 32  # that are tried at most


def _encode(found: Address | Departed, attempt: int, life: int) -> bytes:
    body: dict[str, Any] = {"v": contract.VERSION, "attempt": attempt, "life": life}
    if isinstance(found, Departed):
        body["complete"] = found.complete
    else:
        body |= {"hosts": found.hosts[:HOSTS], "port": found.port, "token": found.token}
    return json.dumps(body).encode()


def decode(data: bytes, attempt: int, life: int) -> Address | Departed | None:
    """Where this attempt's rank 0 is, None for whatever does not say that."""
    try:
        body = json.loads(data) if len(data) <= contract.MESSAGE_LIMIT * 4 else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or [body.get(k) for k in ("v", "attempt", "life")] != [
        contract.VERSION,
        attempt,
        life,
    ]:
        return None
    if isinstance(body.get("complete"), bool):
        return Departed(body["complete"])
    hosts, port, token = body.get("hosts"), body.get("port"), body.get("token")
    if not isinstance(hosts, list) or not all(isinstance(h, str) and 0 < len(h) < 256 for h in hosts[:HOSTS]):
        return None
    if not isinstance(port, int) or not 0 < port < 65536 or not isinstance(token, str):
        return None
    return Address(tuple(hosts[:HOSTS]), port, token)


def _file(scratch: Path, attempt: int, life: int) -> Path:
    return scratch / f"ranks-a{attempt:06d}-{life}.json"


def publish_here(found: Address | Departed, scratch: Path, attempt: int, life: int) -> None:
    """Tell the ranks of this pod, in the place of what was told before.

    :raises OSError: if the scratch folder cannot be written.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    file = _file(scratch, attempt, life)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(_encode(found, attempt, life))
    os.replace(temporary, file)


def publish_everywhere(found: Address | Departed, store: Store, attempt: int, life: int) -> None:
    """Tell the ranks of other pods, in the place of what was told before.

    :raises OSError: if the store cannot be written.
    """
    key, data = contract.ranks_key(attempt, life), _encode(found, attempt, life)
    try:
        store.put_new(key, data)
    except AlreadyThere:
        store.delete(key)  # this one's, or a dead one's: two of one life cannot both have the pod's lock
        with contextlib.suppress(AlreadyThere):
            store.put_new(key, data)


def finder(
    scratch: Path, open_store: Callable[[], Store] | None, attempt: int, life: int
) -> Callable[[], Address | Departed | None]:
    """A function that looks for rank 0, in this pod and then, if a store is given, in there."""
    opened: list[Store] = []

    def find() -> Address | Departed | None:
        with contextlib.suppress(OSError):
            return decode(_file(scratch, attempt, life).read_bytes(), attempt, life)
        if open_store is not None:
            with contextlib.suppress(OSError, Missing):
                opened[:] = opened or [open_store()]
                return decode(opened[0].get(contract.ranks_key(attempt, life)), attempt, life)
        return None

    return find
