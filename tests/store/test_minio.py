"""A bucket on a real MinIO: races, answers that are lost on the way, keys of one prefix, trainers that are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import proof
from minio_server import KEYS, Minio
from stores import environment_of, opened
from trainers import PREAMBLE, SAVING, BucketPlace
from trialkeeper import manifest
from trialkeeper.store import AlreadyThere, Unreachable
from trialkeeper.store.opening import open_store


@pytest.fixture
def place(server: Minio, tmp_path: Path) -> BucketPlace:
    class Own(BucketPlace):
        def env(self, attempt: int, pod: str | None = None) -> dict[str, str]:
            return super().env(attempt, pod) | {"TRIALKEEPER_PREFIX": tmp_path.name}

    return Own(tmp_path, url=server.url, keys=dict(KEYS))


def _race(url: str, folder: Path, key: str, number: int, barrier: Any, won: Any) -> None:
    os.environ.update(KEYS)
    store = open_store(environment_of(url, folder))
    with suppress(AlreadyThere):
        store.put_new(f"warm/{number}-{key}", b"")
        barrier.wait()
        store.put_new(key, str(number).encode() * 1000)
        won.put(number)
        return
    won.put(None)


def test_of_many_racing_writers_exactly_one_wins_and_is_stored_whole(server: Minio, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for round_ in range(5):
        barrier, won = fork.Barrier(16), fork.Queue()
        key = f"race-{round_}"
        racers = [fork.Process(target=_race, args=(server.url, tmp_path, key, n, barrier, won)) for n in range(16)]
        for racer in racers:
            racer.start()
        winners = [n for _ in racers if (n := won.get(timeout=60)) is not None]
        for racer in racers:
            racer.join()
        assert len(winners) == 1
        with opened(server.url, tmp_path) as store:
            assert store.get(key) == str(winners[0]).encode() * 1000


class Proxy:
    """Passes everything on to a server, and closes a connection instead of passing on the answer `lose` points at."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._to = (str(parts.hostname), int(parts.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.lose = b""  # the answer to a request that begins so is lost, once
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._to) as server, suppress(OSError):
            pending = threading.Event()

            def onward() -> None:
                with suppress(OSError):
                    while data := client.recv(1 << 16):
                        if self.lose and data.startswith(self.lose):
                            self.lose = b""
                            pending.set()
                        server.sendall(data)
                    server.shutdown(socket.SHUT_WR)

            threading.Thread(target=onward, daemon=True).start()
            while data := server.recv(1 << 16):
                if pending.is_set():
                    self.lost += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)

    def close(self) -> None:
        self._listener.close()


@contextmanager
def proxy(endpoint: str) -> Iterator[Proxy]:
    running = Proxy(endpoint)
    try:
        yield running
    finally:
        running.close()


def test_a_commit_whose_answer_is_lost_is_a_commit_and_nobody_elses(server: Minio, tmp_path: Path) -> None:
    with (
        proxy(server.endpoint) as between,
        opened(f"s3://{server.bucket}?endpoint={between.endpoint}", tmp_path) as store,
    ):
        store.put_new("lost/first", b"")
        between.lose = b"PUT /trials/space/exp-1/00000/lost/manifest "
        store.put_new("lost/manifest", b"mine")
        assert between.lost == 1
        assert store.get("lost/manifest") == b"mine"
        with pytest.raises(AlreadyThere):
            store.put_new("lost/manifest", b"mine")


def test_a_large_file_whose_last_answer_is_lost_is_whole(server: Minio, tmp_path: Path) -> None:
    made, content = tmp_path / "made", os.urandom(40 << 20)
    made.mkdir()
    (made / "w").write_bytes(content)
    with (
        proxy(server.endpoint) as between,
        opened(f"s3://{server.bucket}?endpoint={between.endpoint}", tmp_path) as store,
    ):
        between.lose = b"POST /trials/space/exp-1/00000/data/large/w?uploadId="
        files = store.keep(made, "data/large", ())
        assert between.lost == 1
        assert (store.fetch("data/large", files) / "w").read_bytes() == content


