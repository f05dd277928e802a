"""How a trainer's process ends, and what it leaves behind: real processes, one script each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers import SAVING, Place
from trialkeeper import environment

LOOP = SAVING + "for i in range(start, 6):\n    trialkeeper.report({'loss': 1.0 / (i + 1)}, checkpoint=save)\n"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


ENDS = {
    "to its end": (LOOP, 0, ("complete", "")),
    "sys.exit(0)": ("trialkeeper.report({'loss': 1}); sys.exit(0)", 0, ("complete", "")),
    "an exception": ("trialkeeper.report({'loss': 1}); raise ValueError('no')", 1, ("error", "Exception")),
    "out of memory": ("trialkeeper.report({'loss': 1}); raise MemoryError('x')", 1, ("error", "OutOfMemory")),
    "out of GPU memory": (
        "class OutOfMemoryError(RuntimeError): pass\ntrialkeeper.get_params()\nraise OutOfMemoryError('CUDA')",
        1,
        ("error", "OutOfMemory"),
    ),
    "out of GPU memory by its message": (
        "trialkeeper.get_params()\nraise RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')",
        1,
        ("error", "OutOfMemory"),
    ),
    "a lost GPU": (
        "trialkeeper.get_params()\nraise RuntimeError('CUDA error: uncorrectable ECC error encountered')",
        1,
        ("error", "DeviceFailure"),
    ),
    "a store that does not answer": (
        "from trialkeeper.store import Unreachable\ntrialkeeper.get_params()\nraise Unreachable('no answer')",
        1,
        ("error", "StoreUnreachable"),
    ),
    "os._exit": ("trialkeeper.report({'loss': 1}); os._exit(0)", 0, ("running", "")),
    "SIGKILL": ("trialkeeper.report({'loss': 1}); os.kill(os.getpid(), 9)", -9, ("running", "")),
    "a non-finite objective": ("trialkeeper.report({'loss': float('inf')})", 0, ("stopped", "NonFinite")),
    "asked to go, at the next report": (
        SAVING + "i = 0\nos.kill(os.getpid(), 15)\ntrialkeeper.report({'loss': 1.0}, checkpoint=save)\nprint('no')",
        143,
        ("preempted", ""),
    ),
    "asked to go by the notify file": (
        SAVING + "i = 0\nopen(os.environ['TRIALKEEPER_SCRATCH'] + '/preempted', 'w')\n"
        "trialkeeper.report({'loss': 1.0}, checkpoint=save)\nprint('no')",
        143,
        ("preempted", ""),
    ),
    "asked to go, with a handler of its own from before": (
        "signal.signal(15, lambda *_: sys.exit(143))\ntrialkeeper.report({'loss': 1.0}); os.kill(os.getpid(), 15)",
        143,
        ("preempted", ""),
    ),
    "asked to go, with a handler of its own from afterwards": (
        "trialkeeper.report({'loss': 1.0}); signal.signal(15, lambda *_: sys.exit(0)); os.kill(os.getpid(), 15)",
        0,
        ("preempted", ""),
    ),
    "a name that is no text": (
        "trialkeeper.report({'loss': 1}); raise OSError('caf\\udce9')",
        1,
        ("error", "Exception"),
    ),
    "asked to go by the notify file, and by the signal in the middle of the save": (
        (
            "def save(folder):\n    os.kill(os.getpid(), 15); (folder / 'w').write_text('x')\n"
            "trialkeeper.get_checkpoint(); open(os.environ['TRIALKEEPER_SCRATCH'] + '/preempted', 'w')\n"
            "trialkeeper.report({'loss': 1.0}, checkpoint=save)\nprint('no')"
        ),
        143,
        ("preempted", ""),
    ),
    "asked to go while it saves": (
        (
            "def save(folder):\n    os.kill(os.getpid(), 15); (folder / 'w').write_text('x')\n"
            "trialkeeper.report({'loss': 1.0}, checkpoint=save)\nprint('no')"
        ),
        143,
        ("preempted", ""),
    ),
    "asked to go, and then an exception": (
        "trialkeeper.report({'loss': 1.0}); os.kill(os.getpid(), 15); raise RuntimeError('a worker was killed')",
        1,
        ("preempted", ""),
    ),
    "asked to go, and then out of memory": (
        "trialkeeper.report({'loss': 1.0}); os.kill(os.getpid(), 15); raise MemoryError",
        1,
        ("error", "OutOfMemory"),
    ),
    "out of memory under another exception": (
        (
            "trialkeeper.get_params()\ntry: raise RuntimeError('CUDA out of memory')\n"
            "except RuntimeError as cause: raise ValueError('fit failed') from cause"
        ),
        1,
        ("error", "OutOfMemory"),
    ),
    "an exception without words": (
        "class Odd(Exception):\n    def __str__(self): raise TypeError\ntrialkeeper.get_params()\nraise Odd",
        1,
        ("error", "Exception"),
    ),
    "an exception in the thread that reports": (
        (
            "import threading\ndef work():\n    trialkeeper.report({'loss': 1}); raise ValueError('x')\n"
            "t = threading.Thread(target=work); t.start(); t.join()"
        ),
        0,
        ("error", "Exception"),
    ),
    "an exception in another thread": (
        (
            "import threading\ndef work(): raise ValueError('x')\ntrialkeeper.report({'loss': 1})\n"
            "t = threading.Thread(target=work); t.start(); t.join()"
        ),
        0,
        ("complete", ""),
    ),
    "asked to go, and left by itself": (
        "trialkeeper.report({'loss': 1.0}); os.kill(os.getpid(), 15); sys.exit(0)",
        0,
        ("preempted", ""),
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_marker_says_how_it_ended(name: str, place: Place) -> None:
    script, code, end = ENDS[name]
    left = place.run(script)
    assert (left.code, left.end) == (code, end), left.err
    assert "no\n" not in left.out


def test_asked_twice_it_goes_at_once(place: Place) -> None:
    left = place.run("trialkeeper.get_params()\nos.kill(os.getpid(), 15)\nos.kill(os.getpid(), 15)\nprint('no')")
    assert (left.code, left.out) == (-15, "")


def test_the_end_of_a_worker_is_not_taken_for_its_own(place: Place) -> None:
    """Pools and loaders end their workers by SIGTERM, and these were forked with everything that listens to it."""
    left = place.run(
        "import multiprocessing\ntrialkeeper.get_checkpoint()\n"
        "def work(queue):\n    queue.put(1)\n    signal.pause()\n"
        "context = multiprocessing.get_context('fork'); queue = context.SimpleQueue()\n"
        "worker = context.Process(target=work, args=(queue,)); worker.start(); queue.get()\n"
        "worker.terminate(); worker.join(); print(worker.exitcode)\n"
        "from trialkeeper import signals\nsignals._looked_at = 0.0\ntrialkeeper.report({'loss': 1})"
    )
    assert left.out == "-15\n"
    assert (left.code, left.end) == (0, ("complete", "")), left.err


@pytest.mark.parametrize(
    ("first", "error"),
    [
        ("os.kill(os.getpid(), 15)", "TrialPreempted"),
        ("metrics['loss'] = float('nan')", "TrialStopped"),
    ],
)
def test_a_trainer_that_swallows_its_exit_gets_it_again_and_reports_no_more(
    first: str, error: str, place: Place
) -> None:
    left = place.run(
        SAVING + f"i = 0\nmetrics = {{'loss': 1.0}}\ntrialkeeper.report(metrics, checkpoint=save)\n{first}\n"
        "for i in range(1, 4):\n"
        "    try: trialkeeper.report(metrics, checkpoint=save)\n"
        "    except BaseException as left: print(type(left).__name__)"
    )
    assert left.out == f"{error}\n" * 3
    assert len(place.rows()) == 2


def test_the_message_covers_what_was_there_before(place: Place) -> None:
    log = Path(place.env(1)["TRIALKEEPER_TERMINATION_LOG"])
    log.write_text("x" * 9000)
    left = place.run("trialkeeper.get_params()")
    assert left.end == ("complete", "")
    assert log.stat().st_size <= 4096


def test_an_exception_tells_type_message_and_place(place: Place) -> None:
    left = place.run("def step():\n    raise KeyError('weights')\ntrialkeeper.report({'loss': 1})\nstep()")
    assert left.last is not None
    assert left.last.text.startswith("KeyError: 'weights' (at trainer.py:3 step < trainer.py:5 <module>)")
    assert "Traceback" in left.err


def test_an_exception_that_we_raise_tells_the_trainers_line(place: Place) -> None:
    left = place.run("def step():\n    trialkeeper.report({'loss': 'low'})\nstep()")
    assert left.last is not None
    assert left.last.text.endswith(" (at trainer.py:3 step < trainer.py:4 <module>)"), left.last.text


def test_a_script_from_stdin_is_a_trainer(place: Place) -> None:
    left = place.run("trialkeeper.report({'loss': 1})", stdin=True)
    assert left.end == ("complete", "")


FORK = """
trialkeeper.report({'loss': 1.0})
pid = os.fork()
if pid == 0:
    try:
        trialkeeper.report({'loss': 2.0})
    except RuntimeError as error:
        print(trialkeeper.get_params(lr=3).lr, error, flush=True)
    raise SystemExit(7)
