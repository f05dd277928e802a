"""Trials of several processes, on nodes with a scratch folder each: one answer, one checkpoint, one way to leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_s3 import fake_s3
from minio_server import KEYS
from trainers import PREAMBLE, RANKED, BucketPlace, Left, Place, Ranks
from trialkeeper import manifest

LOOP = "for i in range(start, 6):\n    trialkeeper.report({'loss': 1.0 / (i + 1)}, checkpoint=save)\n"
STEPS = """
for i in range(start, 10000):
    time.sleep(0.005)
    print("at", i, flush=True)
    trialkeeper.report({'loss': 1.0}, checkpoint=save)
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[BucketPlace]:
    with fake_s3() as server:
        yield BucketPlace(tmp_path, url=server.url, keys=dict(KEYS))


def codes(ended: list[Left]) -> list[int]:
    return [left.code for left in ended]


def words(ended: list[Left]) -> str:
    return "".join(left.err for left in ended)


def last_steps(ended: list[Left]) -> set[str]:
    """The last line of each process."""
    return {left.out.splitlines()[-1] for left in ended}


def newest(place: Place) -> dict[str, object]:
    return manifest.decode((place.store / "manifests" / f"{place.manifests()[-1]}.json").read_bytes())


def test_every_rank_saves_its_part_and_gets_it_back(place: Place) -> None:
    ranks = Ranks(place)
    assert codes(ranks.run(LOOP)) == [0] * 4
    assert [int(m[-12:]) for m in place.manifests()] == [1, 2, 3, 4, 5, 6]
    body = newest(place)
    assert body["worldSize"] == 4
    assert sorted(f["path"] for f in body["files"]) == [f"rank-{r:05d}/{f}" for r in range(4) for f in ("i", "of")]  # type: ignore[attr-defined]
    ended = ranks.run("print(start, (checkpoint.path / 'of').read_text())", 2)
    assert [left.out for left in ended] == [f"6 {rank}\n" for rank in range(4)]
    data = place.store / str(body["data"])
    assert sorted(p.name for p in data.iterdir()) == [f"rank-{r:05d}" for r in range(4)]


def test_the_same_on_a_bucket_where_each_pod_fetches_what_its_ranks_need(bucket: BucketPlace) -> None:
    ranks = Ranks(bucket)
    bucket.settings["checkpoint"] = {"frequency": 3, "onBusy": "Wait"}
    assert codes(ranks.run(LOOP)) == [0] * 4
    assert [int(m[-12:]) for m in bucket.manifests()] == [3, 6]
    ended = ranks.run("print(start, (checkpoint.path / 'of').read_text())", 2)
    assert [left.out for left in ended] == [f"6 {rank}\n" for rank in range(4)], words(ended)
    for node in (0, 1):
        fetched = Path(ranks.env(2, 2 * node)["TRIALKEEPER_SCRATCH"]) / "fetched"
        assert {p.parent.name for p in fetched.rglob("of")} == {f"rank-{r:05d}" for r in (2 * node, 2 * node + 1)}


@pytest.mark.parametrize("others", ["None", "(lambda folder: None)"])
def test_where_rank_0_alone_saves_all_get_its_files(others: str, place: Place) -> None:
    ranks = Ranks(place)
    ended = ranks.run(LOOP.replace("=save", f"=save if rank == 0 else {others}"))
    assert codes(ended) == [0] * 4, words(ended)
    assert len(place.manifests()) == 6
    ended = ranks.run("print(start, (checkpoint.path / 'of').read_text())", 2)
    assert [left.out for left in ended] == ["6 0\n"] * 4


def test_a_rank_without_files_among_others_gets_an_empty_folder(place: Place) -> None:
    ranks = Ranks(place, (3,))
    script = "trialkeeper.report({'loss': 1}, checkpoint=save if rank != 1 else None)"
    assert codes(ranks.run("i = 0\n" + script)) == [0] * 3
    shown = "print(sorted(p.name for p in trialkeeper.get_checkpoint().path.iterdir()))"
    ended = ranks.run(shown, 2, beginning="")
    assert [left.out for left in ended] == ["['i', 'of']\n", "[]\n", "['i', 'of']\n"], words(ended)