def test_keys_of_one_prefix_are_enough_and_open_no_other(server: Minio, tmp_path: Path) -> None:
    """What a trainer needs: get, put, delete and abort below its prefix, and a list of it."""
    from minio.credentials.providers import AssumeRoleProvider, StaticProvider
    from minio.minioadmin import MinioAdmin

    host = urlsplit(server.endpoint).netloc
    admin = MinioAdmin(endpoint=host, credentials=StaticProvider(*KEYS.values()), secure=False)
    admin.user_add("leader", "leader-secret")
    admin.policy_set("readwrite", user="leader")
    arn = f"arn:aws:s3:::{server.bucket}"
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
                "Resource": [f"{arn}/space/exp-1/*"],
            },
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": [arn],
                "Condition": {"StringLike": {"s3:prefix": ["space/exp-1/*"]}},
            },
        ],
    }
    keys = AssumeRoleProvider(
        sts_endpoint=server.endpoint, access_key="leader", secret_key="leader-secret", policy=json.dumps(policy)
    ).retrieve()
    made = tmp_path / "made"
    made.mkdir()
    (made / "w").write_bytes(bytes(20 << 20))
    with opened(server.url, tmp_path) as store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", keys.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", keys.secret_key)
        patch.setenv("AWS_SESSION_TOKEN", str(keys.session_token))
        store.put_new("lent/a", b"1")
        files = store.keep(made, "lent/data", ())
        assert (store.fetch("lent/data", files) / "w").stat().st_size == 20 << 20
        assert store.list("lent/") == ["lent/a", "lent/data/w"]
        store.delete("lent/data")
        store._folder = "space/exp-2/00000"
        for call in (lambda: store.get("a"), lambda: store.list("a/"), lambda: store.put_new("a", b"")):
            with pytest.raises(Unreachable, match=r"answers with AccessDenied \(HTTP 403\)"):
                call()


TRAINING = (
    PREAMBLE
    + """
import hashlib, itertools, random
checkpoint = trialkeeper.get_checkpoint()
weights, start = bytes(1 << 20), 0
if checkpoint:
    weights, start = (checkpoint.path / "w").read_bytes(), int((checkpoint.path / "i").read_text()) + 1
def save(folder):
    (folder / "w").write_bytes(weights)
    (folder / "i").write_text(str(i))
for i in range(start, 40):
    block = hashlib.sha256(weights + bytes([i])).digest()
    weights = weights[len(block):] + block
    trialkeeper.report({"loss": block[0] / 255}, checkpoint=save)
    print(i, flush=True)
print(hashlib.sha256(weights).hexdigest())
"""
)


def _start(place: BucketPlace, attempt: int) -> subprocess.Popen[str]:
    (place.root / "t.py").write_text(TRAINING)
    return subprocess.Popen(
        [sys.executable, "t.py"],
        cwd=place.root,
        env=place.env(attempt),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _uninterrupted(server: Minio, root: Path) -> tuple[str, list[float]]:
    root.mkdir()
    peace = BucketPlace(root, url=server.url, keys=dict(KEYS))
    out, err = _start(peace, 1).communicate(timeout=120)
    assert err == ""
    return out.splitlines()[-1], [row["loss"] for row in peace.rows()]


def test_a_training_that_is_killed_again_and_again_is_the_one_that_is_not(
    server: Minio, place: BucketPlace, tmp_path: Path
) -> None:
    """SIGKILL at random instants, every attempt on a node of its own: the weights and the curve are the same."""
    weights, curve = _uninterrupted(server, tmp_path / "peace")
    rng, kills, left = random.Random(4), 0, ""
    for attempt in range(1, 20):
        process = _start(place, attempt)
        assert process.stdout is not None
        for _ in range(rng.randint(2, 12)):
            left = process.stdout.readline().strip() or left
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.0, 0.1))
        process.kill()
        rest, err = process.communicate(timeout=30)
        if process.returncode == 0:
            left = (rest.split() or [left])[-1]
            break
        assert process.returncode == -signal.SIGKILL, err
        kills += 1
    assert kills >= 3
    assert left == weights
    top = place.copied()
    assert proof.continuity(top) == []
    assert proof.resumed(top) == []
    visible: dict[int, float] = {}
    for _, rows in sorted(proof.rows(top).items()):
        visible |= {row["training_iteration"]: row["loss"] for row in rows}
    assert [visible[i] for i in sorted(visible)] == curve
    with place.opened() as store:
        for key in store.list("manifests/"):
            body = manifest.decode(store.get(key))
            store.fetch(body["data"], body["files"])


def test_the_grace_after_sigterm_is_enough_to_save_and_to_send_everything(place: BucketPlace) -> None:
    left = place.run(
        SAVING + "import itertools\nfor i in itertools.count(start):\n"
        "    if i == 20: os.kill(os.getpid(), 15)\n    trialkeeper.report({'loss': 1.0}, checkpoint=save)\n"
    )
    assert (left.code, left.end) == (143, ("preempted", "")), left.err
    assert len(place.rows()) == 21
    assert place.manifests()[-1].endswith("21")
