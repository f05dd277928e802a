"""Ray Tune's checkpoints, for `checkpoint.py --ray PYTHON`, where PYTHON has ray[tune], pyarrow and numpy.

    PYTHON benchmarks/ray_tune.py CASE ENDPOINT BUCKET SHARED OWN MIB

The last line is one JSON object. Its keys are in the environment, as for every S3 client.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import loop


def saved(tune: Any, folder: Path) -> float:
    """Seconds that a trainer waits for `report`, which sends the folder."""
    start = time.perf_counter()
    tune.report({"loss": 1.0}, checkpoint=tune.Checkpoint.from_directory(str(folder)))
    return time.perf_counter() - start


def made(own: Path, name: str) -> Path:
    folder = own / name
    folder.mkdir()
    return folder


def put(tune: Any, shared: Path, own: Path, mib: int) -> dict[str, float]:
    """A checkpoint of one file; it is not the first one."""
    (made(own, "first") / "x").write_text("x")
    os.link(shared / "source", made(own, "one") / "source")
    saved(tune, own / "first")
    return {"seconds": saved(tune, own / "one")}


def hand_over(tune: Any, shared: Path, own: Path, mib: int) -> dict[str, float]:
    """`mib` MiB in 64 files; it is not the first one."""
    (made(own, "first") / "x").write_text("x")
    folder = made(own, "many")
    with (shared / "source").open("rb") as source:
        for i in range(64):
            (folder / str(i)).write_bytes(source.read((mib << 20) // 64))
    saved(tune, own / "first")
    return {"seconds": saved(tune, folder)}


def long(tune: Any, shared: Path, own: Path, mib: int) -> dict[str, float]:
    folder = made(own, "long")

    def save(write: Callable[[Path], None]) -> None:
        write(folder)
        saved(tune, folder)

    return {"seconds": loop.long(shared / "steps", save)}


CASES: Mapping[str, Callable[[Any, Path, Path, int], dict[str, float]]] = {
    "put_ray": put,
    "hand_over_ray": hand_over,
    "long_ray": long,
}


def main(case: str, endpoint: str, bucket: str, shared: str, own: str, mib: str) -> None:
    import pyarrow.fs
    import ray
    from ray import tune

    scheme, _, address = endpoint.partition("://")
    store = pyarrow.fs.S3FileSystem(scheme=scheme, endpoint_override=address)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)

    def train(_: object) -> None:
        (Path(own) / "found").write_text(json.dumps(CASES[case](tune, Path(shared), Path(own), int(mib))))

    # One trial; of its checkpoints the newest is kept, as in our cases.
    ended = tune.Tuner(
        train,
        run_config=tune.RunConfig(
            name=Path(own).name,
            storage_path=f"{bucket}/ray",
            storage_filesystem=store,
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            verbose=0,
        ),
    ).fit()
    if ended.errors:
        raise ended.errors[0]
    print((Path(own) / "found").read_text())


if __name__ == "__main__":
    main(*sys.argv[1:])
