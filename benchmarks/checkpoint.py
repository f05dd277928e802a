"""What a checkpoint costs, next to what the same bytes cost without us.

A MinIO on this machine; beside a training it only takes what is left of the cores, since no trainer has its store on
its own. Each case runs in a fresh process, several rounds, all cases of a group one after the other in each; a ratio is
the median of the rounds' ratios, of that half of the rounds in which other processes used the machine least (`foreign`:
cores). The last line is one JSON object.

    python benchmarks/checkpoint.py [--rounds 5] [--mib 1024] [--only upload download ...] [--long] [--ray PYTHON]

`--long` adds a training with a checkpoint of 100 MB every five seconds, two minutes a case. `--ray` adds Ray Tune, of
whatever version that interpreter has; for Ray Tune a save is over when it is stored, since `report` waits for that.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import loop
from minio import Minio as Client

from minio_server import KEYS, minio
from minio_server import Minio as Server
from stores import environment_of
from trialkeeper.store import Store
from trialkeeper.store.address import bucket_of
from trialkeeper.store.opening import open_store
from trialkeeper.store.s3 import S3Store

MIB = 1 << 20
PART = 16 * MIB
CONNECTIONS = 4
IDLE = 0.25  # CPU seconds in a second
ALONE = 3.0  # seconds of training before and after each save
KEPT = "space/exp-1/00000/data/kept/source"  # the object that is fetched


@dataclass(frozen=True)
class Place:
    """Where a case runs: the bucket's URL, a folder that all cases share, and one of its own."""

    url: str
    shared: Path
    own: Path
    mib: int

    @property
    def source(self) -> Path:
        """A file of `mib` MiB that nothing compresses."""
        return self.shared / "source"

    def store(self) -> S3Store:
        found = open_store(environment_of(self.url, self.own))
        assert isinstance(found, S3Store)
        return found

    def client(self) -> Client:
        access, secret = KEYS.values()
        host = urlsplit(bucket_of(self.url).endpoint).netloc
        return Client(host, access_key=access, secret_key=secret, secure=False)

    def folder(self, name: str, *files: Path) -> Path:
        """A folder that may be handed over, with links to files."""
        made = self.own / name
        made.mkdir()
        for file in files:
            os.link(file, made / file.name)
        return made


# Cases. Each prepares, measures what is between, and cleans up.

Measured = dict[str, float]


@contextmanager
def measured(into: Measured) -> Iterator[None]:
    """What is done inside: its seconds, CPU seconds of this process and its children, and cores that others used."""

    def spent() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    servers = [path for path in Path("/proc").glob("[0-9]*") if _reads(path / "comm").strip() == "minio"]
    cpu, all_cpu, served, start = spent(), _busy(), sum(map(_used, servers)), time.perf_counter()
    yield
    into["seconds"], into["cpu"] = time.perf_counter() - start, spent() - cpu
    foreign = _busy() - all_cpu - (sum(map(_used, servers)) - served) - into["cpu"]
    into["foreign"] = max(foreign / into["seconds"], 0.0)