RULES = [
    ({"stop": {"maxIterations": 4}}, "1.0", ("complete", "MaxIterations")),
    ({"stop": {"metrics": {"loss": {"below": 0.5}}}}, "1.0 if i < 3 or rank else 0.1", ("complete", "MetricReached")),
    ({}, "1.0 if i < 3 or rank else float('nan')", ("stopped", "NonFinite")),
]


@pytest.mark.parametrize(("settings", "loss", "end"), RULES)
def test_what_ends_rank_0_ends_all_at_the_same_report(
    settings: dict[str, object], loss: str, end: tuple[str, str], place: Place
) -> None:
    place.settings |= settings
    ended = Ranks(place).run(
        f"for i in range(100):\n    print(i, flush=True)\n    trialkeeper.report({{'loss': {loss}}}, checkpoint=save)"
    )
    assert codes(ended) == [0] * 4, words(ended)
    assert last_steps(ended) == {"3"}
    assert ended[0].end == end
    assert len(place.rows()) == 4


@pytest.mark.parametrize("rank", range(4))
def test_whichever_rank_is_asked_to_go_all_leave_with_one_checkpoint(rank: int, place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 0}
    ranks = Ranks(place)
    with ranks.running(STEPS) as processes:
        until(processes, "at 5")
        processes[rank].send_signal(signal.SIGTERM)
        ended = ranks.ended(processes)
    assert codes(ended) == [143] * 4, words(ended)
    assert len(last_steps(ended)) == 1
    assert ended[0].end == ("preempted", "")
    (saved,) = place.manifests()
    assert last_steps(ended) == {f"at {int(saved[-12:]) - 1}"}


def test_a_launcher_may_ask_twice_while_the_last_state_is_saved(place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 0}
    ranks = Ranks(place, (2,))
    slow = "def slow(folder):\n    time.sleep(1)\n    save(folder)\n" + STEPS.replace("=save", "=slow")
    with ranks.running(slow) as processes:
        until(processes, "at 5")
        for _ in range(2):
            for process in processes:
                process.send_signal(signal.SIGTERM)
            time.sleep(0.4)
        ended = ranks.ended(processes)
    assert codes(ended) == [143] * 2, words(ended)
    assert ended[0].end == ("preempted", "")
    assert len(place.manifests()) == 1


def until(processes: list[subprocess.Popen[str]], line: str) -> None:
    """Read what each process prints, up to a line, and not a byte more."""
    for process in processes:
        assert process.stdout is not None
        said = b""
        while not said.endswith(f"{line}\n".encode()):
            byte = os.read(process.stdout.fileno(), 1)
            assert byte, process.stderr.read() if process.stderr else ""
            said += byte


def test_every_call_is_answered_the_same_everywhere(place: Place) -> None:
    """Many steps to a report, promises and all; then one rank is asked to go."""
    place.settings["checkpoint"] = {"intervalSeconds": 0.3}
    script = """
saves = 0
for i in range(start, 100000):
    time.sleep(0.002)
    if trialkeeper.checkpoint_due(i):
        print("due", i, flush=True)
        with trialkeeper.checkpoint_dir({"loss": 1.0}, step=i) as folder:
            save(folder)
        saves += 1
        print("saved", i, flush=True)
        if saves == 3: print("enough", flush=True)
    if (left := trialkeeper.preemption()) is not None:
        print("preempted", i, left.fits, flush=True)
    if i % 500 == 499:
        trialkeeper.report({"loss": 1.0}, checkpoint=save)
"""
    ranks = Ranks(place)
    with ranks.running(script) as processes:
        until(processes, "enough")
        asked = time.monotonic()
        processes[2].send_signal(signal.SIGTERM)
        ended = ranks.ended(processes)
        took = time.monotonic() - asked
    assert codes(ended) == [143] * 4, words(ended)
    assert len({left.out for left in ended}) == 1
    assert took < 9
    assert not words(ended)