os.waitpid(pid, 0)
trialkeeper.report({'loss': 3.0})
"""
SPAWN = """
import multiprocessing
def work(queue):
    try:
        trialkeeper.report({'loss': 2.0})
    except RuntimeError as error:
        queue.put((trialkeeper.get_context().seed, str(error)))
if __name__ == "__main__":
    trialkeeper.report({'loss': 1.0})
    context = multiprocessing.get_context(HOW)
    queue = context.Queue()
    worker = context.Process(target=work, args=(queue,))
    worker.start()
    print(*queue.get(timeout=30))
    worker.join()
    trialkeeper.report({'loss': 3.0})
"""


def test_a_forked_child_reads_and_its_end_says_nothing(place: Place) -> None:
    left = place.run(FORK)
    assert left.out.startswith("3 trialkeeper.report() was called in a worker process")
    assert left.end == ("complete", "")
    assert [row["loss"] for row in place.rows()] == [1.0, 3.0]


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_a_worker_of_multiprocessing_reads_and_does_not_report(how: str, place: Place) -> None:
    left = place.run(SPAWN.replace("HOW", repr(how)))
    assert left.out.startswith("5 trialkeeper.report() was called in a worker process"), left.err
    assert left.end == ("complete", "")
    assert [row["loss"] for row in place.rows()] == [1.0, 3.0]


def test_a_second_process_of_the_pod_does_not_report(place: Place) -> None:
    inner = "import trialkeeper; print(trialkeeper.get_context().attempt); trialkeeper.report({'loss': 1})"
    left = place.run(
        f"import subprocess\ntrialkeeper.report({{'loss': 1}})\nsubprocess.run([sys.executable, '-c', {inner!r}])"
    )
    assert left.out == "1\n"
    assert "NotTheOwner" in left.err
    assert left.end == ("complete", "")


def test_reporting_from_another_thread_works(place: Place) -> None:
    left = place.run(
        "import threading\nt = threading.Thread(target=lambda: trialkeeper.report({'loss': 1}))\nt.start(); t.join()"
    )
    assert (left.code, left.end) == (0, ("complete", "")), left.err


def test_importing_does_nothing_and_loads_little(place: Place) -> None:
    before = "import sys\nbefore = set(sys.modules)\nimport trialkeeper\nprint(*sorted(set(sys.modules) - before))\n"
    (place.root / "bare.py").write_text(before)
    out = subprocess.run([sys.executable, "bare.py"], cwd=place.root, capture_output=True, text=True, check=True).stdout
    loaded = set(out.split())
    assert {m for m in loaded if m.startswith("trialkeeper")} == {"trialkeeper"}
    heavy = {"asyncio", "hashlib", "json", "multiprocessing", "numpy", "pathlib", "signal", "socket", "subprocess"}
    assert not loaded & heavy
    assert not list(place.root.glob("trialkeeper-store"))


def test_a_plain_run_says_where_things_go_and_resumes_when_asked(tmp_path: Path) -> None:
    script = "import trialkeeper, sys\n" + LOOP.replace("trialkeeper.report", "print(i, end=' '); trialkeeper.report")
    (tmp_path / "mine.py").write_text(script)
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRIALKEEPER_")}
    outs = []
    for resume in ("", "", "1"):
        done = subprocess.run(
            [sys.executable, "mine.py"],
            cwd=tmp_path,
            env={**env, "TRIALKEEPER_RESUME": resume},
            capture_output=True,
            text=True,
            check=True,
        )
        outs.append(done.stdout)
        assert str(tmp_path / "trialkeeper-store" / "mine") in done.stderr
        assert "TRIALKEEPER_RESUME=1" in done.stderr
    assert outs == ["0 1 2 3 4 5 ", "0 1 2 3 4 5 ", ""]
    assert sorted(p.name for p in (tmp_path / "trialkeeper-store" / "mine").iterdir()) == ["00001", "00002"]


def _plain(folder: Path, script: str, **more: str) -> subprocess.Popen[str]:
    (folder / "mine.py").write_text("import os, sys, trialkeeper\n" + script)
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRIALKEEPER_")} | more
    return subprocess.Popen(
        [sys.executable, "mine.py"],
        cwd=folder,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_plain_runs_at_the_same_time_have_folders_of_their_own(tmp_path: Path) -> None:
    script = "trialkeeper.get_params(); sys.stdin.read(); trialkeeper.report({'loss': 1})"
    runs = [_plain(tmp_path, script) for _ in range(3)]
    for run in runs:
        assert run.communicate("go", timeout=60)[1].count("Error") == 0
        assert run.returncode == 0
    assert sorted(p.name for p in (tmp_path / "trialkeeper-store" / "mine").iterdir()) == ["00001", "00002", "00003"]


def test_a_plain_runs_spawned_worker_is_in_the_same_trial(tmp_path: Path) -> None:
    script = """
