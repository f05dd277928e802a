"""Whole trainers on a bucket: what is there after any end, and what a store that fails costs them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_s3 import Fake, Fault, Request, fake_s3
from fake_service import Posted, Reply, fake_service
from minio_server import KEYS
from trainers import PREAMBLE, SAVING, BucketPlace
from trialkeeper.contract import Message

UNTIL = "for i in range(start, 9):\n    trialkeeper.report({'loss': 1.0 / (i + 1)}, checkpoint=save)\n"
KILLED_AT = UNTIL + "    if trialkeeper.get_context().attempt == 1 and i == 4: die()\n"
BUSY = Fault(503, b"<Error><Code>SlowDown</Code></Error>")
DENIED = Fault(403, b"<Error><Code>AccessDenied</Code></Error>")


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake_s3() as running:
        yield running


@pytest.fixture
def place(server: Fake, tmp_path: Path) -> BucketPlace:
    return BucketPlace(tmp_path, url=server.url, keys=dict(KEYS))


def test_an_attempt_goes_on_after_its_checkpoint_on_another_node(place: BucketPlace) -> None:
    place.settings["checkpoint"] = {"frequency": 2}
    assert place.run(SAVING + KILLED_AT).code == -signal.SIGKILL
    left = place.run(SAVING + KILLED_AT, 2)
    assert left.end == ("complete", ""), left.err
    assert [row["training_iteration"] for row in place.rows(1)][:4] == [1, 2, 3, 4]
    assert [row["training_iteration"] for row in place.rows(2)] == [5, 6, 7, 8, 9]
    assert left.last is not None
    assert left.last.resumed is not None
    assert (left.last.resumed.attempt, left.last.resumed.iteration) == (1, 4)


@pytest.mark.parametrize(
    "end",
    [
        "",
        "raise ValueError('no')",
        "sys.exit(3)",
        "os.kill(os.getpid(), 15); trialkeeper.report({'loss': 1})",
        "os.kill(os.getpid(), 15)",
    ],
)
def test_whatever_was_reported_is_in_the_bucket_at_the_end(end: str, place: BucketPlace) -> None:
    place.settings["checkpoint"] = {"frequency": 0, "atEnd": False}
    left = place.run(f"for i in range(5): trialkeeper.report({{'loss': 1.0}})\n{end}")
    assert len(place.rows()) >= 5, left.err
    with place.opened() as store:
        assert store.list("ended/") == ["ended/a000001.json"]


def test_what_was_reported_is_sent_now_and_then_without_a_checkpoint(place: BucketPlace, server: Fake) -> None:
    place.settings["checkpoint"] = {"frequency": 0, "atEnd": False}
    left = place.run(
        "import trialkeeper.store.segments, threading\ntrialkeeper.store.segments.INTERVAL = 0.05\n"
        "trialkeeper.get_checkpoint()\n"
        "for i in range(100): trialkeeper.report({'loss': 1.0}); threading.Event().wait(0.01)\nos.kill(os.getpid(), 9)"
    )
    assert left.code == -signal.SIGKILL
    iterations = [row["training_iteration"] for row in place.rows()]
    assert 50 < len(iterations) <= 100
    assert iterations == [*range(1, len(iterations) + 1)]
    assert place.run("trialkeeper.get_checkpoint()", 2).last is not None


def test_a_large_last_state_is_saved_while_the_interpreter_shuts_down(place: BucketPlace) -> None:
    place.settings["checkpoint"] = {"frequency": 0}
    left = place.run(
        "def save(folder):\n    (folder / 'w').write_bytes(bytes(40 << 20))\n"
        "    [(folder / f'small-{i}').write_bytes(b'x') for i in range(20)]\n"
        "trialkeeper.report({'loss': 1.0}, checkpoint=save)"
    )
    assert (left.end, left.err) == (("complete", ""), "")
    assert len(place.manifests()) == 1


def test_who_may_not_read_the_store_does_not_start_over(place: BucketPlace, server: Fake) -> None:
    place.run(SAVING + KILLED_AT)

    def deny_data(request: Request) -> Fault | None:
        return DENIED if request.method == "GET" and "/data/" in request.key else None

    server.fault = deny_data
    left = place.run(SAVING + UNTIL, 2)
    assert "trialkeeper.store.Denied: the bucket trials at http" in left.err
    server.fault = lambda _: None
    assert place.rows(2) == []
    place.run(SAVING + UNTIL, 3)
    assert place.rows(3)[0]["training_iteration"] == 6


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_store_that_does_not_answer_is_waited_for_before_the_first_report(
    comes_back: bool, place: BucketPlace, server: Fake
) -> None:
    place.run(SAVING + KILLED_AT)
    asked: list[Request] = []

    def reset(request: Request) -> Fault | None:
        asked.append(request)
        return Fault() if not comes_back or len(asked) < 7 else None

    server.fault = reset
    patience = (
        "import trialkeeper.resuming as r, trialkeeper.store.wire as w\n"
        "r.PATIENCE, r.PAUSE, w.PAUSE_LIMIT = " + f"{30 if comes_back else 1}, 0.05, 0.05\n"
    )
    left = place.run(patience + SAVING + UNTIL, 2)
    assert "where to begin is not known yet: the bucket trials at" in left.err
    server.fault = lambda _: None
    assert [row["training_iteration"] for row in place.rows(2)] == ([6, 7, 8, 9] if comes_back else [])


def test_an_object_that_is_broken_is_passed_over_for_an_older_checkpoint(place: BucketPlace, server: Fake) -> None:
    place.run(SAVING + KILLED_AT)
    newest = max(key for key in server.objects if "/data/" in key)
    server.fault = lambda r: Fault(bytes_before_reset=0) if r.method == "GET" and r.key == newest else None
    left = place.run(SAVING + UNTIL, 2)
    assert "is passed over" in left.err
    assert place.rows(2)[0]["training_iteration"] == 5


def test_a_store_that_refuses_does_not_stop_the_training_and_has_no_hole_later(
    place: BucketPlace, server: Fake
) -> None:
    denied: list[str] = []

    def deny_for_a_while(request: Request) -> Fault | None:
        if server.count("PUT", "manifests/") and len(denied) < 2 and request.method == "PUT":
            denied.append(request.key)
            return DENIED
        return None

    server.fault = deny_for_a_while
    left = place.run(
        "import pathlib\ndef save(folder): (folder / 'w').write_text('x')\n"
        "for i in range(6): trialkeeper.report({'loss': 1.0}, checkpoint=save)"
    )
    assert left.end == ("complete", ""), left.err
    assert left.err.count("the store cannot be written (") == 1
    assert [row["training_iteration"] for row in place.rows()] == [1, 2, 3, 4, 5, 6]
    saved = [int(m[-12:]) for m in place.manifests()]
    assert saved[-1] == 6


def test_a_dead_store_does_not_hold_a_trainer_that_is_asked_to_go(place: BucketPlace, server: Fake) -> None:
    (place.root / "t.py").write_text(
        PREAMBLE + SAVING + "import itertools\nfor i in itertools.count(start):\n"
        "    trialkeeper.report({'loss': 1.0}, checkpoint=save)\n"
    )
    hung = threading.Event()

    def hang_later(request: Request) -> Fault | None:
        if server.count("PUT", "manifests/") < 3 or ("/data/" not in request.key and not hung.is_set()):
            return None
        hung.set()
        return Fault(hang=True)

    server.fault = hang_later
    env = place.env(1) | {"TRIALKEEPER_GRACE_SECONDS": "3"}
    process = subprocess.Popen([sys.executable, "t.py"], cwd=place.root, env=env, stderr=subprocess.PIPE, text=True)
    assert hung.wait(60)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert time.monotonic() - start < 8
    assert "is not in the store" in err


def test_whoever_is_asked_to_go_before_its_end_could_be_saved_is_not_complete(place: BucketPlace, server: Fake) -> None:
    (place.root / "t.py").write_text(
        PREAMBLE + SAVING + "for i in range(start, 30):\n"
        "    trialkeeper.report({'loss': 1.0}, checkpoint=save)\nprint('through', flush=True)\n"
    )
    server.fault = lambda request: Fault(hang=True) if server.count("PUT", "manifests/") >= 2 else None
    log = place.root / "last-words"
    env = place.env(1) | {"TRIALKEEPER_GRACE_SECONDS": "3", "TRIALKEEPER_TERMINATION_LOG": str(log)}
    process = subprocess.Popen([sys.executable, "t.py"], cwd=place.root, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "through\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    last = Message.decode(log.read_bytes())
    assert last is not None
    assert last.end == "preempted", last
    assert "the last checkpoint is of iteration" in last.text or "SIGTERM" in last.text


@pytest.mark.parametrize(
    ("fault", "comes_back"),
    [(Fault(), True), (Fault(), False), (BUSY, False)],
    ids=["comes back", "does not answer", "answers that it cannot"],
)
@pytest.mark.parametrize(
    "end", ["", "trialkeeper.report({'loss': 0.0}, checkpoint=save)\n"], ids=["returns", "is stopped"]
)
def test_a_trainer_is_complete_once_its_last_state_is_in_the_store(
    end: str, fault: Fault, comes_back: bool, place: BucketPlace, server: Fake
) -> None:
    place.settings["stop"] = {"maxIterations": 6}
    place.settings["checkpoint"] = {"frequency": 3}
    asked: list[Request] = []

    def reset(request: Request) -> Fault | None:
        if not asked and f"/data/a000001-i{6 if end else 5:012d}" not in request.key:
            return None
        asked.append(request)
        return None if comes_back and len(asked) > 4 else fault

    server.fault = reset
    patience = (
        "import trialkeeper.resuming as r\n"
        f"r.PATIENCE, r.PAUSE = {60 if comes_back else 1}, 0.05\n"
        "def save(folder): (folder / 'w').write_bytes(os.urandom(9))\n"
    )
    left = place.run(f"{patience}for i in range(5):\n    trialkeeper.report({{'loss': 1.0}}, checkpoint=save)\n{end}")
    server.fault = lambda _: None
    assert len(asked) > 1, left.err
    assert left.code == 0, left.err
    saved = max(int(m[-12:]) for m in place.manifests())
    if comes_back:
        assert left.end == ("complete", "MaxIterations" if end else ""), left.err
        assert saved == (6 if end else 5)
        return
    assert left.end == ("error", "StoreUnreachable"), left.err
    assert left.last is not None
    assert left.last.text.startswith(f"at its end, the last checkpoint is of iteration {saved}: the bucket"), left.last
    assert saved < 5


def test_keys_are_lent_by_the_report_service_and_renewed_with_the_newest_token(
    place: BucketPlace, server: Fake, tmp_path: Path
) -> None:
    (tmp_path / "service").mkdir()
    with fake_service(tmp_path / "service") as service:

        def answer(posted: Posted) -> Reply:
            if posted.path != "/v1/credentials":
                return Reply()
            number = sum(p.path == posted.path for p in service.posted)
            service.token_file.write_text(f"token-{number}")
            expires = time.time() + (0.5 if number < 2 else 3600)
            return Reply.of(
                {
                    "accessKey": f"key-{number}",
                    "secretKey": "s",
                    "sessionToken": f"session-{number}",
                    "expires": expires,
                }
            )

        service.answer = answer
        place.url, place.keys = f"{server.url}&credentials=report", service.variables
        left = place.run(
            SAVING + "import threading\nfor i in range(start, 9):\n"
            "    trialkeeper.report({'loss': 1.0}, checkpoint=save)\n    threading.Event().wait(0.35)"
        )
        assert (left.end, left.err) == (("complete", ""), "")
        asked = [p.token for p in service.posted if p.path == "/v1/credentials"]
        assert (asked[0], len({*asked})) == ("first-token", len(asked))
        used = {r.headers["x-amz-security-token"] for r in server.requests}
        assert used <= {f"session-{number}" for number in range(len(asked))}
        assert len(used) > 2, "keys are renewed, by the trainer and by its upload process"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(403, b'{"secret": "no"}'), "it answers with HTTP 403"),
        (Reply(200, b'{"accessKey": 1}'), "its answer makes no sense"),
        (Reply(200, b"{"), "its answer makes no sense"),
    ],
)
def test_keys_that_are_not_lent_are_one_sentence(
    reply: Reply, words: str, place: BucketPlace, server: Fake, tmp_path: Path
) -> None:
    (tmp_path / "service").mkdir()
    with fake_service(tmp_path / "service") as service:
        service.answer = lambda p: reply if p.path == "/v1/credentials" else Reply()
        place.url, place.keys = f"{server.url}&credentials=report", service.variables
        left = place.run("trialkeeper.get_checkpoint()")
    assert f"the report service gives no keys for the bucket trials at {server.endpoint}: {words}" in left.err
    assert server.requests == []


def test_without_its_packages_a_bucket_is_one_sentence(place: BucketPlace) -> None:
    left = place.run("sys.modules['minio'] = None\ntrialkeeper.get_checkpoint()")
    assert "ImportError: the store is a bucket, and that needs a few more packages: pip install 'trialkeeper[s3]'" in (
        left.err
    )


def test_a_trainer_on_a_directory_loads_nothing_of_a_bucket(place: BucketPlace) -> None:
    place.url = (place.root / "store").as_uri()
    left = place.run(SAVING + "i = 0\ntrialkeeper.report({'loss': 1}, checkpoint=save)\nprint(*sys.modules)")
    assert left.end == ("complete", "")
    assert not {"minio", "urllib3", "ssl", "http.client", "xml.etree"} & set(left.out.split())


def test_the_context_says_where_the_trial_is(place: BucketPlace) -> None:
    left = place.run("print(trialkeeper.get_context().store)")
    assert left.out == f"{place.url.partition('?')[0]}/t?{place.url.partition('?')[2]}\n"


def test_a_trial_goes_on_where_another_one_ended_in_the_same_bucket(server: Fake, tmp_path: Path) -> None:
    variables = {"TRIALKEEPER_PREFIX": "default/a-1/00000"}
    donor = BucketPlace(tmp_path, url=server.url, keys={**KEYS, **variables})
    donor.settings["checkpoint"] = {"frequency": 2}
    assert donor.run(SAVING + KILLED_AT).code == -signal.SIGKILL
    key = f"{variables['TRIALKEEPER_PREFIX']}/manifests/a000001-i000000000004.json"
    variables = {"TRIALKEEPER_PREFIX": "default/b-2/00000", "TRIALKEEPER_BASE": key}
    heir = BucketPlace(tmp_path / "heir", url=server.url, keys={**KEYS, **variables})
    left = heir.run(SAVING + KILLED_AT.replace("== 1", "== 9"))
    assert left.end == ("complete", ""), left.err
    assert [row["training_iteration"] for row in heir.rows(1)] == [5, 6, 7, 8, 9]
    assert left.last is not None
    assert left.last.resumed is not None
    assert (left.last.resumed.attempt, left.last.resumed.iteration) == (0, 4)
    assert left.last.metrics["loss"].max == 1.0
