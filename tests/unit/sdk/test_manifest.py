"""Manifests that others have written: what is wrong with them is found before anything is done with them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import body, entry
from trialkeeper import manifest, resuming
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.manifest import Progress
from trialkeeper.store import Missing
from trialkeeper.store.directory import DirectoryStore

KEY = "manifests/a000001-i000000000001.json"


def test_a_manifest_comes_back_as_it_was_written() -> None:
    assert manifest.decode(manifest.encode(body())) == json.loads(manifest.encode(body()))
    Progress.from_json(body()["progress"])


HOSTILE: dict[str, Any] = {
    "leaves its folder": [entry("../w")],
    "leaves it deep inside": [entry("a/../../w")],
    "is absolute": [entry("/etc/w")],
    "is a folder": [entry("a/")],
    "is nothing": [entry("")],
    "is the folder itself": [entry(".")],
    "goes nowhere": [entry("a//b")],
    "stays": [entry("a/./b")],
    "has a null byte": [entry("a\0b")],
    "is no text": [entry() | {"path": 3}],
    "cannot be a name": [entry("\ud800")],
    "has a name too long": [entry("a" * 256)],
    "is too long": [entry("a/" * 2500 + "b")],
    "is there twice": [entry("a"), entry("a", key="data/x/b")],
    "is another's folder": [entry("a"), entry("a/b")],
    "is another's folder's folder": [entry("a/b/c"), entry("a")],
    "has a negative size": [entry(size=-1)],
    "has an absurd size": [entry(size=2**60, sha256=["0" * 64])],
    "has a size that is no whole number": [entry() | {"size": 1.0}],
    "has a size that is a truth": [entry() | {"size": True}],
    "has a negative offset": [entry(offset=-1)],
    "has an absurd offset": [entry(offset=2**70)],
    "has parts of nothing": [entry(partSize=0)],
    "has absurd parts": [entry(partSize=2**50)],
    "has a hash too few": [entry(size=17 << 20, sha256=["0" * 64])],
    "has a hash too many": [entry(sha256=["0" * 64] * 2)],
    "has a hash that is none": [entry(sha256=["0" * 63 + "g"])],
    "has a hash that is a number": [entry(sha256=[1])],
    "has no hashes": [entry() | {"sha256": None}],
    "has a mode with more than rights": [entry(mode=0o4755)],
    "is in no data": [entry(key="attempts/000001.json")],
    "is outside of the prefix": [entry(key="data/../../other/data/x/w")],
    "is elsewhere altogether": [entry(key="/data/x")],
    "overlaps another": [entry("a", 5, key="data/x/p"), entry("b", 5, key="data/x/p", offset=4)],
    "is the same as another": [entry("a", 5, key="data/x/p"), entry("b", 5, key="data/x/p")],
    "is no entry": ["w"],
    "is missing": [],
    "is no list": {"path": "w"},
}


@pytest.mark.parametrize("files", HOSTILE.values(), ids=[*HOSTILE])
def test_a_file_that_cannot_be_is_corrupt(files: Any) -> None:
    with pytest.raises(CheckpointCorrupt, match="the manifest's files"):
        manifest.checked(body(files=files))


@pytest.mark.parametrize("field", [name for name in body() if name != "step"])
def test_no_field_may_be_missing(field: str) -> None:
    given = body()
    del given[field]
    with pytest.raises(CheckpointCorrupt, match=field):
        manifest.decode(manifest.encode(given))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something else could stand in a JSON value."""
    found = [path]
    if isinstance(value, dict):
        found += [p for name, item in value.items() for p in _places(item, (*path, name))]
    elif isinstance(value, list):
        found += [p for number, item in enumerate(value) for p in _places(item, (*path, number))]
    return found


def _replaced(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    made = copy.deepcopy(value)
    at = made
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = other
    return made


Junk = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**80), 2**80),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(["..", "/etc/passwd", "data/../x", "a\0", "\ud800", "\udce9", "data/x", "pickle", "0" * 64]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(_places(body())), Junk)
def test_whatever_stands_in_a_manifest_it_is_read_or_corrupt(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], junk: Any
) -> None:
    """Its own hash fits: whoever may write into the store has made it."""
    try:
        data = manifest.encode(_replaced(body(), place, junk))
    except AttributeError:
        return  # what is no mapping has no hash
    _read_or_corrupt(tmp_path_factory.getbasetemp() / "hostile", data)


def _read_or_corrupt(root: Path, data: bytes) -> None:
    (root / "manifests").mkdir(parents=True, exist_ok=True)
    folder = root / "data" / "a000001-i000000000001-00000000"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "w").write_bytes(b"w")
    (root / KEY).write_bytes(data)
    try:
        resuming.load(DirectoryStore(root), KEY)
    except (CheckpointCorrupt, Missing):
        return
    raise AssertionError("no hash of this manifest fits its file")


def test_a_whole_one_is_read(tmp_path: Path) -> None:
    from hashlib import sha256

    good = entry(sha256=[sha256(b"w").hexdigest()])
    with pytest.raises(AssertionError, match="no hash"):
        _read_or_corrupt(tmp_path, manifest.encode(body(files=[good])))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b" ",
        lambda data: b"",
        lambda data: b"null",
        lambda data: b"[]",
        lambda data: b"{}",
        lambda data: b"[" * 100_000,
        lambda data: b"\xff" * 10,
        lambda data: b'{"v":' + b"9" * 10_000 + b"}",
        lambda data: data.replace(b'"v":1', b'"v":1,"v":1'),
        lambda data: data.replace(b'"attempt":1', b'"attempt":2'),
    ],
)
def test_what_is_no_manifest_is_corrupt(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CheckpointCorrupt):
        manifest.decode(spoil(manifest.encode(body())))


def test_a_manifest_under_anothers_key_is_corrupt(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put_new("manifests/a000001-i000000000009.json", manifest.encode(body()))
    with pytest.raises(CheckpointCorrupt, match="another checkpoint's"):
        resuming.load(store, "manifests/a000001-i000000000009.json")


def test_a_link_in_a_checkpoint_is_not_followed(tmp_path: Path) -> None:
    from hashlib import sha256

    store = DirectoryStore(tmp_path / "store")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "w").write_bytes(b"w")
    folder = tmp_path / "store" / "data" / "a000001-i000000000001-00000000"
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "w").symlink_to(tmp_path / "secret" / "w")
    for path in ("link/w", "w"):
        found = entry(path, sha256=[sha256(b"w").hexdigest()])
        with pytest.raises(CheckpointCorrupt):
            store.fetch("data/a000001-i000000000001-00000000", [found])


@pytest.mark.parametrize(
    ("total", "part"),
    [
        (0, 16 << 20),
        (64 << 30, 16 << 20),
        ((64 << 30) + 1, 17 << 20),
        (300 * 10**9, 70 << 20),
        (5 << 40, 1280 << 20),
        (1 << 50, 5 << 30),
    ],
)
def test_parts_grow_with_the_total(total: int, part: int) -> None:
    assert manifest.part_size(total) == part
