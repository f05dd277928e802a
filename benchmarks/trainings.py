"""Cases that train: this process is the trainer, whose saves are sent by our upload process."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import loop
from place import Measured, Place
from transfers import PART, fill, put

ALONE = 3.0  # seconds of training before and after each sending
PAIRS = 4  # sendings each way


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
    with block as folder:
        fill(place, folder, 64, place.source.stat().st_size // 64)
        start = time.perf_counter()
    found["seconds"] = time.perf_counter() - start
    trialkeeper.flush()
    return found


Sending = Callable[[], Callable[[], bool]]  # writes a file and begins to send it; what it gives tells if that is done


def train(place: Place) -> Measured:
    """Steps while a checkpoint of `mib` MiB is sent by us, and while it is put raw, in turn.

    The one who puts is a process of the lowest priority that does nothing else. Both files have just been written, as
    a checkpoint has. `ours`, `raw`: the speed over that before and after with nobody who sends; `ratio`: of the two.
    """
    ways = {"ours": _ours(place), "raw": _raw(place)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    before = loop.speed(ALONE)
    for number in range(PAIRS):
        for name in (("ours", "raw"), ("raw", "ours"))[number % 2]:
            done = ways[name]()
            start = time.perf_counter()
            sending = loop.speed(120.0, done)
            seconds[name].append(time.perf_counter() - start)
            os.sync()
            after = loop.speed(ALONE)
            speeds[name].append(sending / statistics.mean((before, after)))
            before = after
    return {
        **{name: statistics.median(values) for name, values in speeds.items()},
        **{f"{name}_seconds": statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(ours / raw for ours, raw in zip(*speeds.values(), strict=True)),
    }


def _write(place: Place, file: Path) -> None:
    """What the source has, but for some bytes of each MiB."""
    with place.source.open("rb") as source, file.open("wb") as target:
        while piece := bytearray(source.read(PART)):
            loop.change(piece)
            target.write(piece)


def _ours(place: Place) -> Sending:
    import trialkeeper
    from trialkeeper import reporting

    _trial(place)
    trialkeeper.report({"loss": 1.0})

    def sent() -> bool:
        assert reporting._reporter is not None
        saves = reporting._reporter._saves
        saves.hear()  # as each report does; nobody reports here
        return not saves.uploader.outstanding

    def begin() -> Callable[[], bool]:
        with trialkeeper.checkpoint_dir({"loss": 1.0}) as folder:
            _write(place, folder / "w")
        return sent

    return begin


def _raw(place: Place) -> Sending:
    def send(file: Path) -> None:
        os.nice(19)
        put(place, place.client(), file)

    def begin() -> Callable[[], bool]:
        file = place.own / "w"
        _write(place, file)
        process = multiprocessing.get_context("fork").Process(target=send, args=(file,))
        process.start()

        def sent() -> bool:
            assert not process.exitcode, "the raw PUT has failed"
            return process.exitcode == 0

        return sent

    return begin


def _long(place: Place, save: Callable[[Callable[[Path], None]], object]) -> Measured:
    return {"seconds": loop.long(place.shared / "steps", save)}


def long_ours(place: Place) -> Measured:
    import trialkeeper

    _trial(place)
    return _long(place, lambda write: trialkeeper.report({"loss": 1.0}, checkpoint=write))


def long_alone(place: Place) -> Measured:
    """The same files, new ones each time; those before are removed, and nobody sends any."""

    def save(write: Callable[[Path], None]) -> None:
        new, old = place.own / "new", place.own / "old"
        new.mkdir()
        write(new)
        shutil.rmtree(old, ignore_errors=True)
        new.rename(old)

    return _long(place, save)
