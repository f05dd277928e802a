"""Cases that send and fetch. Each prepares, measures what is between, and cleans up."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from loop import MIB
from minio import Minio as Client
from place import Measured, Place, measured

from trialkeeper.store.address import bucket_of

PART = 16 * MIB
CONNECTIONS = 4
RAW = "raw"  # the key of what is put without us
KEPT = "space/exp-1/00000/data/kept/source"  # the object that is fetched


def put(place: Place, client: Client, file: Path) -> None:
    """One presigned PUT, by sendfile."""
    with file.open("rb") as source, _connection(place) as connection:
        url = client.get_presigned_url("PUT", bucket_of(place.url).name, RAW)
        _send(connection, url, source, 0, file.stat().st_size)


def put_raw(place: Place) -> Measured:
    """The bytes alone."""
    found: Measured = {}
    client = place.client()
    with measured(found):
        put(place, client, place.source)
    client.remove_object(bucket_of(place.url).name, RAW)
    return found


def get_raw(place: Place) -> Measured:
    """The bytes alone: one presigned GET into a file, a MiB at a time."""
    found: Measured = {}
    client, name = place.client(), bucket_of(place.url).name
    buffer = memoryview(bytearray(MIB))
    with measured(found), (place.own / "fetched").open("wb") as file, _connection(place) as connection:
        parts = urlsplit(client.get_presigned_url("GET", name, KEPT))
        connection.request("GET", f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        while size := answer.readinto(buffer):
            file.write(buffer[:size])
        assert file.tell() == place.source.stat().st_size
    return found


@contextmanager
def _connection(place: Place) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(bucket_of(place.url).endpoint).netloc)
    yield connection
    connection.close()


def _send(connection: http.client.HTTPConnection, url: str, file: BinaryIO, start: int, size: int) -> str:
    """Put bytes of a file under a presigned URL; the ETag."""
    parts = urlsplit(url)
    connection.putrequest("PUT", f"{parts.path}?{parts.query}")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    connection.sock.sendfile(file, start, size)
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200
    return str(answer.getheader("ETag")).strip('"')


def put_parts(place: Place) -> Measured:
    """The bytes alone as we send them: parts over four connections, by sendfile; nothing is hashed."""
    found: Measured = {}
    client, key, size = place.client(), "parts", place.source.stat().st_size
    name = bucket_of(place.url).name
    with measured(found):
        upload_id = client._create_multipart_upload(name, key, {})
        numbers = iter(range(-(-size // PART)))

        def send(_: int) -> list[tuple[int, str]]:
            tags = []
            with place.source.open("rb") as file, _connection(place) as connection:
                for number in numbers:
                    asked: dict[str, str | list[str] | tuple[str]] = {
                        "partNumber": str(number + 1),
                        "uploadId": upload_id,
                    }
                    url = client.get_presigned_url("PUT", name, key, extra_query_params=asked)
                    length = min(PART, size - number * PART)
                    tags.append((number + 1, _send(connection, url, file, number * PART, length)))
            return tags

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            tags = sorted(tag for some in pool.map(send, range(CONNECTIONS)) for tag in some)
        _complete(client, name, key, upload_id, tags)
    client.remove_object(name, key)
    return found


def _complete(client: Client, bucket: str, key: str, upload_id: str, tags: list[tuple[int, str]]) -> None:
    from minio.datatypes import Part

    client._complete_multipart_upload(bucket, key, upload_id, [Part(number, tag) for number, tag in tags])


def put_minio(place: Place) -> Measured:
    """minio-py as it comes."""
    found: Measured = {}
    client, name = place.client(), bucket_of(place.url).name
    with measured(found):
        client.fput_object(name, "fput", str(place.source))
    client.remove_object(name, "fput")
    return found


def put_ours(place: Place) -> Measured:
    """A checkpoint of one file: sent, and each part hashed."""
    found: Measured = {}
    folder = place.folder("made", place.source)
    store = place.store()
    with measured(found):
        files = store.keep(folder, "data/ours", ())
    assert all(files[0]["sha256"])
    store.delete("data/ours")
    return found


def get_minio(place: Place) -> Measured:
    found: Measured = {}
    client, name = place.client(), bucket_of(place.url).name
    with measured(found):
        client.fget_object(name, KEPT, str(place.own / "fetched"))
    return found


def get_ours(place: Place) -> Measured:
    """A committed checkpoint of one file, verified."""
    found: Measured = {}
    files = json.loads((place.shared / "kept.json").read_text())
    store = place.store()
    with measured(found):
        folder = store.fetch("data/kept", files)
    assert (folder / "source").stat().st_size == place.source.stat().st_size
    return found


def put_small(place: Place) -> Measured:
    """1,000 files of 16 KiB."""
    found: Measured = {}
    store, folder = place.store(), _many(place, "made", 1000, 16 << 10)
    store.list("")
    with measured(found):
        store.keep(folder, "data/small", ())
    store.delete("data/small")
    return found


def get_small(place: Place) -> Measured:
    found: Measured = {}
    store = place.store()
    files = store.keep(_many(place, "made", 1000, 16 << 10), "data/small", ())
    with measured(found):
        store.fetch("data/small", files)
    store.delete("data/small")
    return found


def put_again(place: Place) -> Measured:
    """100 files of 1 MiB, of which one has changed since the last checkpoint; `ratio`: bytes stored anew."""
    found: Measured = {}
    store = place.store()
    older = store.keep(_many(place, "first", 100, MIB), "data/first", ())
    again = _many(place, "second", 100, MIB)
    (again / "50").write_bytes(os.urandom(MIB))
    with measured(found):
        files = store.keep(again, "data/second", older)
    told = len(json.dumps(files, separators=(",", ":")))
    sent = sum(size for _, size, _ in store.sizes("data/second/")) + told
    found["ratio"] = sent / (100 * MIB)
    for key in ("data/first", "data/second"):
        store.delete(key)
    return found


def _many(place: Place, name: str, number: int, size: int) -> Path:
    folder = place.own / name
    folder.mkdir()
    fill(place, folder, number, size)
    return folder


def fill(place: Place, folder: Path, number: int, size: int) -> None:
    """Write so many files of so many bytes."""
    with place.source.open("rb") as source:
        for i in range(number):
            (folder / str(i)).write_bytes(source.read(size))
