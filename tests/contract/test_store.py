"""The Store contract, on every store there is."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from stores import ASKED, STORES
from trialkeeper.store import AlreadyThere, Missing, Store
from trialkeeper.store.directory import DirectoryStore


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
    assert not folder.exists()
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


def test_two_folders_of_which_one_begins_like_the_other_are_two(store: Store, tmp_path: Path) -> None:
    for name in ("data/a1", "data/a10"):
        folder = tmp_path / "made"
        folder.mkdir()
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
