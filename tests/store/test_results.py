"""Results and checkpoints read from a real MinIO."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trialkeeper
from minio_server import KEYS, Minio, minio
from trainers import SAVING, BucketPlace

TRAINER = """
import random
for i in range(start, 9):
    trialkeeper.report({'loss': 1.0 / (i + 1)}, checkpoint=big)
    if trialkeeper.get_context().attempt == 1 and i == 4: trialkeeper.flush(); os.kill(os.getpid(), 9)
"""
BIG = """
def big(folder):
    save(folder)
    (folder / "w").write_bytes(random.Random(i).randbytes(20 << 20) if i in (4, 8) else b"w")
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketPlace]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)

    class Own(BucketPlace):
        def env(self, attempt: int, pod: str | None = None) -> dict[str, str]:
            return super().env(attempt, pod) | {"TRIALKEEPER_PREFIX": "space/exp-12345678/00000"}

    with minio(tmp_path) as server:
        yield Own(tmp_path, url=server.url, keys=dict(KEYS), params={"lr": 0.5})


def where(place: BucketPlace, folder: str = "") -> str:
    return place.url.replace(f"s3://{Minio.bucket}?", f"s3://{Minio.bucket}{folder}?")


def test_a_bucket_tells_the_whole_story(place: BucketPlace, tmp_path: Path) -> None:
    place.run(SAVING + BIG + TRAINER)
    place.run(SAVING + BIG + TRAINER, 2)
    for folder in ("", "/space", "/space/exp-12345678", "/space/exp-12345678/00000"):
        with trialkeeper.open_results(where(place, folder)) as results:
            (trial,) = results.trials
            assert (results.experiment, trial.name, trial.parameters, trial.state) == (
                "exp",
                "exp-0",
                {"lr": 0.5},
                "Succeeded",
            )
    with trialkeeper.open_results(where(place)) as results:
        trial = results.trial("exp-0")
        assert [row["loss"] for row in trial.history()] == [1.0 / i for i in range(1, 10)]
        iterations = [c.iteration for c in trial.checkpoints]
        assert (iterations[0], iterations) == (9, sorted({*iterations, 5}, reverse=True))
        assert all(c.whole for c in trial.checkpoints)
        out = trial.checkpoints[0].to_directory(tmp_path / "out")
        assert (out / "w").read_bytes() == random.Random(8).randbytes(20 << 20)


def test_a_download_that_is_killed_goes_on(place: BucketPlace, tmp_path: Path) -> None:
    place.run(SAVING + BIG + TRAINER)
    command = [sys.executable, "-m", "trialkeeper", "download", where(place), "exp-0", "--to", "out"]
    # The first process dies when its first part has arrived.
    code = (
        "import os, signal, sys, trialkeeper\n"
        f"with trialkeeper.open_results({where(place)!r}) as results:\n"
        "    newest = results.trial('exp-0').checkpoints[0]\n"
        "    newest.to_directory('out', progress=lambda count: count > 5 and os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ}, check=False)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.part").is_dir()
    subprocess.run(command, cwd=tmp_path, env={**os.environ}, check=True, capture_output=True)
    assert (tmp_path / "out" / "w").read_bytes() == random.Random(4).randbytes(20 << 20)
    assert not (tmp_path / ".out.part").exists()
