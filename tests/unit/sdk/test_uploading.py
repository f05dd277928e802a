"""The upload process and the trainer's end of it: deaths, silences, answers that are lost, and who goes when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_s3 import Fake, Fault, Request, fake_s3
from minio_server import KEYS
from stores import environment_of
from trainers import PREAMBLE, SAVING, Place
from trialkeeper import history
from trialkeeper.environment import Environment
from trialkeeper.manifest import Progress, decode
from trialkeeper.saving import new_folder
from trialkeeper.store.opening import open_store
from trialkeeper.upload import messages, process
from trialkeeper.upload.messages import Answer, Committed, Dropped, Failed, Fenced, Refused, Save, Synced
from trialkeeper.upload.process import Process
from trialkeeper.upload.uploader import Uploader
from trialkeeper_operator.local.process import alive

PATIENCE = 60.0
POD = {"TRIALKEEPER_POD_UID": "pod-1"}


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    return environment_of((tmp_path / "store").as_uri(), tmp_path, **POD)


def described(env: Environment, iteration: int, **more: Any) -> dict[str, Any]:
    """What a trainer says of a save with one file."""
    folder = new_folder(env.scratch)
    (folder / "w").write_text(str(iteration))
    return {
        "folder": os.fspath(folder),
        "kind": "directory",
        "why": "periodic",
        "progress": Progress(iteration, None, 0.0, {}, ()).to_json(),
        "metrics": {"loss": 1.0},
        "reported": time.time(),
        **more,
    }


def committed(env: Environment) -> list[int]:
    """Iterations of the checkpoints that are in the store, each of them looked at."""
    store = open_store(env)
    bodies = [decode(store.get(key)) for key in store.list("manifests/")]
    for body in bodies:
        place = store.fetch(body["data"], body["files"])
        assert (place / "w").read_text() == str(body["iteration"])
    return [body["iteration"] for body in bodies]


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def heard(uploader: Uploader, enough: int) -> list[Answer]:
    """Answers about saves, as they come, until there are so many."""
    found: list[Answer] = []

    def listen() -> bool:
        found.extend(a for a in uploader.hear(0.1) if not isinstance(a, Synced))
        return len(found) >= enough

    until(listen)
    return found


def pid_of(uploader: Uploader) -> int:
    assert uploader._process is not None
    return uploader._process.pid


@pytest.fixture
def uploader(env: Environment) -> Iterator[Uploader]:
    made = Uploader(env, lambda: None)
    yield made
    made.give_up()


def test_a_save_is_committed_and_its_folder_is_gone(uploader: Uploader, env: Environment) -> None:
    assert uploader.save(**described(env, 1)) == 1
    assert [*uploader.outstanding] == [1]
    (answer,) = heard(uploader, 1)
    assert isinstance(answer, Committed)
    assert (answer.number, answer.reference.iteration, answer.sent) == (1, 1, 1)
    assert committed(env) == [1]
    assert uploader.outstanding == {}
    assert list((env.scratch / "saves").iterdir()) == []


def test_another_process_goes_on_where_one_was_killed(uploader: Uploader, env: Environment) -> None:
    for iteration in (1, 2):
        uploader.save(**described(env, iteration))
    first = pid_of(uploader)
    os.kill(first, signal.SIGKILL)
    answers = heard(uploader, 2)
    assert [a.number for a in answers if isinstance(a, Committed)] == [1, 2]
    assert pid_of(uploader) != first
    assert committed(env) == [1, 2]


def test_a_commit_whose_answer_was_lost_is_found_and_not_made_again(uploader: Uploader, env: Environment) -> None:
    uploader.save(**described(env, 1))
    until(lambda: committed(env) == [1])
    before = [p.name for p in env.folder.rglob("*")]
    assert uploader._lines is not None
    until(lambda: b"Committed" in os.read(uploader._lines._descriptor, 1 << 16) if uploader._lines.wait(0.1) else False)  # type: ignore[union-attr]
    os.kill(pid_of(uploader), signal.SIGKILL)
    (answer,) = heard(uploader, 1)
    assert isinstance(answer, Committed)
    assert (answer.reference.iteration, answer.sent) == (1, 0)
    assert [p.name for p in env.folder.rglob("*")] == before


def test_a_process_that_dies_again_and_again_is_given_up_and_the_next_save_tries_anew(
    uploader: Uploader, env: Environment
) -> None:
    uploader.save(**described(env, 1))
    answers: list[Answer] = []

    def kill() -> bool:
        if uploader._process is not None and uploader.outstanding:
            os.kill(pid_of(uploader), signal.SIGKILL)
        answers.extend(a for a in uploader.hear(1.0) if isinstance(a, Failed))
        return bool(answers)

    until(kill)
    (failed,) = answers
    assert isinstance(failed, Failed)
    assert "the upload process dies, again and again: has this pod enough memory?" in failed.text
    assert (failed.again, uploader.outstanding, uploader.failing) == (False, {}, None)
    assert list((env.scratch / "saves").iterdir()) == []
    uploader.save(**described(env, 2))
    assert isinstance(heard(uploader, 1)[0], Committed)


def test_a_machine_without_a_process_left_costs_the_save_and_not_the_training(
    uploader: Uploader, env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader.save(**described(env, 1))
    os.kill(pid_of(uploader), signal.SIGKILL)

    def none(*_: Any, **__: Any) -> Any:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", none)
        (answer,) = heard(uploader, 1)
        assert isinstance(answer, Failed)
        assert "no other can be started" in answer.text
        with pytest.raises(OSError, match="temporarily unavailable"):
            uploader.save(**described(env, 2))
        assert uploader.outstanding == {}
    uploader.save(**described(env, 3))
    assert isinstance(heard(uploader, 1)[0], Committed)


def test_a_frozen_process_holds_nobody_up(uploader: Uploader, env: Environment) -> None:
    """More is said than a pipe takes, and it can still be ended; what was said is not lost if it wakes up."""
    uploader.save(**described(env, 1, metrics={"loss": 1.0}))
    heard(uploader, 1)
    pid = pid_of(uploader)
    os.kill(pid, signal.SIGSTOP)
    many = {f"metric-{i}": float(i) for i in range(10_000)}
    start = time.monotonic()
    for iteration in (2, 3):
        uploader.save(**described(env, iteration, metrics=many))
    uploader.hurry(30.0)
    uploader.retry()
    assert uploader.hear(0.0) == []
    assert time.monotonic() - start < 10
    os.kill(pid, signal.SIGCONT)
    assert [type(a) for a in heard(uploader, 2)] == [Committed, Committed]
    uploader.save(**described(env, 4))
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    uploader.close(0.5)
    assert time.monotonic() - start < 10
    until(lambda: not alive(pid))
    assert uploader.outstanding == {}


def test_the_next_process_hears_of_the_haste_too(uploader: Uploader, env: Environment) -> None:
    uploader.save(**described(env, 1))
    uploader.hurry(40.0)
    os.kill(pid_of(uploader), signal.SIGKILL)
    until(lambda: uploader.hear(0.1) or uploader._hurried is False)
    uploader.hurry(30.0)
    assert uploader._hurried
    assert not uploader.outstanding or isinstance(heard(uploader, 1)[0], Committed)


def test_closing_sends_what_there_is_and_ends_the_process(uploader: Uploader, env: Environment) -> None:
    uploader.save(**described(env, 1))
    pid = pid_of(uploader)
    answers = uploader.close(PATIENCE)
    assert any(isinstance(a, Committed) for a in answers)
    assert isinstance(answers[-1], Synced)
    assert not Path(f"/proc/{pid}").exists()
    assert committed(env) == [1]
    assert uploader.close(PATIENCE) == []


# Trainers.


def processes(scratch: str) -> list[int]:
    """Whatever lives and has this scratch folder in its environment."""
    found, mine = [], f"TRIALKEEPER_SCRATCH={scratch}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mine in (path / "environ").read_bytes().split(b"\0") and " Z " not in (path / "stat").read_text():
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_forked_child_does_not_keep_the_upload_process_alive(place: Place) -> None:
    """The child stays when its parent is killed; the upload process has sent what it had, and is gone."""
    script = (
        SAVING + "import time\ni = 0\ntrialkeeper.report({'loss': 1}, checkpoint=save)\n"
        "if os.fork() == 0:\n"
        "    own = [f'/proc/self/fd/{f}' for f in range(3, 100)]\n"
        "    pipes = sum(os.path.exists(f) and os.readlink(f).startswith('pipe:') for f in own)\n"
        "    open('child', 'w').write(f'{os.getpid()} {pipes}')\n"
        "    time.sleep(60)\n"
        "while not os.path.exists('child') or not open('child').read(): time.sleep(0.01)\n"
        "trialkeeper.flush()\nos.kill(os.getpid(), 9)"
    )
    (place.root / "t.py").write_text(PREAMBLE + script)
    env = place.env(1)
    trainer = subprocess.Popen([sys.executable, "t.py"], cwd=place.root, env=env)
    trainer.wait(60)
    child, pipes = map(int, (place.root / "child").read_text().split())
    try:
        assert pipes == 0
        until(lambda: processes(env["TRIALKEEPER_SCRATCH"]) == [child])
    finally:
        os.kill(child, signal.SIGKILL)
    assert place.manifests() == ["a000001-i000000000001"]


def test_it_finishes_what_is_in_hand_after_its_trainer_was_killed(place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 1, "onBusy": "Latest"}
    left = place.run(SAVING + "i = 0\ntrialkeeper.report({'loss': 1}, checkpoint=save)\nos.kill(os.getpid(), 9)")
    assert left.code == -signal.SIGKILL
    scratch = place.env(1)["TRIALKEEPER_SCRATCH"]
    until(lambda: not processes(scratch))
    assert place.manifests() == ["a000001-i000000000001"]


def test_a_trainer_with_a_thousand_open_files_saves_like_any_other(place: Place) -> None:
    left = place.run(
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096,) * 2)\n"
        "kept = [open('/dev/null') for _ in range(1500)]\n" + SAVING + "for i in range(3):\n"
        "    trialkeeper.report({'loss': 1}, checkpoint=save)\nassert trialkeeper.flush()"
    )
    assert (left.end, left.err) == (("complete", ""), "")
    assert len(place.manifests()) == 3


def test_a_path_object_and_an_empty_name_among_the_import_paths_do_no_harm(place: Place) -> None:
    left = place.run(
        "import pathlib\nsys.path[:0] = ['', pathlib.Path('/none')]\n"
        + SAVING
        + "i = 0\ntrialkeeper.report({'loss': 1}, checkpoint=save)\nassert trialkeeper.flush()"
    )
    assert (left.end, left.err) == (("complete", ""), "")


@pytest.mark.parametrize(
    "change", ["sys.path += [None, b'/nowhere']", "open('json.py', 'w').write('raise SystemExit(1)')"]
)
def test_odd_import_paths_and_files_called_like_modules_do_no_harm(change: str, place: Place) -> None:
    """Python looks for a module that is run by `-m` in the current folder first, and passes over what is no path."""
    left = place.run(
        f"{SAVING}\nos.mkdir('data')\nos.chdir('data')\n{change}\n"
        "i = 0\ntrialkeeper.report({'loss': 1}, checkpoint=save)\nassert trialkeeper.flush()"
    )
    assert (left.end, left.err) == (("complete", ""), "")
    assert place.manifests() == ["a000001-i000000000001"]


def test_training_goes_on_when_upload_processes_die(place: Place) -> None:
    """SIGKILL for each one that is seen, for a while: said once, and the end is saved."""
    left = place.run(
        SAVING + "import threading, time\nfrom trialkeeper import reporting\n"
        "i = 0\ntrialkeeper.report({'loss': 1}, checkpoint=save)\nuploader = reporting._reporter._saves.uploader\n"
        "end = time.monotonic() + 60\n"
        "while uploader.outstanding and time.monotonic() < end:\n"
        "    process = uploader._process\n"
        "    if process is not None: process.kill()\n"
        "    i += 1\n    trialkeeper.report({'loss': 1}); time.sleep(0.01)\n"
        "i += 1\ntrialkeeper.report({'loss': 1}, checkpoint=save)"
    )
    assert left.end == ("complete", ""), left.err
    assert len(place.manifests()) <= 2
    assert place.manifests()[-1].endswith(f"{len(place.rows()):012d}")


# The process itself, in this one.


class Work:
    """A `Process`, and what it has said."""

    def __init__(self, env: Environment) -> None:
        self.env, self.said = env, list[Answer]()
        self.process = Process(env, self.said.append)

    def ask(self, number: int, iteration: int, **more: Any) -> None:
        line = messages.written(Save(number=number, **described(self.env, iteration, **more)))
        self.process.take(messages.asked(line))

    def done(self) -> list[tuple[str, int]]:
        """What it says of saves, once the trainer has gone."""
        self.process.finish()
        self.process.run()
        return [(type(a).__name__, a.number) for a in self.said if not isinstance(a, (Synced, Fenced))]


def test_a_waiting_save_is_replaced_and_one_in_hand_is_not(env: Environment) -> None:
    work = Work(env)
    work.ask(1, 1)
    work.process._in_hand = 1
    work.ask(2, 2)
    work.ask(3, 3, instead=2)
    work.ask(4, 4, instead=1)
    assert work.done() == [("Dropped", 2), ("Committed", 1), ("Committed", 3), ("Committed", 4)]
    assert committed(env) == [1, 3, 4]
    assert list((env.scratch / "saves").iterdir()) == []


def test_a_later_attempt_ends_it_all(env: Environment) -> None:
    open_store(env).put_new("attempts/000002.json", b'{"attempt": 2, "base": null}')
    work = Work(env)
    work.ask(1, 1)
    work.ask(2, 2)
    assert work.done() == [("Dropped", 1), ("Dropped", 2)]
    assert [a for a in work.said if isinstance(a, Fenced)] == [Fenced("")]
    assert committed(env) == []
    assert list((env.scratch / "saves").iterdir()) == []


def test_a_claim_that_another_pod_has_put_ends_it_all(env: Environment) -> None:
    record = {"attempt": 1, "podUid": "pod-1", "base": None}
    open_store(env).put_new("attempts/000001.json", json.dumps({**record, "podUid": "other"}).encode())
    work = Work(env)
    work.ask(1, 1, claim=record)
    assert work.done() == [("Dropped", 1)]
    assert [a for a in work.said if isinstance(a, Fenced)] == [Fenced("attempt 1 was begun by another pod")]


def test_a_claim_that_could_not_be_put_before_is_put_with_the_first_save(env: Environment) -> None:
    work = Work(env)
    work.ask(1, 1, claim={"attempt": 1, "podUid": "pod-1", "base": None})
    assert work.done() == [("Committed", 1)]
    assert history.records(open_store(env))[1]["podUid"] == "pod-1"


def test_a_folder_that_can_be_no_checkpoint_is_refused(env: Environment) -> None:
    with fake_s3() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        work = Work(replace(env, store=server.url))
        asked = described(env, 1)
        (Path(asked["folder"]) / ("n" * 200)).mkdir()
        long = Path(asked["folder"]) / "/".join(["n" * 200] * 5)
        long.mkdir(parents=True)
        (long / "w").write_text("x")
        work.process.take(messages.asked(messages.written(Save(number=1, **asked))))
        assert work.done() == [("Refused", 1)]
        assert isinstance(work.said[-1], Refused)
        assert "a bucket cannot hold a file called" in work.said[-1].text


@pytest.fixture
def bucket(env: Environment, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Fake, Environment]]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with fake_s3() as server:
        yield server, replace(env, store=server.url)


def test_what_fails_is_tried_again_at_once_when_asked(
    bucket: tuple[Fake, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, env = bucket
    monkeypatch.setattr(process, "PAUSE", 600.0)
    server.fault = lambda r: Fault(403) if "/data/" in r.key else None
    work = Work(env)
    thread = threading.Thread(target=work.process.run)
    thread.start()
    work.ask(1, 1)
    until(lambda: work.said)
    assert isinstance(work.said[0], Failed)
    assert (work.said[0].kind, work.said[0].again) == ("denied", True)
    server.fault = lambda _: None
    work.process.take({"is": "retry"})
    until(lambda: any(isinstance(a, Committed) for a in work.said))
    work.process.finish()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_while_a_store_fails_the_newer_one_is_as_good(
    bucket: tuple[Fake, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, env = bucket
    denied: list[Request] = []

    def once(request: Request) -> Fault | None:
        if "/data/" not in request.key or denied:
            return None
        denied.append(request)
        return Fault(403)

    server.fault = once
    work = Work(env)
    work.ask(1, 1)
    work.ask(2, 2)
    assert work.done() == [("Failed", 1), ("Dropped", 1), ("Committed", 2)]


def test_a_folder_that_is_gone_is_not_tried_again(env: Environment) -> None:
    work = Work(env)
    work.ask(1, 1)
    for folder in (env.scratch / "saves").iterdir():
        (folder / "w").unlink()
        folder.rmdir()
    assert work.done() == [("Failed", 1)]
    assert isinstance(work.said[0], Failed)
    assert not work.said[0].again


def test_what_is_said_survives_the_pipe(env: Environment) -> None:
    for answer in (Dropped(3), Refused(4, "no"), Fenced("later"), Synced(7, "why"), Failed(5, "denied", "x\ny", True)):
        assert messages.answer(messages.written(answer)) == answer
    assert messages.unpacked(messages.packed(env)) == env
