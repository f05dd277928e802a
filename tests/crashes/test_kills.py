"""SIGKILL for trainers and for their upload processes, at any instant: nothing torn, nothing lost, nothing left behind.

Each attempt begins while the upload process of the one before may still be at work. TRIALKEEPER_KILLS says how many
kills each store gets (1,000 take some minutes), TRIALKEEPER_SEED which instants.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import proof
from fake_s3 import fake_s3
from minio_server import KEYS, minio
from stores import ASKED
from trainers import PREAMBLE, BucketPlace, Place
from trialkeeper import contract, environment, manifest
from trialkeeper.store import Store
from trialkeeper.store.opening import open_store, open_tree
from trialkeeper.sweep import Sweep

KILLS = int(os.environ.get("TRIALKEEPER_KILLS", "30"))
SEED = int(os.environ.get("TRIALKEEPER_SEED", "1"))
GRACE = 2.0
UPLOADER = 0.6  # of the kills hit an upload process
PREFIX = "space/exp-12345678/00000"
LATE = 60.0  # seconds in which everything that must come to an end does

TRAINER = (
    PREAMBLE
    + """
import hashlib, itertools, time
from trialkeeper import reporting
checkpoint = trialkeeper.get_checkpoint()
weights, start = bytes(1 << 18), 0
if checkpoint:
    weights, start = (checkpoint.path / "w").read_bytes(), int((checkpoint.path / "i").read_text()) + 1
    assert (checkpoint.path / "hash").read_text() == hashlib.sha256(weights).hexdigest()
def save(folder):
    (folder / "backbone").write_bytes(b"b" * (1 << 18))
    (folder / "w").write_bytes(weights)
    (folder / "hash").write_text(hashlib.sha256(weights).hexdigest())
    (folder / "i").write_text(str(i))
print("begun", start, flush=True)
last = int(sys.argv[1])
for i in itertools.count(start):
    block = hashlib.sha256(weights + bytes([i % 256])).digest()
    weights = weights[len(block):] + block
    trialkeeper.report({"loss": block[0] / 255}, checkpoint=save)
    print("committed", reporting._reporter._saves._committed, flush=True)
    if last and i >= start + last:
        break
    time.sleep(0.005)
"""
)


@contextmanager
def places(kind: str, root: Path, settings: dict[str, Any]) -> Iterator[Place]:
    def env(self: Place, attempt: int, pod: str | None = None) -> dict[str, str]:
        base = BucketPlace if isinstance(self, BucketPlace) else Place
        return base.env(self, attempt, pod) | {
            "TRIALKEEPER_PREFIX": PREFIX,
            "TRIALKEEPER_GRACE_SECONDS": str(GRACE),
        }

    if kind == "directory":
        yield type("Own", (Place,), {"env": env})(root, settings)
        return
    with fake_s3() if kind == "fake" else minio(root) as server:
        yield type("Own", (BucketPlace,), {"env": env})(root, settings, url=server.url, keys=dict(KEYS))


@contextmanager
def read(place: Place) -> Iterator[tuple[Store, environment.Environment]]:
    """The trial's prefix, as somebody else sees it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        env = environment.read(place.env(1, "reader"))
        yield open_store(env), env


