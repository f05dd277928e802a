"""Fetching checkpoints: complete or not there, nothing twice, nothing wrong, nothing outside of its folder."""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trialkeeper
from fake_s3 import Fake, Fault, Request, fake_s3
from minio_server import KEYS
from shelf import Shelf
from trialkeeper import CheckpointCorrupt, manifest
from trialkeeper.results.download import Busy, InTheWay
from trialkeeper.results.reading import StoredCheckpoint
from trialkeeper.store import Missing

PART = 1 << 20  # bytes
FILES = {
    "big": random.Random(1).randbytes(5 * PART + 7),
    "sub/small": b"small",
    "sub/none": b"",
    "other.bin": b"o" * PART,
}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A checkpoint whose large file has six parts."""
    monkeypatch.setattr(manifest, "PART_SIZE", PART)
    monkeypatch.setattr("trialkeeper.store.transfer.PART_SIZE", PART)  # what is asked for at once
    found = Shelf(tmp_path / "store")
    found.begin()
    found.save(1, 1, FILES)
    return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("trialkeeper.store.wire.TRIES", 1)
    with fake_s3() as running:
        yield running


@pytest.fixture(params=["folder", "bucket"])
def checkpoint(request: pytest.FixtureRequest, shelf: Shelf, server: Fake) -> StoredCheckpoint:
    """The same checkpoint in a folder, and in a bucket."""
    where = str(shelf.folder)
    if request.param == "bucket":
        for path in sorted(p for p in shelf.root.rglob("*") if p.is_file()):
            server.objects[path.relative_to(shelf.root).as_posix()] = path.read_bytes(), {}
        where = server.url.replace("trials?", f"trials/{shelf.prefix}?")
    return trialkeeper.open_results(where).trials[0].checkpoints[0]


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_all_files_are_there_or_none(checkpoint: StoredCheckpoint, tmp_path: Path) -> None:
    arrived: list[int] = []
    target = checkpoint.to_directory(tmp_path / "a" / "out", progress=arrived.append)
    assert content(target) == FILES
    assert sum(arrived) == checkpoint.bytes == sum(map(len, FILES.values()))
    assert [p.name for p in target.parent.iterdir()] == ["out"]
    assert checkpoint.to_directory(target) == target, "what is there is checked and left alone"
    temporary = checkpoint.to_directory()
    assert content(temporary) == FILES
    (tmp_path / "empty").mkdir()
    assert content(checkpoint.to_directory(tmp_path / "empty")) == FILES


@pytest.mark.parametrize(
    ("files", "found"),
    [("big", {"big"}), ("*.bin", {"other.bin"}), (["sub/*", "big"], {"sub/small", "sub/none", "big"})],
)
def test_some_of_the_files(files: Any, found: set[str], checkpoint: StoredCheckpoint, tmp_path: Path) -> None:
    assert content(checkpoint.to_directory(tmp_path / "out", files)).keys() == found


def test_no_file_of_that_name_is_said_with_those_that_there_are(checkpoint: StoredCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file is called \*\.pt, there are: big, other.bin, sub/none, sub/small"):
        checkpoint.to_directory(tmp_path / "out", "*.pt")


def test_what_is_in_the_way_stays(checkpoint: StoredCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("out", "file", "link"):
        with pytest.raises(InTheWay, match="name another"):
            checkpoint.to_directory(tmp_path / name)
    assert content(tmp_path / "out") == {"mine": b"mine"}


def test_a_download_that_was_interrupted_goes_on(shelf: Shelf, server: Fake, tmp_path: Path) -> None:
    for path in sorted(p for p in shelf.root.rglob("*") if p.is_file()):
        server.objects[path.relative_to(shelf.root).as_posix()] = path.read_bytes(), {}
    (checkpoint,) = (
        trialkeeper.open_results(server.url.replace("trials?", f"trials/{shelf.prefix}?")).trials[0].checkpoints
    )
    before = len(server.requests)

    def asked() -> list[str]:
        return sorted(
            f"{r.key.rpartition('/')[2]} {r.headers['range']}" for r in server.requests[before:] if "range" in r.headers
        )

    def fault(request: Request) -> Fault | None:
        return Fault(403, b"<Error><Code>AccessDenied</Code></Error>") if len(asked()) > 4 else None

    server.fault = fault
    with pytest.raises(OSError, match="AccessDenied"):
        checkpoint.to_directory(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    first = asked()
    server.fault = lambda _: None
    part = tmp_path / ".out.part" / "big"
    (tmp_path / ".out.part" / "left-by-another").write_text("x")
    before = len(server.requests)
    assert content(checkpoint.to_directory(tmp_path / "out")) == FILES
    assert not part.exists()
    repeated = {*first} & {*asked()}
    assert len(first) - len(repeated) >= 3, "what had arrived is not fetched again"


def test_parts_that_are_there_and_right_are_not_copied_again(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = trialkeeper.open_results(str(shelf.folder)).trials[0].checkpoints[0]
    work = tmp_path / ".out.part"
    work.mkdir()
    spoilt = bytearray(FILES["big"])
    spoilt[2 * PART] ^= 1
    (work / "big").write_bytes(spoilt[: 4 * PART + 5])
    (work / "sub").write_text("a file where a folder belongs")
    copied: list[tuple[int, int]] = []
    from trialkeeper.results import download

    real = download._copied

    def spy(source: int, start: int, target: int, at: int, size: int) -> str:
        copied.append((at, size))
        return real(source, start, target, at, size)

    monkeypatch.setattr(download, "_copied", spy)
    assert content(checkpoint.to_directory(tmp_path / "out", "big")) == {"big": FILES["big"]}
    assert sorted(copied) == [(2 * PART, PART), (4 * PART, PART), (5 * PART, 7)]


@pytest.mark.parametrize("harm", ["flip", "short", "gone"])
def test_what_is_not_what_was_committed_never_arrives(harm: str, shelf: Shelf, server: Fake, tmp_path: Path) -> None:
    for path in sorted(p for p in shelf.root.rglob("*") if p.is_file()):
        server.objects[path.relative_to(shelf.root).as_posix()] = path.read_bytes(), {}
    where = server.url.replace("trials?", f"trials/{shelf.prefix}?")
    there = [trialkeeper.open_results(place).trials[0].checkpoints[0] for place in (str(shelf.folder), where)]
    (key,) = (k for k in server.objects if k.endswith("/big"))
    path = shelf.root / key
    if harm == "flip":
        path.write_bytes(FILES["big"][:-1] + b"!")
    elif harm == "short":
        path.write_bytes(FILES["big"][:-1])
    else:
        path.unlink()
    server.objects[key] = (path.read_bytes(), {}) if path.exists() else server.objects[key]
    if harm == "gone":
        del server.objects[key]
    for number, checkpoint in enumerate(there):
        with pytest.raises(Missing if harm == "gone" else CheckpointCorrupt):
            checkpoint.to_directory(tmp_path / f"out-{number}")
        assert not (tmp_path / f"out-{number}").exists()


def test_two_downloads_into_one_folder_do_not_mix(shelf: Shelf, tmp_path: Path) -> None:
    checkpoint = trialkeeper.open_results(str(shelf.folder)).trials[0].checkpoints[0]
    (tmp_path / ".out.part").mkdir()
    descriptor = os.open(tmp_path / ".out.part", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another process downloads"):
            checkpoint.to_directory(tmp_path / "out")
    finally:
        os.close(descriptor)
    assert content(checkpoint.to_directory(tmp_path / "out")) == FILES


def test_a_link_that_somebody_left_in_the_hidden_folder_is_not_followed(shelf: Shelf, tmp_path: Path) -> None:
    checkpoint = trialkeeper.open_results(str(shelf.folder)).trials[0].checkpoints[0]
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "big").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".out.part" / "sub").symlink_to(tmp_path)
    assert content(checkpoint.to_directory(tmp_path / "out")) == FILES
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_files_are_private_no_more_than_they_were_and_can_be_written(shelf: Shelf, tmp_path: Path) -> None:
    (shelf.folder / "manifests").joinpath("a000001-i000000000001.json").unlink()
    shelf.save(1, 1, {"run.sh": b"#!/bin/sh\n"})
    checkpoint = trialkeeper.open_results(str(shelf.folder)).trials[0].checkpoints[0]
    checkpoint.manifest["files"][0]["mode"] = 0o555
    out = checkpoint.to_directory(tmp_path / "out")
    assert (out / "run.sh").stat().st_mode & 0o777 == 0o755
