"""What a checkpoint costs, next to what the same bytes cost without us.

A MinIO on this machine; beside a training it only takes what is left of the cores, since no trainer has its store on
its own. Each case runs in a fresh process, several rounds, all cases of a group one after the other in each; a ratio is
the median of the rounds' ratios, of that half of the rounds in which other processes used the machine least (`foreign`:
cores). The last line is one JSON object.

    python benchmarks/checkpoint.py [--rounds 5] [--mib 1024] [--only upload download ...] [--long] [--ray PYTHON]
                                    [--link RATE]

Without `--link` the network is this machine's memory, and the server has the cores that are also the client's: what
hashes cannot be as fast as what does not. With it, it is a network namespace whose loopback has that rate.
`--long` adds a training with a checkpoint of 100 MB every five seconds, two minutes a case. `--ray` adds Ray Tune, of
whatever version that interpreter has; for Ray Tune a save is over when it is stored, since `report` waits for that.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import trainings
import transfers
from loop import MIB
from place import Measured, Place, busy

from minio_server import KEYS, Minio, minio

IDLE = 0.25  # CPU seconds in a second

CASES: Mapping[str, Callable[[Place], Measured]] = {
    case.__name__: case
    for case in (
        *(transfers.put_raw, transfers.put_parts, transfers.put_minio, transfers.put_ours),
        *(transfers.get_raw, transfers.get_minio, transfers.get_ours),
        *(transfers.put_small, transfers.get_small, transfers.put_again),
        *(trainings.hand_over, trainings.train, trainings.long_ours, trainings.long_alone),
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
        "train_speed_ratio": _median(rounds, "train", "ratio"),
        "train_speed": _median(rounds, "train", "ours"),
        "train_speed_raw": _median(rounds, "train", "raw"),
        "train_send_s": _median(rounds, "train", "ours_seconds"),
        "train_send_s_raw": _median(rounds, "train", "raw_seconds"),
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
    "training": (("hand_over", "train"), training_results),
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


@contextmanager
def _link(rate: str) -> Iterator[list[str]]:
    """What runs a command in a network namespace of its own, whose loopback has a rate, as tc(8) writes it."""
    name = f"trialkeeper-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        inside = ["ip", "netns", "exec", name]
        shaped = f"tc qdisc add dev lo root tbf rate {rate} burst 4mb latency 100ms"
        for command in ("ip link set lo up", shaped):
            subprocess.run([*inside, *command.split()], check=True)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def main() -> int:
    outer = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    outer.add_argument("--link", help="the rate of the network to the store, like 5gbit (root, ip and tc)")
    inner = outer.parse_known_args()[1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "", parents=[outer])
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
    if asked.link:
        with _link(asked.link) as inside:
            return subprocess.run([*inside, sys.executable, __file__, *inner], check=False).returncode
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
            _prepare(server.url, Path(folder), asked.mib, kept=group == "download")
            rounds = [_round(cases, n, server, Path(folder), asked) for n in range(asked.rounds)]
        results |= results_of(rounds, asked.mib / 1024)
        if peer is not None:
            results[peer[1]] = peer[2](rounds)
    for name, value in results.items():
        verdict = "" if name not in BOUNDS else "ok" if BOUNDS[name](value) else "MISSED"
        print(f"{name:28} {value:10.3f} {verdict}")
    print(json.dumps({name: round(value, 3) for name, value in results.items()}))
    return 0 if all(check(results[name]) for name, check in BOUNDS.items() if name in results) else 1


def _prepare(url: str, shared: Path, mib: int, *, kept: bool) -> None:
    """The source, and a committed checkpoint of it."""
    with (shared / "source").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    if kept:
        own = shared / "prepare"
        own.mkdir()
        place = Place(url, shared, own, mib)
        files = place.store().keep(place.folder("made", place.source), "data/kept", ())
        (shared / "kept.json").write_text(json.dumps(list(files)))


def _await_idle(patience: float) -> None:
    """Wait for a second in which this machine has nothing to do, but not for ever."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = busy()
        time.sleep(1)
        if busy() - before < IDLE:
            return


def _warm(folder: Path, mib: int) -> None:
    """Have free memory that is had at once, for each case the same.

    Memory that has been free for a while may be the host's by now, and a full page cache must be cleared: whoever
    needs a GiB then pays up to two seconds for it, and it is chance whom that meets.
    """
    file = folder / "warm"
    with file.open("wb") as writing:
        for _ in range(2 * mib):
            writing.write(bytes(MIB))
    file.unlink()


def _round(cases: tuple[str, ...], number: int, server: Minio, shared: Path, asked: argparse.Namespace) -> Round:
    """Each case once, in an order that changes from round to round."""
    found: Round = {}
    for shift in range(len(cases)):
        name = cases[(number + shift) % len(cases)]
        os.sync()
        _await_idle(asked.patience)
        _warm(shared, asked.mib)
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
