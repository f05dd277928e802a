"""Files to and from a bucket, in parts of 16 MiB over a few connections; no more than a part of any file in memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from xml.sax.saxutils import escape

import urllib3

from trialkeeper import parallel
from trialkeeper.manifest import PART_SIZE
from trialkeeper.store.wire import WORKERS, BrokenOff, Refused, Wire, xml

CHUNK = 1 << 20  # bytes read at once


def upload(wire: Wire, files: Sequence[tuple[Path, str]]) -> None:
    """Store files under keys.

    :raises OSError: if one of them could not be stored; unfinished ones leave nothing that is listed.
    """
    small = [(path, key) for path, key in files if path.stat().st_size <= PART_SIZE]
    large = [(path, key) for path, key in files if path.stat().st_size > PART_SIZE]
    parallel.run((partial(_put, wire, path, key) for path, key in small), WORKERS)
    for path, key in large:
        _put_in_parts(wire, path, key)


def _put(wire: Wire, path: Path, key: str) -> None:
    wire.request("PUT", key, body=path.read_bytes())


def _put_in_parts(wire: Wire, path: Path, key: str) -> None:
    begun = xml(wire.request("POST", key, {"uploads": ""}).body, "InitiateMultipartUploadResult")
    upload = "" if begun is None else (begun.findtext("UploadId") or "")
    if not upload:
        raise Refused(f"{wire.bucket} does not say how to go on with {key}")
    try:
        tags = _send_parts(wire, path, key, upload)
        _complete(wire, path, key, upload, tags)
    except BaseException:
        try:
            wire.request("DELETE", key, {"uploadId": upload}, ready_for=(404,))
        except OSError:
            pass  # stores and their lifecycle rules expire what was begun and not completed
        raise


def _send_parts(wire: Wire, path: Path, key: str, upload: str) -> list[str]:
    size = path.stat().st_size
    tags = [""] * -(-size // PART_SIZE)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):

        def send(number: int) -> None:
            asked = {"partNumber": str(number + 1), "uploadId": upload}
            with view[number * PART_SIZE : (number + 1) * PART_SIZE] as part:
                tags[number] = wire.request("PUT", key, asked, body=part).headers.get("ETag", "")

        parallel.run((partial(send, number) for number in range(len(tags))), WORKERS)
    return tags


def _complete(wire: Wire, path: Path, key: str, upload: str, tags: Sequence[str]) -> None:
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
        for number, tag in enumerate(tags, 1)
    )
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    answer = wire.request("POST", key, {"uploadId": upload}, body=body, ready_for=(404,))
    # An error may come with status 200, after a while of spaces; and one try's answer may have been lost, in
    # which case the upload is gone and the object is there.
    if answer.status == 404 or xml(answer.body, "CompleteMultipartUploadResult") is None:
        there = wire.request("HEAD", key, ready_for=(404,))
        if there.status == 404 or there.headers.get("Content-Length") != str(path.stat().st_size):
            raise Refused(f"{wire.bucket} does not put the parts of {key} together")


def download(wire: Wire, files: Sequence[tuple[str, int, Path]]) -> None:
    """Fetch objects of known sizes into new files.

    :raises OSError: if one of them could not be fetched whole.
    """
    descriptors: list[int] = []
    try:
        parallel.run(_fetches(wire, files, descriptors), WORKERS)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _fetches(
    wire: Wire, files: Sequence[tuple[str, int, Path]], descriptors: list[int]
) -> Iterator[Callable[[], object]]:
    for key, size, path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        if size <= PART_SIZE:
            yield partial(_fetch_file, wire, key, size, path)
            continue
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        descriptors.append(descriptor)
        os.ftruncate(descriptor, size)
        for start in range(0, size, PART_SIZE):
            yield partial(_fetch, wire, key, descriptor, start, min(size, start + PART_SIZE))


def _fetch_file(wire: Wire, key: str, size: int, path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        if size:
            _fetch(wire, key, descriptor, 0, size)
    finally:
        os.close(descriptor)


def _fetch(wire: Wire, key: str, descriptor: int, start: int, end: int) -> None:
    """Bytes [start, end) of an object into a file, at their place."""

    def sink(response: urllib3.BaseHTTPResponse) -> None:
        if response.status != 206:
            raise BrokenOff("it does not send the part that was asked for")
        at = start
        while at < end:
            try:
                chunk = response.read(min(CHUNK, end - at))
            except urllib3.exceptions.ProtocolError:
                chunk = b""
            if not chunk:
                raise BrokenOff(f"after {at} of {end} bytes")
            at += os.pwrite(descriptor, chunk, at)

    wire.request("GET", key, headers={"Range": f"bytes={start}-{end - 1}"}, sink=sink)
