"""What a trainer can ask at a safe point: whether to save, into which folder, how long it has, what is in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers import SAVING, Place

DUE = """
import time
for i in range(6):
    if trialkeeper.checkpoint_due():
        with trialkeeper.checkpoint_dir({'loss': 1.0}) as folder:
            (folder / 'w').write_text(str(i))
    else:
        trialkeeper.report({'loss': 1.0})
"""
READY = "report() is given finished checkpoints, so none can be made when it is due"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def saved(place: Place) -> list[int]:
    return [int(m[-12:]) for m in place.manifests()]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"frequency": 2, "onBusy": "Wait"}, [2, 4, 6]),
        ({"frequency": 0, "milestones": [3], "onBusy": "Wait"}, [3]),
        ({"frequency": 0}, []),
    ],
)
def test_a_save_is_due_when_the_schedule_says_so(policy: dict[str, object], expected: list[int], place: Place) -> None:
    place.settings["checkpoint"] = policy
    left = place.run(DUE)
    assert (left.end, left.err) == (("complete", ""), "")
    assert saved(place) == expected
    assert [row["training_iteration"] for row in place.rows()] == [1, 2, 3, 4, 5, 6]


def test_a_folder_is_taken_as_it_is_and_dropped_if_its_block_fails(place: Place) -> None:
    """The very files are committed, by their inodes: nothing is copied."""
    left = place.run(
        """
inodes = []
for i in range(2):
    with trialkeeper.checkpoint_dir({'loss': 1.0}) as folder:
        (folder / 'below').mkdir()
        (folder / 'below' / 'w').write_bytes(os.urandom(1000))
        inodes.append((folder / 'below' / 'w').stat().st_ino)
try:
    with trialkeeper.checkpoint_dir({'loss': 1.0}) as dropped:
        (dropped / 'w').write_text('half')
        raise KeyError('mine')
except KeyError:
    print(dropped.exists())
try:
    with trialkeeper.checkpoint_dir({'loss': 1.0}):
        pass
except ValueError as empty:
    print(empty)
