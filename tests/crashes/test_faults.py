"""A store that misbehaves, under whole trainers: whoever is asked to go leaves in time, and what is there is whole.

The faults are those of a network and of a server under stress; with a real MinIO they happen in front of it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fake_s3 import Fake, Fault, Request, fake_s3
from minio_server import KEYS, minio
from stores import ASKED
from trainers import PREAMBLE, SAVING, BucketPlace
from trialkeeper import manifest
from trialkeeper.contract import Message

BUCKETS = [kind for kind in ASKED if kind != "directory"]
GRACE = 6.0
AT_ONCE = 4  # trainers: they do little but wait
SLACK = 3.0  # times as long as an empty Python takes here from its start to its end: this machine may be a busy one
WHERE = "import faulthandler\nfaulthandler.register(signal.SIGUSR1)\n"  # is it, when it is late?
READY = "open(os.environ['TRIALKEEPER_SCRATCH'] + '/ready', 'w').close()\n"

SLOW = Fault(503, b"<Error><Code>SlowDown</Code></Error>", {"Retry-After": "60"})
FAULTS: dict[str, Callable[[Request], Fault | None]] = {
    "silence": lambda _: Fault(hang=True),
    "503": lambda _: SLOW,
    "403": lambda _: Fault(403, b"<Error><Code>AccessDenied</Code></Error>"),
    "lost answers": lambda _: Fault(carried_out=True),
    "half bodies": lambda r: Fault(bytes_before_reset=0) if r.method == "GET" else Fault(),
    "wrong bytes": lambda r: Fault(wrong=True) if r.method == "GET" else None,
}
HOW = [*FAULTS] if os.environ.get("TRIALKEEPER_FAULTS") == "all" else ["silence", "503", "lost answers"]
LOOP = (
    "import itertools, time\nfor i in itertools.count(start):\n    trialkeeper.report({'loss': 1.0}, checkpoint=save)\n"
)
LAST = "import time\ntime.sleep(0.3); i += 1\ntrialkeeper.report({'loss': 1.0}, checkpoint=save)\n"
MOMENTS = {
    "in training": SAVING + LOOP.replace(", checkpoint=save", "") + f"    time.sleep(0.01)\n    if i == 20: {READY}",
    "while saving": SAVING + LOOP + f"    time.sleep(0.01)\n    if i == 20: {READY}",
    "in flush": SAVING + LOOP + f"    if i == 5:\n        {READY}        time.sleep(0.2)\n    trialkeeper.flush()\n",
    "at the end": SAVING + LOOP.replace("count(start)", "repeat(0, 1)") + READY + LAST,
    "at the start": READY + SAVING + LOOP,
}


@dataclass
class Hit:
    """A trainer at whose store something happens, after which it is asked to go."""

    moment: str
    fault: str
    place: BucketPlace
    late: float = 0.0  # seconds from SIGTERM to its end
    wrong: list[str] = field(default_factory=list)


@contextmanager
def server_of(kind: str, folder: Path) -> Iterator[Fake]:
    if kind == "fake":
        with fake_s3() as fake:
            yield fake
        return
    with minio(folder) as real, fake_s3(upstream=real.endpoint) as between:
        yield between


def place_of(server: Fake, root: Path, prefix: str, grace: float = GRACE) -> BucketPlace:
    root.mkdir()
    keys = {**KEYS, "TRIALKEEPER_PREFIX": prefix, "TRIALKEEPER_GRACE_SECONDS": str(grace)}
    return BucketPlace(root, url=server.url, keys=keys)


def alive(scratch: str) -> bool:
    mine = f"TRIALKEEPER_SCRATCH={scratch}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mine in (path / "environ").read_bytes().split(b"\0"):
                return True
    return False


def frozen(trainer: int) -> None:
    """Stop a trainer's upload process, as a machine that swaps does."""
    for children in Path(f"/proc/{trainer}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGSTOP)


def _empty() -> float:
    """Seconds that a Python with nothing to do takes on this machine, now."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return time.monotonic() - start


def ask_to_go(hit: Hit, broken: dict[str, str]) -> None:
    """Start it, break its store, ask it to go, and be the kubelet."""
    place = hit.place
    if hit.moment == "at the start":
        place.run(SAVING + "for i in range(3): trialkeeper.report({'loss': 1.0}, checkpoint=save)")
        broken[place.keys["TRIALKEEPER_PREFIX"]] = hit.fault
    (place.root / "t.py").write_text(PREAMBLE + WHERE + MOMENTS[hit.moment])
    env = place.env(2)
    err = place.root / "err"  # a file: the end of a pipe would be that of the upload process, too
    with err.open("wb") as said:
        process = subprocess.Popen([sys.executable, "t.py"], cwd=place.root, env=env, stdout=said, stderr=said)
    ready = Path(env["TRIALKEEPER_SCRATCH"]) / "ready"
    while not ready.exists() and process.poll() is None:
        time.sleep(0.02)
    if hit.fault == "frozen":
        frozen(process.pid)
    else:
        broken[place.keys["TRIALKEEPER_PREFIX"]] = hit.fault
    time.sleep(random.Random(hit.moment + hit.fault).uniform(0.5, 2.0))
    slack, start = SLACK * _empty(), time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE + slack)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGUSR1)
        slack = max(slack, SLACK * _empty())
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(start + GRACE + slack - time.monotonic(), 0.0))
        process.kill()
        process.wait()
    hit.late = time.monotonic() - start
    if hit.late > GRACE + slack:
        hit.wrong.append(
            f"it has left after {hit.late:.1f} s of {GRACE} and {slack:.1f} for this machine: {err.read_text()[-1500:]}"
        )
    while alive(env["TRIALKEEPER_SCRATCH"]) and time.monotonic() < start + 2 * GRACE:
        time.sleep(0.05)
    if alive(env["TRIALKEEPER_SCRATCH"]):
        hit.wrong.append("its upload process stays")
    broken.pop(place.keys["TRIALKEEPER_PREFIX"], None)
    _judge(hit, process.returncode, err.read_text(), env)


def _judge(hit: Hit, code: int, err: str, env: dict[str, str]) -> None:
    """What it has left behind: last words, and nothing in the store that is not whole."""
    log = Path(env["TRIALKEEPER_TERMINATION_LOG"])
    end = Message.decode(log.read_text()) if log.exists() else None
    # A store that refuses, or talks nonsense, when a trainer asks where to begin, is an error with a sentence.
    if hit.moment == "at the start" and hit.fault in ("403", "wrong bytes") and end is not None and end.end == "error":
        if code != 1 or "the bucket trials" not in (end.text or ""):
            hit.wrong.append(f"it has left with {code}, {end.text}: {err[-1500:]}")
    elif code not in (143, 1, 0, -signal.SIGTERM) or (end is not None and end.end not in ("preempted", "complete")):
        hit.wrong.append(f"it has left with {code}, {end and (end.end, end.text)}: {err[-1500:]}")


def whole(place: BucketPlace) -> list[int]:
    """The iterations of all checkpoints, each of them verified."""
    found = []
    with place.opened() as store:
        for key in store.list("manifests/"):
            body = manifest.decode(store.get(key))
            folder = store.fetch(body["data"], body["files"])
            assert (folder / "i").read_text() == str(body["iteration"] - 1)
            found.append(int(body["iteration"]))
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", BUCKETS)
def test_whoever_is_asked_to_go_leaves_in_time(kind: str, tmp_path: Path) -> None:
    """At every moment, whatever the store does; the kubelet kills when the grace is over.

    TRIALKEEPER_FAULTS=all takes every fault to every moment.
    """
    broken: dict[str, str] = {}
    with server_of(kind, tmp_path) as server:

        def misbehave(request: Request) -> Fault | None:
            fault = broken.get(request.key.split("/")[0] or request.query.get("prefix", "").split("/")[0])
            return FAULTS[fault](request) if fault in FAULTS else None

        server.fault = misbehave
        asked = [(m, f) for m in MOMENTS for f in HOW] + [(m, "frozen") for m in MOMENTS if m != "at the start"]
        hits = [Hit(m, f, place_of(server, tmp_path / f"p{n}", f"p{n}")) for n, (m, f) in enumerate(asked)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda hit: ask_to_go(hit, broken), hits))
        for hit in hits:
            whole(hit.place)
    assert [(hit.moment, hit.fault, hit.wrong) for hit in hits if hit.wrong] == []


FOUR = "for i in range(start, 4): trialkeeper.report({'loss': 1.0 / (i + 1)}, checkpoint=save)\n"


@pytest.mark.parametrize("room", ["attempts/", "data/", "manifests/", "results/", "ended/"])
@pytest.mark.parametrize("kind", BUCKETS)
def test_what_happens_once_to_a_write_costs_nothing(kind: str, room: str, tmp_path: Path) -> None:
    """Each fault hits the first write of its trial below one folder, and the try after it goes through."""
    hit: set[tuple[str, str]] = set()

    def once(request: Request) -> Fault | None:
        name, _, key = request.key.partition("/")
        mine = (name, room)
        if request.method != "PUT" or not key.startswith(room) or mine in hit or name not in names:
            return None
        hit.add(mine)
        return names[name](request)

    faults = {name: fault for name, fault in FAULTS.items() if name not in ("403", "wrong bytes")}
    names = {f"p{n}": fault for n, fault in enumerate(faults.values())}
    with server_of(kind, tmp_path) as server:
        server.fault = once
        places = [place_of(server, tmp_path / name, name, grace=3.0) for name in names]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            lefts = list(pool.map(lambda place: place.run(SAVING + FOUR), places))
        for place, left in zip(places, lefts, strict=True):
            assert left.end == ("complete", ""), left.err
            assert whole(place)[-1] == 4
            assert [row["training_iteration"] for row in place.rows()] == [1, 2, 3, 4]
            with place.opened() as store:
                assert store.list("ended/") == ["ended/a000001.json"]
        assert {name for name, _ in hit} == {*names}


@pytest.mark.parametrize("fault", ["half bodies", "wrong bytes"])
@pytest.mark.parametrize("kind", BUCKETS)
def test_what_comes_wrong_is_asked_for_again_and_then_passed_over(kind: str, fault: str, tmp_path: Path) -> None:
    with server_of(kind, tmp_path) as server:
        place = place_of(server, tmp_path / "p", "p")
        place.run(SAVING + FOUR + "die()")
        newest = f"data/a000001-i{4:012d}"
        times: list[str] = []

        def spoil(request: Request) -> Fault | None:
            if request.method != "GET" or newest not in request.key or len(times) >= limit:
                return None
            times.append(request.key)
            return FAULTS[fault](request)

        server.fault, limit = spoil, 1
        left = place.run(SAVING + FOUR, 2)
        assert left.last is not None
        assert left.last.resumed is not None
        assert (left.last.resumed.iteration, left.err) == (4, "")
        times.clear()
        limit = 1000
        left = place.run(SAVING + FOUR, 3)
        assert left.last is not None
        assert left.last.resumed is not None
        assert left.last.resumed.iteration == 3
        assert "is passed over, an older one is tried" in left.err
