"""Files to and from a bucket over a few connections; no more than a chunk of any of them in memory.

Large files are objects of their own, sent in parts; small ones are packed into objects of some size, since a request
costs as much as half a megabyte. Each part is hashed by the worker that sends it or receives it, while others send.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import urllib3

from trialkeeper import parallel
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.manifest import PART_SIZE, Entry
from trialkeeper.store import Missing
from trialkeeper.store.files import CHUNK, File, digest, hash_all, hash_part, opened, parts
from trialkeeper.store.wire import CHANGED, PIECE, WORKERS, BrokenOff, FilePart, Refused, Torn, Wire, xml

SENDERS = WORKERS + 2  # so that four send while others hash
SMALL = 1 << 20  # bytes: what is smaller is packed
PACK = 64 << 20  # bytes of a pack, at most
GAP = 1 << 20  # bytes that are read and thrown away rather than asking twice


class Upload(NamedTuple):
    """An object, and the file or the files it is made of."""

    key: str
    files: Sequence[File]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def entries(self) -> Iterator[Entry]:
        """What the manifest says of its files, once they are hashed."""
        offset = 0
        for file in self.files:
            yield file.entry(self.key, offset)
            offset += file.size


def plan(files: Sequence[File], key: str) -> list[Upload]:
    """Which objects below `key` files become; no two of them have the same key."""
    small = [file for file in files if file.size < SMALL]
    packed = small if len(small) > 1 else []
    plain = [file for file in files if file.size >= SMALL or not packed]
    taken = {file.path.partition("/")[0] for file in plain}
    names = (name for number in itertools.count() if (name := f"pack-{number:03d}") not in taken)
    return [
        *(Upload(f"{key}/{file.path}", [file]) for file in plain),
        *(Upload(f"{key}/{next(names)}", pack) for pack in _packs(packed)),
    ]


def _packs(files: Iterable[File]) -> Iterator[list[File]]:
    pack: list[File] = []
    held = 0
    for file in files:
        if pack and held + file.size > PACK:
            yield pack
            pack, held = [], 0
        pack.append(file)
        held += file.size
    if pack:
        yield pack


class _Slice:
    """A body that is some bytes of an open file."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor, self._start, self.size = descriptor, start, size

    def __iter__(self) -> Iterator[FilePart]:
        end = self._start + self.size
        for at in range(self._start, end, PIECE):
            yield FilePart(self._descriptor, at, min(PIECE, end - at))


class _Packed:
    """A body that is one file after the other."""

    def __init__(self, files: Sequence[File]) -> None:
        self._files, self.size = files, sum(file.size for file in files)

    def __iter__(self) -> Iterator[bytes]:
        held: list[bytes] = []
        size = 0
        for file in self._files:
            data = file.local.read_bytes()
            if len(data) != file.size:
                raise ValueError(CHANGED)
            held.append(data)
            size += len(data)
            if size >= PIECE:
                yield b"".join(held)
                held, size = [], 0
        yield b"".join(held)


def upload(wire: Wire, folder: str, uploads: Sequence[Upload]) -> None:
    """Store objects below `folder`, and hash what is not hashed yet.

    :raises OSError: if one of them could not be stored; unfinished ones leave nothing that is listed.
    :raises ValueError: if a file becomes shorter meanwhile.
    """
    multipart: list[_Multipart] = []
    try:
        parallel.run(_sends(wire, folder, uploads, multipart), SENDERS)
    except BaseException:
        # Stores and their lifecycle rules expire what was begun and not completed; a dead one is not waited for.
        with contextlib.suppress(OSError):
            for begun in multipart:
                begun.give_up()
        raise


def _sends(
    wire: Wire, folder: str, uploads: Sequence[Upload], multipart: list[_Multipart]
) -> Iterator[Callable[[], object]]:
    for found in uploads:
        full = f"{folder}/{found.key}"
        if len(found.files) > 1:
            yield partial(_send_pack, wire, full, found.files)
        elif len(found.files[0].sha256) <= 1:
            yield partial(_send_file, wire, full, found.files[0])
        else:
            multipart.append(begun := _Multipart(wire, full, found.files[0]))
            yield from (partial(begun.send, number) for number in range(len(found.files[0].sha256)))