def uploader_of(trainer: int) -> int | None:
    for children in Path(f"/proc/{trainer}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                if b"trialkeeper.upload" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
    return None


def alive(root: Path) -> list[int]:
    """Processes with a scratch folder below a folder."""
    mine, found = f"TRIALKEEPER_SCRATCH={root}/".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(v.startswith(mine) for v in (path / "environ").read_bytes().split(b"\0")):
                found.append(int(path.name))
    return found


class Life:
    """One attempt, and what it has said."""

    def __init__(self, place: Place, attempt: int, last: int = 0) -> None:
        self.began: int | None = None
        self.committed = 0
        self.process = subprocess.Popen(
            [sys.executable, "t.py", str(last)],
            cwd=place.root,
            env=place.env(attempt),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._said = b""

    def listen(self, seconds: float) -> None:
        """Hear what it says for so many seconds, or until it ends."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.process.stdout], [], [], left)[0] and not self._read():
                return

    def _read(self) -> bool:
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._said = (self._said + data).split(b"\n")
        for word, number in (line.split() for line in lines):
            if word == b"begun":
                self.began = int(number)
            else:
                self.committed = max(self.committed, int(number))
        return bool(data)

    def end(self) -> str:
        """Hear the rest; what it has written on stderr."""
        while self._read():
            pass
        with self.process:
            assert self.process.stderr is not None
            return self.process.stderr.read().decode()


@pytest.mark.timeout(max(120, 6 * KILLS))
@pytest.mark.parametrize("keep", [None, 2])
@pytest.mark.parametrize("kind", ASKED)
def test_nothing_is_torn_lost_or_left_behind(kind: str, keep: int | None, tmp_path: Path) -> None:
    rng = random.Random(f"{SEED}-{kind}-{keep}")
    checkpoint = {"frequency": 1, "onBusy": rng.choice(["Latest", "Wait"]), "numToKeep": keep}
    settings = {"objectives": [{"metric": "loss"}], "checkpoint": checkpoint}
    with places(kind, tmp_path, settings) as place:
        (place.root / "t.py").write_text(TRAINER)
        told = _killed(place, rng, KILLS // 2)
        attempt = max(told) + 1
        life = Life(place, attempt, last=5)
        err = life.end()
        assert life.process.returncode == 0, err
        told[attempt] = life
        end = time.monotonic() + LATE
        while left := alive(place.root):
            assert time.monotonic() < end, f"processes {left} are left"
            time.sleep(0.05)
        _check(place, told, keep)


def _killed(place: Place, rng: random.Random, kills: int) -> dict[int, Life]:
    """Attempts whose processes are killed so often, by their number."""
    lives: dict[int, Life] = {}
    while kills > 0:
        attempt = len(lives) + 1
        life = lives[attempt] = Life(place, attempt)
        if rng.random() < 0.1:
            life.listen(rng.uniform(0.0, 0.5))  # somewhere in its start
        else:
            end = time.monotonic() + LATE
            while life.began is None and life.process.poll() is None and time.monotonic() < end:
                life.listen(0.02)
        while kills > 0:
            kills -= 1
            life.listen(rng.uniform(0.0, 0.25))
            uploader = uploader_of(life.process.pid)
            if uploader is None or rng.random() > UPLOADER:
                break
            with suppress(ProcessLookupError):
                os.kill(uploader, signal.SIGKILL)
        life.process.kill()
        err = life.end()
        assert life.process.returncode == -signal.SIGKILL, err
    return lives


def _check(place: Place, lives: dict[int, Life], keep: int | None) -> None:
    with read(place) as (store, env):
        manifests = {contract.parse_manifest_key(key): key for key in store.list("manifests/")}
        before = {key: manifest.decode(store.get(key)) for key in manifests.values()}
        for body in before.values():
            store.fetch(body["data"], body["files"])  # every part against its hash: not one is torn
        bases = {
            number: _base(store, number) for number in lives if f"attempts/{number:06d}.json" in store.list("attempts/")
        }
        for number, life in lives.items():
            if life.began is not None:
                assert bases[number] == life.began
            if not life.committed:
                continue
            newer = [there for there in manifests if there is not None and there > (number, life.committed)]
            assert (number, life.committed) in manifests or (keep is not None and len(newer) >= 2)
            following = min((n for n in bases if n > number), default=None)
            if following is not None:
                assert bases[following] >= life.committed, f"attempt {following} has lost what {number} had committed"
        _sweep(env)
        after = {item.key for item in open_tree(env).objects("")}
        referred = {f"{PREFIX}/{e['key']}" for body in before.values() for e in body["files"]}
        assert {key for key in after if "/data/" in key} == referred
        assert {key for key in after if "/manifests/" in key} == {f"{PREFIX}/{key}" for key in before}
        assert not [key for key in after if "/." in key or "/probes/" in key]
        for body in before.values():
            store.fetch(body["data"], body["files"])
    top = place.copied() if isinstance(place, BucketPlace) else place.root / "store" / PREFIX
    assert proof.continuity(top) == []


def _base(store: Store, attempt: int) -> int:
    base = json.loads(store.get(f"attempts/{attempt:06d}.json"))["base"]
    return 0 if base is None else int(base[-17:-5])


def _sweep(env: environment.Environment) -> None:
    for _ in range(2):
        swept = Sweep(open_tree(env), now=time.time() + 1, older_than=0.0).run()
        assert swept.trouble == []
    assert swept.objects == 0
