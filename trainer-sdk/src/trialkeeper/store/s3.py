"""A store that is a prefix of a bucket: a checkpoint is some objects, a commit is one that did not exist.

Keys are created by `If-None-Match: *`. There are stores that ignore it, so each process tries once whether
its store does; on such a store a key is looked up before and read back after it is put, which spares one of
two racing writers often and not always. What fences there is the reader's rule, see `history`.
"""

from __future__ import annotations

import os
import posixpath
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from trialkeeper import parallel
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.manifest import SIZE_LIMIT, Entry
from trialkeeper.store import AlreadyThere, Denied, Missing, Unreachable
from trialkeeper.store.files import File, forget, inventory, newest_by_path, once, unchanged
from trialkeeper.store.segments import Segments
from trialkeeper.store.transfer import download, plan, upload
from trialkeeper.store.wire import WORKERS, Refused, Wire, xml

if TYPE_CHECKING:
    from xml.etree import ElementTree

    from trialkeeper.store import Store

WRITE_ID = (
    "x-amz-meta-trialkeeper-write"  # an object's header: who wrote it, so that a lost answer can be told from a rival
)

KEY_LIMIT = 1024  # bytes

_honest: dict[str, bool] = {}  # by bucket: whether it honours If-None-Match, as tried by this process


class S3Store:
    """One trial's prefix below `folder` in a bucket; what is fetched and what is not sent yet is in `scratch`."""

    def __init__(self, wire: Wire, folder: str, scratch: Path) -> None:
        self._wire, self._folder, self._scratch = wire, folder.strip("/"), scratch
        self._appenders: dict[str, Segments] = {}

    def close(self) -> None:
        """Let go of all connections."""
        self._wire.close()

    def _key(self, key: str) -> str:
        if not key or key.startswith(("/", "../")) or posixpath.normpath(key) != key or key in (".", ".."):
            raise ValueError(f"{key!r} is not a key: it leaves the trial's folder")
        return f"{self._folder}/{key}"

    # Objects.

    def put_new(self, key: str, data: bytes) -> None:
        full, write = self._key(key), os.urandom(8).hex()
        if not self._honours_conditions():
            self._put_after_a_look(key, full, data, write)
            return
        headers = {"If-None-Match": "*", WRITE_ID: write}
        answer = self._wire.request("PUT", full, body=data, headers=headers, ready_for=(412,))
        if answer.status == 412 and not self._is_ours(full, data, write, answer.tries > 1):
            raise AlreadyThere(key)

    def _put_after_a_look(self, key: str, full: str, data: bytes, write: str) -> None:
        # No HEAD: the answer to it could not say what is refused.
        if self._wire.request("GET", full, ready_for=(404,)).status != 404:
            raise AlreadyThere(key)
        self._wire.request("PUT", full, body=data, headers={WRITE_ID: write})
        if not self._is_ours(full, data, write, True):
            raise AlreadyThere(key)

    def _is_ours(self, full: str, data: bytes, write: str, written: bool) -> bool:
        """Whether an object is what this call has put; a store that keeps no such header is asked for the content."""
        there = self._wire.request("GET", full, ready_for=(404,))
        if there.status == 404:
            raise Refused(f"{self._wire.bucket} says that {full} exists, and then that it does not")
        by = there.headers.get(WRITE_ID)
        return by == write if by is not None else written and there.body == data

    def _honours_conditions(self) -> bool:
        """Whether of two conditional writes to one key the second is refused."""
        bucket = self._wire.bucket.base
        if bucket not in _honest:
            probe = self._key(f"probes/{os.urandom(8).hex()}")
            ready, headers = (400, 412, 501), {"If-None-Match": "*"}
            try:
                answers = [self._wire.request("PUT", probe, headers=headers, ready_for=ready).status for _ in (1, 2)]
            except Denied:
                return False  # below another trial's prefix only pins may be put
            _honest[bucket] = answers[1] == 412
            try:
                self._wire.request("DELETE", probe, ready_for=(404,))
            except OSError:
                pass  # an empty object that nobody reads
        return _honest[bucket]

    def get(self, key: str) -> bytes:
        answer = self._wire.request("GET", self._key(key), ready_for=(404,))
        if answer.status == 404:
            raise Missing(key)
        return answer.body

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key, _, _ in self.sizes(prefix))

    def sizes(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        top = f"{self._folder}/"
        for key, size, modified in listed(self._wire, top + prefix):
            yield key[len(top) :], size, modified

    def delete(self, key: str) -> None:
        full = self._key(key)
        keys = [full, *(self._key(k) for k in self.list(f"{key}/"))]
        parallel.run((partial(self._wire.request, "DELETE", k, ready_for=(404,)) for k in keys), WORKERS)
        forget(self._fetched(key))

    # Lines.

    def append(self, key: str) -> Segments:
        self._key(key)
        if key not in self._appenders:
            self._appenders[key] = Segments(self, key, self._scratch / "unsent" / key)
        return self._appenders[key]

    def lines(self, key: str) -> Iterator[bytes]:
        for segment in reversed(self.list(f"{key}/")):
            yield from (line + b"\n" for line in reversed(self.get(segment).split(b"\n")[:-1]))

    # Checkpoints.

    def keep(self, folder: Path, key: str, older: Sequence[Entry]) -> Sequence[Entry]:
        top = self._key(key)
        files = inventory(folder)
        for file in files:
            if not _fits(f"{top}/{file.path}"):
                raise ValueError(f"checkpoint: a bucket cannot hold a file called {file.local.name[:80]!r}")
            if file.size > SIZE_LIMIT:
                raise ValueError(f"checkpoint: {file.path} is larger than a bucket's objects may be (5 TiB)")
        entries = self._reused(files, newest_by_path(older))
        uploads = plan([file for file in files if file.path not in entries], key)
        upload(self._wire, self._folder, uploads)
        entries.update((entry["path"], entry) for sent in uploads for entry in sent.entries())
        return [entries[file.path] for file in files]

    def _reused(self, files: Sequence[File], older: Mapping[str, Entry]) -> dict[str, Entry]:
        """By path, the entries of unchanged files whose bytes are still there.

        Not those in a pack that is mostly of no use any more: it could never be deleted.
        """
        same: dict[str, Entry] = {}

        def compare(file: File) -> None:
            if unchanged(file, older[file.path]):
                same[file.path] = {**older[file.path], "mode": file.mode}

        parallel.run((partial(compare, file) for file in files if file.path in older), WORKERS)
        folders = {"/".join(entry["key"].split("/")[:2]) for entry in same.values()}
        there = {key: size for folder in folders for key, size, _ in self.sizes(f"{folder}/")}
        used: Counter[str] = Counter()
        for entry in same.values():
            used[entry["key"]] += entry["size"]

        def serves(entry: Entry) -> bool:
            size = there.get(entry["key"], -1)
            return bool(entry["offset"] + entry["size"] <= size <= 2 * used[entry["key"]])

        return {path: entry for path, entry in same.items() if serves(entry)}

    def _fetched(self, key: str) -> Path:
        return self._scratch / "fetched" / key

    def fetch(self, key: str, files: Sequence[Entry]) -> Path:
        self._key(key)
        place = self._fetched(key)
        for entry in files:
            if not _fits(f"{self._folder}/{entry['key']}"):
                raise CheckpointCorrupt(f"{entry['key'][:80]!r} cannot be an object's key")

        def work() -> None:
            try:
                download(self._wire, self._folder, place, files)
            except Unreachable:
                raise  # what is here by now need not come again
            except BaseException:
                forget(place)
                raise

        once(place, place, files, work, self._wire.out_of_time)
        return place


def pages(wire: Wire, **asked: str) -> Iterator[ElementTree.Element]:
    """The pages of a list of the bucket, as XML; `asked` are the query's fields.

    :raises OSError: if it cannot be had whole.
    """
    query = {"list-type": "2", "encoding-type": "url", **asked}
    while True:
        page = xml(wire.request("GET", "", query).body, "ListBucketResult")
        if page is None:
            raise Refused(f"{wire.bucket} answers with something else than a list")
        yield page
        if page.findtext("IsTruncated") != "true":
            return
        query["continuation-token"] = page.findtext("NextContinuationToken") or ""
        if not query["continuation-token"]:
            raise Refused(f"{wire.bucket} does not say how its list goes on")


def listed(wire: Wire, prefix: str) -> Iterator[tuple[str, int, float]]:
    """(key, bytes, when it was written) of all of the bucket's objects whose key begins with `prefix`."""
    for page in pages(wire, prefix=prefix):
        for entry in page.iterfind("Contents"):
            key = unquote_plus(entry.findtext("Key") or "")
            if key.startswith(prefix):
                yield key, int(entry.findtext("Size") or 0), _time(entry.findtext("LastModified"))


def folders(wire: Wire, top: str) -> list[str]:
    """The names of what is directly below `top`, which is empty or ends with a slash."""
    prefixes = (
        entry.findtext("Prefix") or ""
        for page in pages(wire, prefix=top, delimiter="/")
        for entry in page.iterfind("CommonPrefixes")
    )
    return sorted({unquote_plus(prefix)[len(top) :].rstrip("/") for prefix in prefixes} - {""})


def _time(text: str | None) -> float:
    """Seconds since the epoch; a store that says none is taken to have written it now, so that nobody thinks it old."""
    try:
        return datetime.fromisoformat((text or "").replace("Z", "+00:00")).timestamp()
    except ValueError:
        return time.time()


def _fits(key: str) -> bool:
    """Whether S3 and its XML can hold a key."""
    try:
        return len(key.encode()) <= KEY_LIMIT and not any(c < " " or c == "\x7f" for c in key)
    except UnicodeEncodeError:
        return False


if TYPE_CHECKING:

    def _is_a_store(store: S3Store) -> Store:
        return store