def _send_pack(wire: Wire, key: str, files: Sequence[File]) -> None:
    for file in files:
        hash_all(file)
    wire.request("PUT", key, body=_Packed(files))


def _send_file(wire: Wire, key: str, file: File) -> None:
    with opened(file.local) as descriptor:
        for number in range(len(file.sha256)):
            hash_part(file, descriptor, number)
        wire.request("PUT", key, body=_Slice(descriptor, 0, file.size))


class _Multipart:
    """One object's upload in parts. Safe for threads: whoever sends first begins it, whoever sends last ends it."""

    def __init__(self, wire: Wire, key: str, file: File) -> None:
        self._wire, self._key, self._file = wire, key, file
        self._lock = threading.Lock()
        self._id = ""
        self._tags = [""] * len(file.sha256)
        self._left = len(file.sha256)

    def send(self, number: int) -> None:
        file = self._file
        with self._lock:
            if not self._id:
                self._id = self._begin()
        start = number * file.part
        with opened(file.local) as descriptor:
            hash_part(file, descriptor, number)
            body = _Slice(descriptor, start, min(file.part, file.size - start))
            asked = {"partNumber": str(number + 1), "uploadId": self._id}
            self._tags[number] = self._wire.request("PUT", self._key, asked, body=body).headers.get("ETag", "")
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._complete()
            self._id = ""

    def _begin(self) -> str:
        begun = xml(self._wire.request("POST", self._key, {"uploads": ""}).body, "InitiateMultipartUploadResult")
        found = "" if begun is None else (begun.findtext("UploadId") or "")
        if not found:
            raise Refused(f"{self._wire.bucket} does not say how to go on with {self._key}")
        return found

    def _complete(self) -> None:
        wire, key = self._wire, self._key
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in enumerate(self._tags, 1)
        )
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        answer = wire.request("POST", key, {"uploadId": self._id}, body=body, ready_for=(404,))
        # An error may come with status 200, after a while of spaces; and one try's answer may have been lost, in
        # which case the upload is gone and the object is there.
        if answer.status == 404 or xml(answer.body, "CompleteMultipartUploadResult") is None:
            there = wire.request("HEAD", key, ready_for=(404,))
            if there.status == 404 or there.headers.get("Content-Length") != str(self._file.size):
                raise Refused(f"{wire.bucket} does not put the parts of {key} together")

    def give_up(self) -> None:
        """Drop what was sent of it, unless it is complete."""
        if self._id:
            self._wire.request("DELETE", self._key, {"uploadId": self._id}, ready_for=(404,))


class _Piece(NamedTuple):
    """A part of a file, and where it is in its object."""

    path: Path
    at: int
    start: int
    size: int
    sha256: str


def download(
    wire: Wire, folder: str, target: Path, entries: Sequence[Entry], told: Callable[[int], object] = lambda _: None
) -> None:
    """Fetch files into `target`, which then holds them and nothing else; what is there already is not fetched again.

    :param told: hears each time how many bytes more are there.
    :raises Missing: if an object is gone.
    :raises CheckpointCorrupt: if what comes is not what was committed, also when it is asked for again.
    :raises OSError: if it could not be fetched, or not be written here.
    """
    _clear(target, entries)
    there = {entry["path"] for entry in entries if _prepared(target / entry["path"], entry["size"])}
    pieces: dict[str, list[_Piece]] = {}
    half = {target / path for path in there}
    for entry in entries:
        pieces.setdefault(entry["key"], []).extend(
            _Piece(target / entry["path"], at, entry["offset"] + at, size, known) for at, size, known in parts(entry)
        )
    parallel.run((partial(_fetch, wire, f"{folder}/{key}", span, half, told) for key, span in _spans(pieces)), WORKERS)
    for entry in entries:
        os.chmod(target / entry["path"], entry["mode"])