def test_a_rank_0_that_is_killed_takes_all_with_it(place: Place) -> None:
    ranks = Ranks(place)
    with ranks.running(STEPS) as processes:
        until(processes, "at 5")
        processes[0].kill()
        ended = ranks.ended(processes)
    assert codes(ended) == [-9, 75, 75, 75]
    assert "rank 0 is gone: rank 1 leaves" in ended[1].err


def test_a_rank_that_is_killed_holds_nobody_up_and_nothing_is_committed_without_it(place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 0}
    ranks = Ranks(place)
    with ranks.running(STEPS) as processes:
        until(processes, "at 5")
        processes[3].kill()
        processes[3].wait()
        time.sleep(0.3)
        processes[0].send_signal(signal.SIGTERM)
        ended = ranks.ended(processes)
    assert codes(ended) == [143, 143, 143, -9]
    assert place.manifests() == []
    assert "rank 3 has not saved its part in time: every process must call report()" in ended[0].err


def test_a_rank_whose_save_fails_makes_no_checkpoint_and_its_failure_is_the_trials(place: Place) -> None:
    ended = Ranks(place, (2,)).run(
        "def broken(folder):\n    if i == 2 and rank == 1: raise OSError('my disk')\n    save(folder)\n"
        + LOOP.replace("=save", "=broken")
    )
    assert "OSError: my disk" in ended[1].err
    assert "a save is not in the store: rank 1 could not save its part" in ended[0].err
    assert [int(m[-12:]) for m in place.manifests()][:2] == [1, 2]
    assert 3 not in [int(m[-12:]) for m in place.manifests()]


@pytest.mark.parametrize(
    ("how", "end"),
    [
        ("os.kill(os.getpid(), 9)", ("error", "RankDied")),
        ("raise KeyError('mine')", ("error", "Exception")),
        ("sys.exit(3)", ("preempted", "")),
    ],
)
def test_a_launcher_that_ends_all_for_one_is_no_preemption(how: str, end: tuple[str, str], place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 0}
    ranks = Ranks(place, (2,))
    script = STEPS.replace("    time.sleep", f"    if rank == 1 and i == 20: {how}\n    time.sleep")
    with ranks.running(script) as processes:
        until(processes[:1], "at 5")
        processes[1].wait()
        time.sleep(0.3)
        processes[0].send_signal(signal.SIGTERM)  # as torchrun does
        ended = ranks.ended(processes)
    assert ended[0].code == 143
    assert ended[0].end == end
    if end[0] == "error":
        assert ended[0].last is not None
        assert ended[0].last.text.startswith("rank 1: ")


def test_the_last_state_is_saved_at_the_end_by_all(place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 4}
    ended = Ranks(place).run(LOOP)
    assert codes(ended) == [0] * 4
    assert [int(m[-12:]) for m in place.manifests()] == [4, 6]
    assert newest(place)["reason"] == "final"


def test_another_number_of_processes_is_told_in_one_sentence(place: Place) -> None:
    assert codes(Ranks(place).run(LOOP)) == [0] * 4
    ended = Ranks(place, (2,)).run(LOOP, 2)
    assert ended[0].code == 78
    assert ended[1].code in (75, 78)
    assert ended[0].end == ("userError", "WorldSizeChanged")
    assert ended[0].last is not None
    assert ended[0].last.text == (
        "the checkpoint of iteration 6 was saved by 4 processes, and this trial has 2: start as many, or save with "
        "resharding=True if what you save can be loaded by any number"
    )
    assert place.run("trialkeeper.get_checkpoint()", 3).code == 78


SHARDED = """
def sharded(folder):
    (folder / f"{rank}.part").write_text(str(i))
    if rank == 0: (folder / "meta").write_text(str(i))
"""