import multiprocessing
def work(queue):
    checkpoint = trialkeeper.get_checkpoint()
    queue.put((trialkeeper.get_context().trial, checkpoint.to_dict()))
if __name__ == "__main__":
    trialkeeper.report({'loss': 1.0}, checkpoint=trialkeeper.Checkpoint.from_dict({'a': 7}))
    trialkeeper.flush()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=work, args=(queue,))
    worker.start()
    print(queue.get(timeout=30), trialkeeper.get_context().trial)
    worker.join()
"""
    out, err = _plain(tmp_path, script).communicate(timeout=60)
    assert out == "('mine-1', {'a': 7}) mine-1\n", err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TRIALKEEPER_ATTEMPT", "two", "TRIALKEEPER_ATTEMPT is not a whole number: 'two'"),
        ("TRIALKEEPER_MTBF_SECONDS", "-1", "TRIALKEEPER_MTBF_SECONDS is not a number: '-1'"),
        ("TRIALKEEPER_PARAMS", "[1]", "TRIALKEEPER_PARAMS is not a JSON object"),
        ("TRIALKEEPER_SETTINGS", "{", "TRIALKEEPER_SETTINGS is not JSON"),
        ("TRIALKEEPER_GRACE_SECONDS", "inf", "TRIALKEEPER_GRACE_SECONDS is not a number: 'inf'"),
        ("TRIALKEEPER_REPORT", "http://host:1", "TRIALKEEPER_REPORT: 'http://host:1' is not a file:// URL"),
        ("TRIALKEEPER_REPORT", "https://host/path", "TRIALKEEPER_REPORT: it is not https://host:port"),
        ("TRIALKEEPER_STORE", "gs://bucket", "TRIALKEEPER_STORE: 'gs://bucket' is neither a file:// nor an s3:// URL"),
        ("TRIALKEEPER_STORE", "s3://b", "'b' is not a bucket's name"),
        ("TRIALKEEPER_STORE", "s3://me:secret@bucket", "takes no keys"),
        ("TRIALKEEPER_STORE", "s3://bucket?endpoint=host:9000", "endpoint='host:9000' is not http://host:port"),
        ("TRIALKEEPER_STORE", "s3://bucket?endpoint=http://h:x", "endpoint='http://h:x' is not http://host:port"),
        ("TRIALKEEPER_STORE", "s3://bucket?endpoint=http://me:secret@h", "an endpoint takes no keys"),
        ("TRIALKEEPER_STORE", "s3://bucket?acl=public", "takes endpoint, region and credentials, not 'acl'"),
        ("TRIALKEEPER_STORE", "s3://bucket?credentials=mine", "the only word is 'report'"),
        ("TRIALKEEPER_STORE", "s3://bucket?region=a%20b", "'a b' is not a region's name"),
        ("TRIALKEEPER_STORE", "file://host/x", "is not a file:// URL of this machine"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(name: str, value: str, words: str) -> None:
    good = {"TRIALKEEPER_ATTEMPT": "1", "TRIALKEEPER_STORE": "file:///x%20y"}
    assert environment.read(good).folder == Path("/x y/trial")
    with pytest.raises(ValueError, match=words) as refused:
        environment.read(good | {name: value})
    assert "secret" not in str(refused.value)


def test_the_command_without_its_packages_says_what_to_install() -> None:
    code = "import sys; sys.modules['click'] = None; from trialkeeper.command_line import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "trialkeeper: the commands need a few more packages: pip install 'trialkeeper[local]' "
        "(or [cli], to read results only)\n"
    )