def _clear(target: Path, entries: Sequence[Entry]) -> None:
    """Remove what is in the way, or not asked for."""
    wanted = {entry["path"] for entry in entries}
    folders = {parent.as_posix() for path in wanted for parent in Path(path).parents}
    for parent, below, names in os.walk(target, topdown=False):
        for name in [*names, *below]:
            path = Path(parent) / name
            relative = path.relative_to(target).as_posix()
            if path.is_dir() and not path.is_symlink():
                if relative not in folders:
                    path.rmdir()
            elif relative not in wanted:
                path.unlink()
    target.mkdir(parents=True, exist_ok=True)


def _prepared(path: Path, size: int) -> bool:
    """Make room for a file; whether something of it may be there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.is_file() and not path.is_symlink() and path.stat().st_size == size
    if not there:
        path.unlink(missing_ok=True)
        with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            os.ftruncate(descriptor, size)
    return there


def _spans(pieces: Mapping[str, Iterable[_Piece]]) -> Iterator[tuple[str, list[_Piece]]]:
    """What to ask for at once: neighbours in one object, up to the size of a part."""
    for key, unordered in pieces.items():
        span: list[_Piece] = []
        for piece in sorted(unordered, key=lambda piece: piece.start):
            far = span and piece.start - (span[-1].start + span[-1].size) > GAP
            if span and (far or piece.start + piece.size - span[0].start > PART_SIZE):
                yield key, span
                span = []
            span.append(piece)
        if span:
            yield key, span


def _fetch(wire: Wire, key: str, span: Sequence[_Piece], half: set[Path], told: Callable[[int], object]) -> None:
    """Pieces of an object to where they belong; what comes wrong is asked for once more."""
    wanted = [piece for piece in span if piece.path not in half or not _whole(piece)]
    for _ in range(2):
        if wanted:
            wanted = _receive(wire, key, wanted)
    if not wanted:
        told(sum(piece.size for piece in span))
        return
    raise CheckpointCorrupt(f"{wanted[0].path.name} is not what was written")


def _whole(piece: _Piece) -> bool:
    with opened(piece.path) as descriptor:
        return digest(descriptor, piece.at, piece.size) == piece.sha256


def _receive(wire: Wire, key: str, pieces: Sequence[_Piece]) -> list[_Piece]:
    """Ask for pieces, in their order; those that did not come as they were written."""
    wrong: list[_Piece] = []
    start, end = pieces[0].start, pieces[-1].start + pieces[-1].size

    def sink(response: urllib3.BaseHTTPResponse) -> None:
        wrong.clear()
        if response.status != 206:
            raise BrokenOff("it does not send the part that was asked for")
        at = start
        for piece in pieces:
            for _ in _chunks(response, piece.start - at):
                pass
            found = sha256()
            with opened(piece.path, os.O_WRONLY) as descriptor:
                to = piece.at
                for chunk in _chunks(response, piece.size):
                    found.update(chunk)
                    to += _written(descriptor, chunk, to)
            if found.hexdigest() != piece.sha256:
                wrong.append(piece)
            at = piece.start + piece.size

    asked = {"Range": f"bytes={start}-{end - 1}"}
    try:
        answer = wire.request("GET", key, headers=asked, sink=sink, ready_for=(404, 416))
    except Torn as torn:
        raise CheckpointCorrupt(str(torn)) from None
    if answer.status == 404:
        raise Missing(key)
    if answer.status == 416:
        raise CheckpointCorrupt(f"{key} is shorter than it was when it was written")
    return wrong


def _chunks(response: urllib3.BaseHTTPResponse, size: int) -> Iterator[bytes]:
    """The next so many bytes of a body."""
    left = size
    while left:
        try:
            chunk = response.read(min(CHUNK, left))
        except urllib3.exceptions.ProtocolError:
            chunk = b""
        if not chunk:
            raise BrokenOff(f"{left} of {size} bytes do not come")
        left -= len(chunk)
        yield chunk


def _written(descriptor: int, data: bytes, at: int) -> int:
    done = os.pwrite(descriptor, data, at)
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], at + done)
    return done