@pytest.mark.parametrize("how", ["report", "dir", "checkpoint"])
def test_what_can_be_resharded_is_one_folder_for_any_number(how: str, place: Place) -> None:
    script = {
        "report": "trialkeeper.report({'loss': 1}, checkpoint=sharded, resharding=True)",
        "dir": "with trialkeeper.checkpoint_dir({'loss': 1}, resharding=True) as folder: sharded(folder)",
        "checkpoint": "import pathlib, tempfile\nfolder = pathlib.Path(tempfile.mkdtemp())\nsharded(folder)\n"
        "own = trialkeeper.Checkpoint.from_directory(folder, resharding=True)\n"
        "trialkeeper.report({'loss': 1}, checkpoint=own)",
    }[how]
    assert codes(Ranks(place).run(f"i = 7\n{SHARDED}\n{script}")) == [0] * 4
    assert newest(place)["resharding"] is True
    shown = "print({p.name: p.read_text() for p in sorted(trialkeeper.get_checkpoint().path.iterdir())})"
    expected = {"0.part": "7", "1.part": "7", "2.part": "7", "3.part": "7", "meta": "7"}
    for attempt, nodes in ((2, (3,)), (3, (2, 2)), (4, (1, 1))):
        ended = Ranks(place, nodes).run(shown, attempt, beginning="")
        assert [left.out for left in ended] == [f"{expected}\n"] * sum(nodes), words(ended)
    assert place.run(shown, 5).out == f"{expected}\n"


def test_two_processes_that_write_one_name_are_told(place: Place) -> None:
    ended = Ranks(place, (2,)).run(
        "i = 0\ntrialkeeper.report({'loss': 1}, checkpoint=save, resharding=True)\ntime.sleep(2)\n"
        "trialkeeper.report({'loss': 1})"
    )
    assert "ValueError: checkpoint: two processes have saved i" in ended[0].err
    assert place.manifests() == []


def test_a_part_that_has_rotted_in_another_pod_sends_all_to_the_one_before(place: Place) -> None:
    ranks = Ranks(place)
    assert codes(ranks.run(LOOP)) == [0] * 4
    broken = place.store / str(newest(place)["data"]) / "rank-00002" / "of"
    broken.unlink()  # an unchanged file may be a link to an older one
    broken.write_text("!")
    ended = ranks.run("print(start)", 2)
    assert [left.out for left in ended] == ["5\n"] * 4, words(ended)
    record = json.loads((place.store / "attempts" / "000002.json").read_text())
    assert record["base"] == "manifests/a000001-i000000000005.json"


def test_a_flush_says_the_same_everywhere(place: Place) -> None:
    ended = Ranks(place).run("i = 0\ntrialkeeper.report({'loss': 1}, checkpoint=save)\nprint(trialkeeper.flush())")
    assert {left.out for left in ended} == {"FlushResult(committed=1, pending=(), error='')\n"}, words(ended)


def test_a_second_process_of_a_rank_is_a_worker(place: Place) -> None:
    worker = "import trialkeeper; trialkeeper.report({'loss': 1})"
    ended = Ranks(place, (2,)).run(
        "import subprocess\n"
        f"done = subprocess.run([sys.executable, '-c', {worker!r}], capture_output=True, text=True)\n"
        "print('NotTheOwner' in done.stderr)\ntrialkeeper.report({'loss': 1})"
    )
    assert [left.out for left in ended] == ["True\n"] * 2


def test_a_launcher_on_a_laptop_needs_no_operator(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PREAMBLE + RANKED + LOOP + "print(start, context.world_size)")
    launcher = """
import os, subprocess, sys
ranks = [subprocess.Popen([sys.executable, "train.py"], env={**os.environ, "RANK": str(r), "WORLD_SIZE": "2",
         "LOCAL_RANK": str(r), "LOCAL_WORLD_SIZE": "2"}) for r in (1, 0)]
sys.exit(max(r.wait(timeout=60) for r in ranks))
"""
    for resume, out in (("0", "0 2\n0 2\n"), ("1", "6 2\n6 2\n")):
        env = {"PATH": "/usr/bin:/bin", "TRIALKEEPER_RESUME": resume, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", launcher], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, out), done.stderr
    assert [p.name for p in (tmp_path / "trialkeeper-store" / "train").glob("0*")] == ["00001"]
    assert not [*(tmp_path / "trialkeeper-store" / "train").glob(".ranks*")]
