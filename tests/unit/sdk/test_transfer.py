"""How files get into a store and out of it: in which pieces, what is hashed and sent, and what memory it takes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_s3 import Fake, Fault, Request, fake_s3
from manifests import body, entry
from minio_server import KEYS
from stores import environment_of
from trialkeeper import manifest
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.store import Missing, Unreachable, files, transfer
from trialkeeper.store.directory import DirectoryStore
from trialkeeper.store.files import File
from trialkeeper.store.opening import open_store
from trialkeeper.store.s3 import S3Store

MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake_s3(honest=True) as running:
        yield running


def made(tmp_path: Path, **contents: bytes) -> Path:
    folder = tmp_path / f"made-{os.urandom(4).hex()}"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


# Plans.


def _file(path: str, size: int) -> File:
    return File(path, size, 0o644, Path("/none") / path)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "pack-000", "pack-001/x", "c/d", "c/e", "pack-0000", "z"]),
        st.one_of(st.integers(0, 3 * MIB), st.integers(0, 1 << 40)),
        min_size=1,
    )
)
def test_every_file_has_a_place_of_its_own(sizes: dict[str, int]) -> None:
    planned = transfer.plan([_file(path, size) for path, size in sizes.items()], "data/x")
    entries = [e for upload in planned for e in upload.entries()]
    assert {e["path"]: e["size"] for e in entries} == sizes
    for e in entries:
        e |= {"partSize": manifest.PART_LIMIT}
        e["sha256"] = ["0" * 64] * manifest.part_count(e["size"], e["partSize"])
    keys = [upload.key for upload in planned]
    assert len({*keys}) == len(keys)
    assert not any(a.startswith(f"{b}/") for a in keys for b in keys), "some stores have no object below an object"
    assert all(upload.size <= transfer.PACK for upload in planned if len(upload.files) > 1)
    assert all(e["key"] == f"data/x/{e['path']}" for e in entries if e["size"] >= transfer.SMALL)


def test_small_files_are_packed_in_objects_of_bounded_size() -> None:
    planned = transfer.plan([_file(f"{i:04d}", MIB - 1) for i in range(200)], "data/x")
    assert [upload.key for upload in planned] == [f"data/x/pack-{i:03d}" for i in range(4)]
    assert [len(upload.files) for upload in planned] == [64, 64, 64, 8]


def _sparse(folder: Path, *sizes: int) -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes):
        with (folder / f"w{number}").open("wb") as file:
            file.truncate(size)
    return folder


def test_300_gb_are_a_few_thousand_parts_and_a_small_manifest(tmp_path: Path) -> None:
    found = files.inventory(_sparse(tmp_path / "made", 200 * 10**9, 90 * 10**9, 10 * 10**9))
    parts = [len(file.sha256) for file in found]
    assert sum(parts) <= 4096 + len(found)
    for file in found:
        assert (len(file.sha256) - 1) * file.part < file.size <= len(file.sha256) * file.part
        file.sha256 = ["0" * 64] * len(file.sha256)
    entries = [e for upload in transfer.plan(found, "data/x") for e in upload.entries()]
    encoded = manifest.encode(body(files=entries))
    assert len(encoded) < MIB
    manifest.decode(encoded)


# Sending and fetching.


def test_every_part_is_hashed_once_and_a_changed_file_up_to_the_difference(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[tuple[int, int]] = []
    digest = files.digest

    def counted(descriptor: int, start: int, size: int) -> str:
        hashed.append((start, size))
        return digest(descriptor, start, size)

    monkeypatch.setattr(files, "digest", counted)
    content = os.urandom(MIB) * 50
    older = store.keep(made(tmp_path, w=content, small=b"1", v=b"2"), "data/1", ())
    assert len(hashed) == 4 + 2
    hashed.clear()
    store.keep(made(tmp_path, w=content), "data/2", older)
    assert len(hashed) == 4, "to know that a file is the same it must be read whole"
    hashed.clear()
    changed = content[: 20 * MIB] + b"!" + content[20 * MIB + 1 :]
    newer = store.keep(made(tmp_path, w=changed), "data/3", older)
    assert sorted(hashed) == [(0, 16 * MIB), (16 * MIB, 16 * MIB), (32 * MIB, 16 * MIB), (48 * MIB, 2 * MIB)]
    assert (store.fetch("data/3", newer) / "w").read_bytes() == changed


def test_a_file_of_the_same_size_and_time_is_not_taken_for_unchanged(store: S3Store, tmp_path: Path) -> None:
    first, second = made(tmp_path, w=b"1" * 2 * MIB), made(tmp_path, w=b"2" * 2 * MIB)
    for folder in (first, second):
        os.utime(folder / "w", (1, 1))
    older = store.keep(first, "data/1", ())
    assert (store.fetch("data/2", store.keep(second, "data/2", older)) / "w").read_bytes() == b"2" * 2 * MIB


def test_an_entry_that_was_hashed_in_other_parts_serves_as_well(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Fake
) -> None:
    """The part size has grown with the total: what is unchanged keeps its own."""
    content = os.urandom(40 * MIB)
    older = store.keep(made(tmp_path, w=content), "data/1", ())
    monkeypatch.setattr(files, "part_size", lambda total: 17 * MIB)
    newer = store.keep(made(tmp_path, w=content, v=content), "data/2", older)
    assert {e["path"]: (e["partSize"] // MIB, e["key"]) for e in newer} == {
        "v": (17, "data/2/v"),
        "w": (16, "data/1/w"),
    }
    found = store.fetch("data/2", newer)
    assert (found / "w").read_bytes() == (found / "v").read_bytes() == content


def test_a_pack_that_is_mostly_of_no_use_any_more_is_not_referred_to(store: S3Store, tmp_path: Path) -> None:
    """Else one small file that never changes would keep every pack it was ever in the neighbourhood of."""
    contents = {f"f{i}": os.urandom(1000) for i in range(10)}
    older = store.keep(made(tmp_path, **contents), "data/1", ())
    for changed, referred in ((5, 5), (6, 0)):
        again = contents | {f"f{i}": os.urandom(1000) for i in range(changed)}
        newer = store.keep(made(tmp_path, **again), f"data/{changed}", older)
        assert sum(e["key"] == "data/1/pack-000" for e in newer) == referred
        found = store.fetch(f"data/{changed}", newer)
        assert {p.name: p.read_bytes() for p in found.iterdir()} == again


def test_a_part_that_comes_wrong_is_asked_for_once_more(server: Fake, store: S3Store, tmp_path: Path) -> None:
    content = os.urandom(MIB) * 40
    entries = store.keep(made(tmp_path, w=content), "data/a", ())
    wrong = Fault(206, bytes(16 * MIB))

    def first(request: Request) -> Fault | None:
        if request.method != "GET" or request.headers.get("range") != f"bytes={16 * MIB}-{32 * MIB - 1}":
            return None
        server.fault = lambda _: None
        return wrong

    server.fault = first
    assert (store.fetch("data/a", entries) / "w").read_bytes() == content
    assert server.count("GET", "/w") == 4
    store.delete("data/a")
    entries = store.keep(made(tmp_path, w=content), "data/b", ())
    server.fault = lambda r: wrong if r.method == "GET" and "=0-" in r.headers.get("range", "") else None
    with pytest.raises(CheckpointCorrupt, match="w is not what was written"):
        store.fetch("data/b", entries)
    assert not (tmp_path / "scratch" / "fetched" / "data" / "b").exists()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(200, b"everything"), CheckpointCorrupt),
        (Fault(206, b"short"), CheckpointCorrupt),
        (Fault(416, b"<Error><Code>InvalidRange</Code></Error>"), CheckpointCorrupt),
        (Fault(404, b"<Error><Code>NoSuchKey</Code></Error>"), Missing),
        (Fault(404, b"<Error><Code>NoSuchBucket</Code></Error>"), Unreachable),
        (Fault(403, b"<Error><Code>AccessDenied</Code></Error>"), Unreachable),
        (Fault(503, b"<Error><Code>SlowDown</Code></Error>"), Unreachable),
    ],
)
def test_what_comes_instead_of_a_file(
    fault: Fault, error: type[Exception], server: Fake, store: S3Store, tmp_path: Path
) -> None:
    entries = store.keep(made(tmp_path, a=b"1" * 500, b=b"2" * 500), "data/a", ())
    server.fault = lambda r: fault if r.method == "GET" else None
    with pytest.raises(error):
        store.fetch("data/a", entries)


def test_files_of_a_pack_come_with_one_request(server: Fake, store: S3Store, tmp_path: Path) -> None:
    contents = {f"f{i}": os.urandom(i) for i in range(100)}
    entries = store.keep(made(tmp_path, **contents), "data/a", ())
    assert server.count("PUT", "data/a") == 1
    found = store.fetch("data/a", entries)
    assert {p.name: p.read_bytes() for p in found.iterdir()} == contents
    assert server.count("GET", "pack-000") == 1


def test_what_was_fetched_before_a_crash_does_not_come_again(server: Fake, store: S3Store, tmp_path: Path) -> None:
    content = os.urandom(MIB) * 64
    entries = store.keep(made(tmp_path, w=content, small=b"s"), "data/a", ())
    gone = Fault(403, b"<Error><Code>AccessDenied</Code></Error>")
    server.fault = lambda r: gone if r.method == "GET" and f"={48 * MIB}-" in r.headers.get("range", "") else None
    with pytest.raises(Unreachable):
        store.fetch("data/a", entries)
    half = tmp_path / "scratch" / "fetched" / "data" / "a"
    (half / "stray").write_bytes(b"of an earlier life")
    server.fault = lambda _: None
    before = server.count("GET", "/w")
    found = store.fetch("data/a", entries)
    assert {p.name: p.read_bytes() for p in found.iterdir()} == {"w": content, "small": b"s"}
    assert server.count("GET", "/w") - before == 1


def test_what_lies_there_is_verified_and_what_was_changed_since_comes_again(
    server: Fake, store: S3Store, tmp_path: Path
) -> None:
    entries = store.keep(made(tmp_path, w=b"w" * 3 * MIB), "data/a", ())
    found = store.fetch("data/a", entries)
    asked = server.count("GET")
    assert store.fetch("data/a", entries) == found
    assert server.count("GET") == asked, "once a pod"
    (found / "w").write_bytes(b"x" * 3 * MIB)
    assert (store.fetch("data/a", entries) / "w").read_bytes() == b"w" * 3 * MIB
    marker = found.with_name("a.whole")
    marker.write_text("")  # a crash between the last part and the marker
    asked = server.count("GET")
    store.fetch("data/a", entries)
    assert server.count("GET") == asked
    assert marker.read_text()


def _fetch(url: str, folder: Path, entries: Sequence[Any], start: Any) -> None:
    os.environ.update(KEYS)
    start.wait()
    assert (open_store(environment_of(url, folder)).fetch("data/a", entries) / "w").stat().st_size == 40 * MIB


def test_one_process_of_a_pod_downloads_also_if_the_first_is_killed(
    server: Fake, store: S3Store, tmp_path: Path
) -> None:
    entries = store.keep(made(tmp_path, w=os.urandom(MIB) * 40), "data/a", ())
    fork = multiprocessing.get_context("fork")
    start = fork.Event()
    server.fault = lambda r: time.sleep(0.2) if r.method == "GET" else None
    ranks = [fork.Process(target=_fetch, args=(server.url, tmp_path, entries, start)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    start.set()
    while not server.count("GET"):
        time.sleep(0.01)
    _holder(ranks).kill()
    for rank in ranks:
        rank.join(60)
    assert sorted(rank.exitcode for rank in ranks if rank.exitcode is not None) == [-signal.SIGKILL, 0, 0, 0]
    assert server.count("GET", "/w") <= 3 + 4


def _holder(ranks: Sequence[Any]) -> Any:
    """Who downloads: the one with connections."""
    for rank in ranks:
        links = [os.readlink(link) for link in Path(f"/proc/{rank.pid}/fd").iterdir() if link.is_symlink()]
        if any("fetched" in link and not link.endswith(".lock") for link in links):
            return rank
    return ranks[0]


def test_who_must_leave_does_not_wait_for_another_download(server: Fake, store: S3Store, tmp_path: Path) -> None:
    entries = store.keep(made(tmp_path, w=b"w"), "data/a", ())
    place = tmp_path / "scratch" / "fetched" / "data"
    place.mkdir(parents=True)
    script = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(place / "a.lock")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        store._wire._leave_by = lambda: 0.0
        with pytest.raises(Unreachable, match="still fetches"):
            store.fetch("data/a", entries)
        other.kill()


def test_a_file_that_shrinks_while_it_is_sent_is_the_trainers_error(
    server: Fake, store: S3Store, tmp_path: Path
) -> None:
    folder = made(tmp_path, w=bytes(40 * MIB))

    def shrink(request: Request) -> None:
        if "uploads" in request.query:
            os.truncate(folder / "w", MIB)

    server.fault = shrink
    with pytest.raises(ValueError, match="became shorter while it was sent"):
        store.keep(folder, "data/a", ())
    assert server.objects == {}


SENDING = """
import json, os, resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from stores import environment_of
from trialkeeper.store import files
from trialkeeper.store.opening import open_store
files.digest = lambda descriptor, start, size: "0" * 64
files.part_size = lambda total: 75 << 20
store = open_store(environment_of(sys.argv[2], Path(sys.argv[3])))
store.list("")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
entries = store.keep(Path(sys.argv[3]) / "made", "data/a", ())
print(json.dumps([len(entries[0]["sha256"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def test_memory_does_not_grow_with_files_and_parts(server: Fake, tmp_path: Path) -> None:
    """2 GiB in parts as large as those of 300 GB: what is sent does not pass through memory."""
    _sparse(tmp_path / "made", 2 << 30)
    server.swallow = True
    done = subprocess.run(
        [sys.executable, "-c", SENDING, str(Path(__file__).parents[2]), server.url, str(tmp_path)],
        env=os.environ | KEYS,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts, grown = json.loads(done.stdout)
    assert parts == len(server.swallowed) == 28
    assert sum(server.swallowed) == 2 << 30
    assert grown < 30 << 10, f"{grown} KiB more than before"


# A directory.


def test_an_unchanged_file_is_a_link_and_a_changed_mode_makes_it_two(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    older = store.keep(made(tmp_path, w=b"w", v=b"v"), "data/1", ())
    again = made(tmp_path, w=b"w", v=b"v")
    (again / "v").chmod(0o600)
    store.keep(again, "data/2", older)
    inodes = {p.name: p.stat().st_ino for p in (tmp_path / "store" / "data" / "1").iterdir()}
    found = {p.name: p.stat() for p in (tmp_path / "store" / "data" / "2").iterdir()}
    assert found["w"].st_ino == inodes["w"]
    assert found["v"].st_ino != inodes["v"]
    assert found["v"].st_mode & 0o777 == 0o600


def test_a_good_copy_is_not_replaced_by_a_link_to_one_that_has_rotted(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    older = store.keep(made(tmp_path, w=b"good"), "data/1", ())
    (tmp_path / "store" / "data" / "1" / "w").write_bytes(b"bad!")
    newer = store.keep(made(tmp_path, w=b"good"), "data/2", older)
    assert (store.fetch("data/2", newer) / "w").read_bytes() == b"good"


def test_a_folder_of_another_file_system_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "another device")

    store = DirectoryStore(tmp_path / "store")
    folder = made(tmp_path, w=b"w")
    (folder / "deep").mkdir()
    (folder / "deep" / "run").write_bytes(b"r")
    (folder / "deep" / "run").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        entries = store.keep(folder, "data/1", ())
    found = store.fetch("data/1", entries)
    assert folder.exists(), "for its owner to remove"
    assert (found / "w").read_bytes() == b"w"
    assert (found / "deep" / "run").stat().st_mode & 0o777 == 0o755


def test_a_directory_is_verified_once_a_pod_and_again_after_a_change(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store", tmp_path / "scratch")
    entries = store.keep(made(tmp_path, w=os.urandom(1000), v=b"v"), "data/1", ())
    found = store.fetch("data/1", entries)
    store.fetch("data/1", entries)
    rng = random.Random(1)
    for _ in range(20):
        content = bytearray((found / "w").read_bytes())
        content[rng.randrange(1000)] ^= 1
        (found / "w").write_bytes(content)
        with pytest.raises(CheckpointCorrupt):
            store.fetch("data/1", entries)
    (found / "w").unlink()
    with pytest.raises(CheckpointCorrupt, match="w is missing"):
        store.fetch("data/1", entries)


def test_a_scratch_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("no folder")
    store = DirectoryStore(tmp_path / "store", tmp_path / "scratch")
    entries = store.keep(made(tmp_path, w=b"w"), "data/1", ())
    assert (store.fetch("data/1", entries) / "w").read_bytes() == b"w"


def test_a_file_elsewhere_is_no_file_of_a_directorys_checkpoint(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.keep(made(tmp_path, w=b"w"), "data/1", ())
    with pytest.raises(CheckpointCorrupt, match="not in the folder of its checkpoint"):
        store.fetch("data/1", [entry("w", key="data/2/w")])
