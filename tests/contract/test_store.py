"""The Store contract, on every store there is."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import manifests
from stores import ASKED, STORES
from trialkeeper import manifest, resuming
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.store import AlreadyThere, Missing, Store
from trialkeeper.store.directory import DirectoryStore
from trialkeeper.store.s3 import S3Store


@pytest.fixture(params=ASKED)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with STORES[request.param](tmp_path) as opened:
        yield opened


def test_what_is_put_can_be_read(store: Store) -> None:
    store.put_new("attempts/000001.json", b"{}")
    assert store.get("attempts/000001.json") == b"{}"


def test_a_key_is_put_once(store: Store) -> None:
    store.put_new("a/b", b"1")
    with pytest.raises(AlreadyThere):
        store.put_new("a/b", b"2")
    assert store.get("a/b") == b"1"


def test_what_is_not_there_is_missing(store: Store) -> None:
    with pytest.raises(Missing):
        store.get("a/b")
    gone = {"path": "w", "size": 1, "mode": 0o644, "partSize": 1, "sha256": ["0" * 64], "key": "data/x/w", "offset": 0}
    with pytest.raises(Missing):
        store.fetch("data/x", [gone])


def test_keys_are_listed_sorted_and_by_prefix(store: Store) -> None:
    assert store.list("m/") == []
    for key in ("m/b", "m/a", "n/c", "m/d/e"):
        store.put_new(key, b"")
    assert store.list("m/") == ["m/a", "m/b", "m/d/e"]
    assert store.list("m/d") == ["m/d/e"]


def test_deleting_is_quiet_about_what_is_not_there(store: Store) -> None:
    store.put_new("a", b"")
    store.delete("a")
    store.delete("a")
    assert store.list("") == []


def test_a_folder_is_taken_whole(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "w").write_bytes(b"weights")
    (folder / "empty").write_bytes(b"")
    files = store.keep(folder, "data/a1", ())
    assert folder.exists(), "for its owner to remove"
    found = store.fetch("data/a1", files)
    assert (found / "deep" / "w").read_bytes() == b"weights"
    assert (found / "empty").read_bytes() == b""
    store.delete("data/a1")
    with pytest.raises(Missing):
        store.fetch("data/a1", files)


def test_a_folder_may_hold_large_files_and_names_of_every_kind(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    files = {
        "large": bytes(range(256)) * (1 << 17),
        "ä b/+%41&?=#": b"1",
        "a" * 200: b"2",
        ".hidden": b"3",
        "a\u00a0\u3000": b"4",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    found = store.fetch("data/a1", store.keep(folder, "data/a1", ()))
    assert {p.relative_to(found).as_posix(): p.read_bytes() for p in found.rglob("*") if p.is_file()} == files


def _made(tmp_path: Path, files: Mapping[str, bytes]) -> Path:
    folder = tmp_path / f"made-{os.urandom(4).hex()}"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _read(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_modes_are_kept(store: Store, tmp_path: Path) -> None:
    folder = _made(tmp_path, {"run": b"1", "deep/read": b"2", "large": bytes(2 << 20)})
    for name, mode in (("run", 0o755), ("deep/read", 0o440), ("large", 0o600)):
        (folder / name).chmod(mode)
    found = store.fetch("data/a", store.keep(folder, "data/a", ()))
    modes = {name: (found / name).stat().st_mode & 0o777 for name in ("run", "deep/read", "large")}
    assert modes == {"run": 0o755, "deep/read": 0o440, "large": 0o600}


def test_what_an_entry_says_is_where_the_bytes_are(store: Store, tmp_path: Path) -> None:
    """Whoever reads a manifest without this package finds each file, in every layout."""
    files = {f"small/{i}": os.urandom(i * 1000) for i in range(9)} | {"large": os.urandom(3 << 20)}
    for entry in store.keep(_made(tmp_path, files), "data/a", ()):
        there = store.get(entry["key"])[entry["offset"] : entry["offset"] + entry["size"]]
        assert there == files[entry["path"]]
        parts = [there[at : at + entry["partSize"]] for at in range(0, len(there), entry["partSize"])]
        assert [hashlib.sha256(part).hexdigest() for part in parts] == entry["sha256"]


def test_an_unchanged_file_is_not_stored_again(store: Store, tmp_path: Path) -> None:
    first = {f"s{i}": os.urandom(1000) for i in range(20)} | {"a": os.urandom(2 << 20), "b": os.urandom(17 << 20)}
    older = store.keep(_made(tmp_path, first), "data/1", ())
    before = _disk(store, tmp_path)
    second = first | {"s7": os.urandom(1000), "a": first["a"][:-1] + b"!", "new": b"n"}
    newer = store.keep(_made(tmp_path, second), "data/2", older)
    assert _disk(store, tmp_path) - before < 3 << 20
    third = store.keep(_made(tmp_path, second), "data/3", [*newer, *older])
    for key, entries, files in (("data/1", older, first), ("data/2", newer, second), ("data/3", third, second)):
        assert [entry["path"] for entry in entries] == sorted(files)
        assert _read(store.fetch(key, entries)) == files
    assert {entry["path"]: entry["sha256"] for entry in third} == {entry["path"]: entry["sha256"] for entry in newer}


def _disk(store: Store, tmp_path: Path) -> int:
    """Bytes that a store takes, each file once."""
    if isinstance(store, DirectoryStore):
        return sum({(s := p.stat()).st_ino: s.st_size for p in (tmp_path / "store").rglob("*") if p.is_file()}.values())
    return sum(size for _, size, _ in store.sizes("data/"))


def test_what_is_gone_is_stored_again(store: Store, tmp_path: Path) -> None:
    files = {"a": os.urandom(2 << 20), "s1": b"1", "s2": b"2"}
    older = store.keep(_made(tmp_path, files), "data/1", ())
    store.delete("data/1")
    newer = store.keep(_made(tmp_path, files), "data/2", older)
    assert _read(store.fetch("data/2", newer)) == files


def test_checkpoints_that_share_files_are_deleted_one_by_one(store: Store, tmp_path: Path) -> None:
    files = {"a": os.urandom(2 << 20)}
    older = store.keep(_made(tmp_path, files), "data/1", ())
    newer = store.keep(_made(tmp_path, files), "data/2", older)
    store.delete("data/2")
    assert _read(store.fetch("data/1", older)) == files
    del newer


def _flip(store: Store, key: str, position: int, bit: int) -> None:
    """Change one bit of what is stored under a key; once more changes it back."""
    data = bytearray(store.get(key))
    data[position] ^= 1 << bit
    if isinstance(store, S3Store):
        store._wire.request("PUT", store._key(key), body=bytes(data))
    else:
        assert isinstance(store, DirectoryStore)
        store._path(key).write_bytes(data)


def test_every_flipped_bit_is_found(store: Store, tmp_path: Path) -> None:
    """1,000 of 1,000 in a directory, of data and of the manifest; on a bucket fewer, since each is a download."""
    rng = random.Random(6)
    files = {"a/small": os.urandom(700), "b": os.urandom(90_000), "c": os.urandom(1_200_000)}
    entries = store.keep(_made(tmp_path, files), "data/1", ())
    body = manifests.body(files=list(entries), data="data/1")
    store.put_new("manifests/a000001-i000000000001.json", manifest.encode(body))
    number = 1000 if isinstance(store, DirectoryStore) else 60
    for _ in range(number):
        entry = rng.choice(entries)
        key, at = (
            (entry["key"], entry["offset"] + rng.randrange(entry["size"]))
            if rng.random() < 0.5
            else ("manifests/a000001-i000000000001.json", rng.randrange(len(manifest.encode(body))))
        )
        bit = rng.randrange(8)
        _flip(store, key, at, bit)
        with pytest.raises(CheckpointCorrupt):
            resuming.load(store, "manifests/a000001-i000000000001.json")
        _flip(store, key, at, bit)
    assert _read(resuming.load(store, "manifests/a000001-i000000000001.json").path) == files


def test_sizes_and_times_of_keys_are_told(store: Store, tmp_path: Path) -> None:
    store.put_new("manifests/a", b"123")
    store.keep(_made(tmp_path, {"x": bytes(2 << 20), ".hidden": bytes(1 << 20)}), "data/a1", ())
    store.put_new("data/a10", b"")
    found = {key: (size, written) for key, size, written in store.sizes("data/a1")}
    assert {key: size for key, (size, _) in found.items()} == {
        "data/a1/x": 2 << 20,
        "data/a1/.hidden": 1 << 20,
        "data/a10": 0,
    }
    assert all(0 < written <= time.time() + 1 for _, written in found.values())
    assert [key for key, _, _ in store.sizes("manifests/")] == ["manifests/a"]
    assert [*store.sizes("nothing/")] == []


def test_two_folders_of_which_one_begins_like_the_other_are_two(store: Store, tmp_path: Path) -> None:
    for name in ("data/a1", "data/a10"):
        folder = tmp_path / "made"
        folder.mkdir(exist_ok=True)
        (folder / "w").unlink(missing_ok=True)
        (folder / "w").write_text(name)
        files = store.keep(folder, name, ())
    store.delete("data/a1")
    assert (store.fetch("data/a10", files) / "w").read_text() == "data/a10"


def test_lines_are_appended_over_several_openings(store: Store) -> None:
    first = store.append("results/a.jsonl")
    first.write(b"1\n")
    second = store.append("results/a.jsonl")
    second.write(b"2\n")
    second.sync()
    assert [*store.lines("results/a.jsonl")] == [b"2\n", b"1\n"]
    first.write(b"3\n")
    first.write(b"4\n")
    first.sync()
    first.sync()
    assert [*store.lines("results/a.jsonl")] == [b"4\n", b"3\n", b"2\n", b"1\n"]
    assert [*store.lines("results/b.jsonl")] == []


@pytest.mark.parametrize("key", ["../x", "/etc/x", "a/../../x", "", "."])
def test_a_key_cannot_leave_its_prefix(store: Store, key: str) -> None:
    for call in (store.get, store.delete, lambda k: store.fetch(k, ()), lambda k: store.put_new(k, b"")):
        with pytest.raises(ValueError, match="leaves the trial's folder"):
            call(key)


def test_a_link_in_the_store_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "prefix").mkdir()
    (tmp_path / "prefix" / "data").symlink_to(tmp_path / "secret")
    store = DirectoryStore(tmp_path / "prefix")
    for call in (store.get, lambda k: store.fetch(k, ()), lambda k: store.put_new(k, b"")):
        with pytest.raises(ValueError, match="leaves the trial's folder"):
            call("data/x")


def test_a_folder_that_cannot_be_read_is_not_empty(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    (tmp_path / "manifests").write_text("")
    with pytest.raises(OSError, match="manifests"):
        store.list("manifests/")


def test_lines_that_could_not_be_written_come_first_the_next_time(tmp_path: Path) -> None:
    lines = DirectoryStore(tmp_path).append("results/a.jsonl")
    (tmp_path / "results").write_text("in the way")
    for line in (b"1\n", b"2\n"):
        with pytest.raises(OSError, match="results"):
            lines.write(line)
    with pytest.raises(OSError, match="results"):
        lines.sync()
    (tmp_path / "results").unlink()
    lines.write(b"3\n")
    assert (tmp_path / "results" / "a.jsonl").read_bytes() == b"1\n2\n3\n"


def test_a_torn_line_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"1\n2")
    DirectoryStore(tmp_path).append("a.jsonl").write(b"3\n")
    assert (tmp_path / "a.jsonl").read_bytes() == b"1\n2\n3\n"


def _race(root: Path, number: int, barrier: object, won: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    try:
        DirectoryStore(root).put_new("attempts/000001.json", str(number).encode() * 1000)
        won.put(number)  # type: ignore[attr-defined]
    except AlreadyThere:
        won.put(None)  # type: ignore[attr-defined]


def test_of_many_racing_writers_exactly_one_wins_and_is_stored_whole(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    for round_ in range(5):
        root, barrier, won = tmp_path / str(round_), spawn.Barrier(16), spawn.Queue()
        racers = [spawn.Process(target=_race, args=(root, n, barrier, won)) for n in range(16)]
        for racer in racers:
            racer.start()
        winners = [n for _ in racers if (n := won.get(timeout=30)) is not None]
        for racer in racers:
            racer.join()
        assert len(winners) == 1
        assert DirectoryStore(root).get("attempts/000001.json") == str(winners[0]).encode() * 1000