def _reads(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _busy() -> float:
    """CPU seconds of the whole machine since it was started, and those that its host has taken."""
    user, nice, system, _, _, irq, softirq, steal = map(int, _reads(Path("/proc/stat")).split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _used(process: Path) -> float:
    fields = _reads(process / "stat").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def put_raw(place: Place) -> Measured:
    """The bytes alone: one presigned PUT, by sendfile."""
    found: Measured = {}
    client, name = place.client(), bucket_of(place.url).name
    with measured(found), place.source.open("rb") as file, _connection(place) as connection:
        _send(connection, client.get_presigned_url("PUT", name, "raw"), file, 0, place.source.stat().st_size)
    client.remove_object(name, "raw")
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
    with place.source.open("rb") as source:
        for i in range(number):
            (folder / str(i)).write_bytes(source.read(size))
    return folder


# Trainings: this process is the trainer.


def _trial(place: Place) -> None:
    """Make this process a trial's trainer, that saves whenever it reports."""
    variables = {
        "STORE": place.url,
        "ATTEMPT": "1",
        "PREFIX": f"space/exp-1/{place.own.name}",
        "SCRATCH": str(place.own / "scratch"),
        "SETTINGS": json.dumps({"checkpoint": {"frequency": 1, "onBusy": "Wait", "numToKeep": 1}}),
        "TERMINATION_LOG": os.devnull,
    }
    os.environ.update({f"TRIALKEEPER_{name}": value for name, value in variables.items()})


def hand_over(place: Place) -> Measured:
    """`mib` MiB in 64 files, from the end of the block in which they were written to the next step of the training.

    It is not the first save, which starts the upload process.
    """
    import trialkeeper

    _trial(place)
    found: Measured = {}
    with trialkeeper.checkpoint_dir({"loss": 1.0}) as folder:
        (folder / "first").write_text("x")
    trialkeeper.flush()
    block = trialkeeper.checkpoint_dir({"loss": 1.0})
    with place.source.open("rb") as source, block as folder:
        for i in range(64):
            (folder / str(i)).write_bytes(source.read(place.source.stat().st_size // 64))
        start = time.perf_counter()
    found["seconds"] = time.perf_counter() - start
    trialkeeper.flush()
    return found


def _sent() -> bool:
    from trialkeeper import reporting

    assert reporting._reporter is not None
    saves = reporting._reporter._saves
    saves.hear()  # as each report does; nobody reports here
    return not saves.uploader.outstanding


def train(place: Place) -> Measured:
    """Steps while a checkpoint of `mib` MiB is sent, over those before and after with none: `ratio`."""
    import trialkeeper

    _trial(place)
    trialkeeper.report({"loss": 1.0})

    def begin(file: Path) -> Callable[[], bool]:
        with trialkeeper.checkpoint_dir({"loss": 1.0}) as folder:
            os.link(file, folder / "w")
        return _sent

    return _while_sending(place, begin)


def train_raw(place: Place) -> Measured:
    """The same training while a process of the lowest priority does nothing but put the same bytes."""

    def put() -> None:
        os.nice(19)
        put_raw(place)

    def begin(_: Path) -> Callable[[], bool]:
        process = multiprocessing.get_context("fork").Process(target=put)
        process.start()
        return lambda: not process.is_alive()

    return _while_sending(place, begin)


def _while_sending(place: Place, begin: Callable[[Path], Callable[[], bool]]) -> Measured:
    """`begin` begins to send a file, and gives what tells whether that is done; `seconds` are those of one sending."""
    found: Measured = {}
    file = Path(shutil.copyfile(place.source, place.own / "w"))
    ratios, took = [], []
    for _ in range(3):
        _change(file)
        alone, start = loop.steps(ALONE), time.perf_counter()
        done, step = begin(file), itertools.count()
        sending = loop.steps(120.0, lambda done=done, step=step: next(step) % 16 == 0 and done())  # type: ignore[misc]
        took.append(time.perf_counter() - start)
        ratios.append(sending / statistics.mean((alone, loop.steps(ALONE))))
    found["seconds"], found["ratio"] = statistics.median(took), statistics.median(ratios)
    return found


def _change(file: Path) -> None:
    """Some bytes of each part, since nothing is sent twice."""
    with file.open("r+b") as writing:
        for start in range(0, file.stat().st_size, PART):
            writing.seek(start)
            writing.write(os.urandom(16))


def _long(place: Place, save: Callable[[Callable[[Path], None]], object]) -> Measured:
    return {"seconds": loop.long(place.shared / "steps", save)}


def long_ours(place: Place) -> Measured:
    import trialkeeper

    _trial(place)
    return _long(place, lambda write: trialkeeper.report({"loss": 1.0}, checkpoint=write))


def long_alone(place: Place) -> Measured:
    """The same files, written over and over; nobody sends them."""
    folder = place.own / "alone"
    folder.mkdir()
    return _long(place, lambda write: write(folder))


CASES: Mapping[str, Callable[[Place], Measured]] = {
    case.__name__: case
    for case in (
        *(put_raw, put_parts, put_minio, put_ours, get_raw, get_minio, get_ours, put_small, get_small, put_again),
        *(hand_over, train, train_raw, long_ours, long_alone),
    )
}


# Groups: which cases are run in turn, and what comes out of their rounds.

Round = dict[str, Measured]
Rounds = list[Round]
Results = dict[str, float]


def _ratio(rounds: Rounds, ours: str, other: str) -> float:
    """How many times as fast as another case, in the rounds in which others used this machine least."""
    used = [max(r[ours].get("foreign", 0.0), r[other].get("foreign", 0.0)) for r in rounds]
    quiet = [rounds[i] for i in sorted(range(len(rounds)), key=used.__getitem__)][: (len(rounds) + 1) // 2]
    return statistics.median(r[other]["seconds"] / r[ours]["seconds"] for r in quiet)


def _median(rounds: Rounds, case: str, what: str) -> float:
    return statistics.median(r[case][what] for r in rounds)


def _costs(rounds: Rounds, gib: float, way: str, ours: str, minio: str) -> Results:
    """What one way costs, and what it costs minio-py."""
    return {
        f"{way}_mb_s": gib * 1073.74 / _median(rounds, ours, "seconds"),
        f"{way}_cpu_s_gib": _median(rounds, ours, "cpu") / gib,
        f"{way}_cpu_s_gib_minio": _median(rounds, minio, "cpu") / gib,
        f"{way}_foreign_cores": _median(rounds, ours, "foreign"),
        f"{way}_rss_mb": _median(rounds, ours, "rss"),
    }


def upload_results(rounds: Rounds, gib: float) -> Results:
    return {
        "upload_ratio": _ratio(rounds, "put_ours", "put_raw"),
        "upload_ratio_parts": _ratio(rounds, "put_ours", "put_parts"),
        "upload_ratio_minio": _ratio(rounds, "put_ours", "put_minio"),
        "upload_cpu_s_gib_parts": _median(rounds, "put_parts", "cpu") / gib,
        **_costs(rounds, gib, "upload", "put_ours", "put_minio"),
    }


def download_results(rounds: Rounds, gib: float) -> Results:
    return {
        "download_ratio": _ratio(rounds, "get_ours", "get_minio"),
        "download_ratio_raw": _ratio(rounds, "get_ours", "get_raw"),
        **_costs(rounds, gib, "download", "get_ours", "get_minio"),
    }


def small_results(rounds: Rounds, gib: float) -> Results:
    return {
        "small_files_s": _median(rounds, "put_small", "seconds"),
        "small_files_fetch_s": _median(rounds, "get_small", "seconds"),
        "incremental_bytes_ratio": _median(rounds, "put_again", "ratio"),
    }


def training_results(rounds: Rounds, gib: float) -> Results:
    return {
        "handover_ms": _median(rounds, "hand_over", "seconds") * 1000,
        "train_speed_ratio": statistics.median(r["train"]["ratio"] / r["train_raw"]["ratio"] for r in rounds),
        "train_speed": _median(rounds, "train", "ratio"),
        "train_speed_raw": _median(rounds, "train_raw", "ratio"),
        "train_send_s": _median(rounds, "train", "seconds"),
        "train_send_s_raw": _median(rounds, "train_raw", "seconds"),
    }


def long_results(rounds: Rounds, gib: float) -> Results:
    return {"long_run_ratio": _longer(rounds, "long_ours")}


def _longer(rounds: Rounds, case: str) -> float:
    """How many times as long as the same loop with nobody who sends."""
    return statistics.median(r[case]["seconds"] / r["long_alone"]["seconds"] for r in rounds)


GROUPS: Mapping[str, tuple[tuple[str, ...], Callable[[Rounds, float], Results]]] = {
    "upload": (("put_raw", "put_parts", "put_minio", "put_ours"), upload_results),
    "download": (("get_raw", "get_minio", "get_ours"), download_results),
    "small": (("put_small", "get_small", "put_again"), small_results),
    "training": (("hand_over", "train", "train_raw"), training_results),
    "long": (("long_ours", "long_alone"), long_results),
}

TRAINING = ("training", "long")  # whose trainer would have its cores for itself, but for what we take of them

# By group: Ray Tune's case, and what it adds to the results.
RAY: Mapping[str, tuple[str, str, Callable[[Rounds], float]]] = {
    "upload": ("put_ray", "upload_ratio_ray", lambda rounds: _ratio(rounds, "put_ours", "put_ray")),
    "training": ("hand_over_ray", "handover_ms_ray", lambda rounds: _median(rounds, "hand_over_ray", "seconds") * 1000),
    "long": ("long_ray", "long_run_ratio_ray", lambda rounds: _longer(rounds, "long_ray")),
}

BOUNDS: Mapping[str, Callable[[float], bool]] = {
    "upload_ratio": lambda x: x >= 0.95,
    "upload_cpu_s_gib": lambda x: x <= 1.1,
    "upload_rss_mb": lambda x: x <= 150,
    "download_ratio": lambda x: x >= 1.0,
    "small_files_s": lambda x: x <= 0.3,
    "incremental_bytes_ratio": lambda x: x <= 0.03,
    "handover_ms": lambda x: x <= 5.0,
    "train_speed_ratio": lambda x: x >= 0.98,
    "long_run_ratio": lambda x: x <= 1.02,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--patience", type=float, default=10.0, help="seconds to wait for an idle machine, each time")
    parser.add_argument("--only", nargs="*", choices=[*GROUPS], default=[g for g in GROUPS if g != "long"])
    parser.add_argument("--long", action="store_true", help="add the long training")
    parser.add_argument("--ray", help="an interpreter that has ray[tune], pyarrow and numpy: Ray Tune is measured, too")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)  # name, url, shared folder, own folder
    asked = parser.parse_args()
    if asked.case:
        name, url, shared, own = asked.case
        found = CASES[name](Place(url, Path(shared), Path(own), asked.mib))
        found["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return 0
    os.environ.update(KEYS)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the other core is the upload process's
    results: Results = {}
    for group in [*asked.only, *(["long"] if asked.long else [])]:
        cases, results_of = GROUPS[group]
        peer = RAY.get(group) if asked.ray else None
        if peer is not None:
            cases = (*cases, peer[0])
        with (
            tempfile.TemporaryDirectory(prefix="trialkeeper-bench-") as folder,
            minio(Path(folder), lifetime=3 * 3600, yielding=group in TRAINING) as server,
        ):
            _prepare(server.url, Path(folder), asked.mib)
            rounds = [_round(cases, n, server, Path(folder), asked) for n in range(asked.rounds)]
        results |= results_of(rounds, asked.mib / 1024)
        if peer is not None:
            results[peer[1]] = peer[2](rounds)
    for name, value in results.items():
        verdict = "" if name not in BOUNDS else "ok" if BOUNDS[name](value) else "MISSED"
        print(f"{name:28} {value:10.3f} {verdict}")
    print(json.dumps({name: round(value, 3) for name, value in results.items()}))
    return 0 if all(check(results[name]) for name, check in BOUNDS.items() if name in results) else 1


def _prepare(url: str, shared: Path, mib: int) -> None:
    """The source, and a committed checkpoint of it."""
    with (shared / "source").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    own = shared / "prepare"
    own.mkdir()
    place = Place(url, shared, own, mib)
    store: Store = place.store()
    files = store.keep(place.folder("made", place.source), "data/kept", ())
    (shared / "kept.json").write_text(json.dumps(list(files)))


def _await_idle(patience: float) -> None:
    """Wait for a second in which this machine has nothing to do, but not for ever."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = _busy()
        time.sleep(1)
        if _busy() - before < IDLE:
            return


def _round(cases: tuple[str, ...], number: int, server: Server, shared: Path, asked: argparse.Namespace) -> Round:
    """Each case once, in an order that changes from round to round."""
    found: Round = {}
    for shift in range(len(cases)):
        name = cases[(number + shift) % len(cases)]
        os.sync()
        _await_idle(asked.patience)
        with tempfile.TemporaryDirectory(dir=shared) as own:
            if name not in CASES:
                peer = Path(__file__).with_name("ray_tune.py")
                command = [asked.ray, peer, name, server.endpoint, server.bucket, shared, own, str(asked.mib)]
            else:
                command = [sys.executable, __file__, "--mib", str(asked.mib), "--case", name, server.url, shared, own]
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        found[name] = json.loads(done.stdout.splitlines()[-1])
        words = " ".join(f"{what} {value:8.3f}" for what, value in found[name].items())
        print(f"round {number} {name:10} {words}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