trialkeeper.flush()
print(*inodes)
"""
    )
    gone, empty, inodes = left.out.splitlines()
    assert gone == "False"
    assert empty.startswith("checkpoint: the folder is empty")
    kept = [(p / "below" / "w").stat().st_ino for p in sorted((place.store / "data").iterdir())]
    assert kept == [*map(int, inodes.split())]
    assert saved(place) == [1, 2]
    assert left.end == ("complete", "")
    assert len(place.rows()) == 3, "a block that fails is no report, an empty folder is one"
    assert list((Path(place.env(1)["TRIALKEEPER_SCRATCH"]) / "saves").iterdir()) == []


def test_a_save_is_made_when_a_report_says_so(place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 0, "atEnd": False, "onBusy": "Wait"}
    left = place.run(
        SAVING + "for i in range(4):\n"
        "    trialkeeper.report({'loss': 1.0, 'should_checkpoint': i == 2}, checkpoint=save)"
    )
    assert left.end == ("complete", "")
    assert saved(place) == [3]
    assert not [row for row in place.rows() if "should_checkpoint" in row]


def test_flush_waits_for_all_or_as_long_as_it_is_told(place: Place) -> None:
    left = place.run(
        SAVING + "import signal, time\nfrom trialkeeper import reporting\n"
        "print(bool(trialkeeper.flush()), end=' ')\n"
        "i = 0; trialkeeper.report({'loss': 1.0}, checkpoint=save)\nprint(trialkeeper.flush())\n"
        "process = reporting._reporter._saves.uploader._process\nprocess.send_signal(signal.SIGSTOP)\n"
        "i = 1; trialkeeper.report({'loss': 1.0}, checkpoint=save)\n"
        "start = time.monotonic(); print(trialkeeper.flush(timeout=0.3), time.monotonic() - start < 5)\n"
        "process.send_signal(signal.SIGCONT)\nprint(trialkeeper.flush())"
    )
    assert left.out.splitlines() == [
        "True FlushResult(committed=1, pending=(), error='')",
        "FlushResult(committed=1, pending=(2,), error='') True",
        "FlushResult(committed=2, pending=(), error='')",
    ]
    assert left.end == ("complete", "")


def test_who_hands_over_finished_checkpoints_is_told_once_what_that_costs(place: Place) -> None:
    ready = "checkpoint=trialkeeper.Checkpoint.from_dict({'i': i}))\n"
    left = place.run(f"for i in range(3): trialkeeper.report({{'loss': 1}}, {ready}")
    assert left.err.count(READY) == 1
    assert saved(place) == [1, 2, 3]
    asked = "    trialkeeper.checkpoint_due()\n    trialkeeper.report({'loss': 1}, "
    left = place.run(f"trialkeeper.get_checkpoint()\nfor i in range(3):\n{asked}{ready}", 2)
    assert READY not in left.err


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), 15)", "open(notice, 'w').close(); time.sleep(0.5)"])
def test_a_pod_that_must_go_is_told_how_long_it_has_and_saves_once_more(how: str, place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 0, "onBusy": "Wait"}
    left = place.run(
        "import time\nnotice = os.path.join(os.environ['TRIALKEEPER_SCRATCH'], 'preempted')\n"
        "print(trialkeeper.preemption(), trialkeeper.checkpoint_due())\ntrialkeeper.report({'loss': 1.0})\n"
        f"{how}\nfound = trialkeeper.preemption()\n"
        "print(found.source, 0 < found.deadline <= 29, found.fits, trialkeeper.checkpoint_due(), flush=True)\n"
        "with trialkeeper.checkpoint_dir({'loss': 1.0}) as folder: (folder / 'w').write_text('x')\nprint('no')"
    )
    source = "SIGTERM" if "kill" in how else "notify file"
    assert left.out.splitlines() == ["None False", f"{source} True True True"], left.err
    assert (left.code, left.end) == (143, ("preempted", ""))
    assert saved(place) == [2]


def test_a_pod_that_must_go_leaves_at_once_if_no_save_fits(place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 2, "onBusy": "Wait"}
    left = place.run(
        SAVING + "from trialkeeper import reporting\n"
        "for i in range(3): trialkeeper.report({'loss': 1.0}, checkpoint=save)\n"
        "trialkeeper.flush()\nreporting._reporter._saves.schedule.upload = 1000.0\n"
        "os.kill(os.getpid(), 15)\nprint(trialkeeper.preemption().fits, flush=True)\ntrialkeeper.checkpoint_due()\n"
        "print('no')"
    )
    assert left.out == "False\n"
    assert (left.code, left.end) == (143, ("preempted", ""))
    assert left.last is not None
    assert left.last.text == "asked to go at iteration 3: the newest checkpoint is of iteration 2"
    assert saved(place) == [2]


def test_a_notice_that_is_old_shortens_the_grace(place: Place) -> None:
    left = place.run(
        "import time\nnotice = os.path.join(os.environ['TRIALKEEPER_SCRATCH'], 'preempted')\n"
        "trialkeeper.report({'loss': 1.0})\nopen(notice, 'w').close(); os.utime(notice, (time.time() - 20,) * 2)\n"
        "os.kill(os.getpid(), 15)\nfound = trialkeeper.preemption()\nprint(5 < found.deadline <= 9, found.source)"
    )
    assert left.out == "True SIGTERM\n"
    assert left.end == ("preempted", "")


def test_a_folder_whose_report_is_refused_leaves_nothing_on_scratch(place: Place) -> None:
    left = place.run(
        """
for metrics in ({'loss': 'high'}, {'step': 1}):
    try:
        with trialkeeper.checkpoint_dir(metrics) as folder:
            (folder / 'w').write_text('1')
    except (TypeError, ValueError):
        print(folder.exists())
"""
    )
    assert left.out.split() == ["False", "False"]
