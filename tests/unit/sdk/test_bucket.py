"""A bucket that misbehaves: what is tried again, what is refused, and what is never taken for an empty store."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from fake_s3 import BUCKET, Fake, Fault, Request, fake_s3
from manifests import entry
from minio_server import KEYS
from stores import environment_of, opened
from trialkeeper.errors import CheckpointCorrupt
from trialkeeper.store import AlreadyThere, Missing, Unreachable, keys, s3, wire
from trialkeeper.store.address import bucket_of
from trialkeeper.store.opening import open_store
from trialkeeper.store.s3 import S3Store

WHERE = rf"the bucket {BUCKET} at http://127.0.0.1:\d+ "


@pytest.fixture(params=[True, False], ids=["honest", "ignores conditions"])
def server(request: pytest.FixtureRequest) -> Iterator[Fake]:
    with fake_s3(honest=request.param) as running:
        yield running


def times(number: int, fault: Fault, method: str, key: str = "") -> Callable[[Request], Fault | None]:
    """The fault for the first so many requests of a method to keys with this in them."""
    left = [number]

    def decide(request: Request) -> Fault | None:
        if request.method != method or key not in request.key or left[0] == 0:
            return None
        left[0] -= 1
        return fault

    return decide


BUSY = Fault(503, b"<Error><Code>SlowDown</Code></Error>", {"Retry-After": "60"})
DENIED = Fault(403, b"<Error><Code>AccessDenied</Code><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>")
LOST = Fault(carried_out=True)


@pytest.fixture
def impatient(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silence is soon too long."""
    monkeypatch.setattr(wire, "PATIENCE", 1.0)
    monkeypatch.setattr(wire, "SHORT", 0.2)
    store._wire._read = 0.2


def test_a_busy_store_is_asked_again_and_a_long_retry_after_is_not_obeyed(server: Fake, store: S3Store) -> None:
    server.fault = times(2, BUSY, "PUT", "/a")
    start = time.monotonic()
    store.put_new("a", b"1")
    assert time.monotonic() - start < 10
    assert store.get("a") == b"1"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (BUSY, r"answers with SlowDown \(HTTP 503\)"),
        (Fault(500, b"<html>"), r"answers with no S3 code \(HTTP 500\)"),
        (DENIED, r"answers with AccessDenied \(HTTP 403\): may this pod read"),
        (Fault(301, b"", {"Location": "http://192.0.2.1/"}), r"answers with no S3 code \(HTTP 301\)"),
        (
            Fault(404, b"<Error><Code>NoSuchBucket</Code></Error>"),
            r"answers with NoSuchBucket \(HTTP 404\): it must be",
        ),
        (Fault(hang=True), "does not answer in time"),
        (Fault(), "breaks off the connection"),
    ],
)
def test_what_stays_wrong_is_an_os_error_of_one_sentence(
    fault: Fault, words: str, server: Fake, store: S3Store, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "w").write_text("w")
    server.fault = lambda _: fault
    calls: list[Callable[[], object]] = [
        lambda: store.get("a"),
        lambda: store.list(""),
        lambda: store.fetch("data/a", [entry(key="data/a/w")]),
        lambda: store.put_new("a", b""),
        lambda: store.delete("a"),
        lambda: store.keep(tmp_path / "made", "data/a", ()),
        lambda: [*store.lines("a")],
    ]
    start = time.monotonic()
    for call in calls:
        with pytest.raises(OSError, match=WHERE + words) as refused:
            call()
        assert "AKIA" not in str(refused.value)
        assert "\n" not in str(refused.value)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html></html>",
        b"<ListBucketResult><Contents><Key>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"\xff\xfe",
        b"{}",
    ],
)
def test_an_answer_that_is_no_list_is_not_an_empty_store(answer: bytes, server: Fake, store: S3Store) -> None:
    server.fault = times(99, Fault(200, answer), "GET")
    with pytest.raises(OSError, match=WHERE + "(answers with something else than a list|does not say how)"):
        store.list("attempts/")


@pytest.mark.usefixtures("impatient")
def test_a_store_that_does_not_answer_gets_one_short_try_until_it_does(server: Fake, store: S3Store) -> None:
    server.fault = lambda _: Fault(hang=True)
    for _ in range(3):
        with pytest.raises(Unreachable):
            store.get("a")
    tries = server.count("GET")
    assert tries <= wire.TRIES + 2
    server.fault = lambda _: None
    store._wire._read = wire.READ
    with pytest.raises(Missing):
        store.get("a")
    server.fault = times(1, BUSY, "GET")
    with pytest.raises(Missing):
        store.get("a")


def test_who_is_asked_to_go_does_not_wait_beyond_its_grace(server: Fake, tmp_path: Path) -> None:
    server.fault = lambda _: Fault(hang=True)
    start = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        store = open_store(environment_of(server.url, tmp_path), lambda: start + 0.5)
        for _ in range(5):
            with pytest.raises(Unreachable):
                store.get("a")
        assert isinstance(store, S3Store)
        store.close()
    assert time.monotonic() - start < 5


def test_an_object_that_breaks_off_is_asked_for_again(server: Fake, store: S3Store) -> None:
    store.put_new("a", b"x" * 1000)
    server.fault = times(2, Fault(bytes_before_reset=100), "GET")
    assert store.get("a") == b"x" * 1000


@pytest.mark.parametrize("size", [1000, 40 << 20])
def test_a_folder_that_stays_broken_leaves_no_half_of_it(
    size: int, server: Fake, store: S3Store, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "w").write_bytes(b"w" * size)
    (made / "v").write_bytes(b"v")
    files = store.keep(made, "data/a", ())
    server.fault = times(999, Fault(bytes_before_reset=100), "GET", "data/a/")
    with pytest.raises(CheckpointCorrupt, match="breaks off in the middle of"):
        store.fetch("data/a", files)
    assert [p.name for p in (tmp_path / "scratch").rglob("*") if p.is_file()] == ["a.lock"]
    server.fault = times(1, Fault(bytes_before_reset=100), "GET", "data/a/")
    assert (store.fetch("data/a", files) / "w").read_bytes() == b"w" * size


def test_a_file_that_vanishes_while_its_folder_is_fetched_says_nothing_about_the_store(
    server: Fake, store: S3Store, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "w").write_bytes(b"w")
    files = store.keep(made, "data/a", ())
    gone = Fault(404, b"<Error><Code>NoSuchKey</Code></Error>")
    server.fault = lambda r: gone if r.key.endswith("/w") else None
    with pytest.raises(Missing, match="data/a/w"):
        store.fetch("data/a", files)


@pytest.mark.usefixtures("impatient")
def test_a_store_that_was_silent_gets_a_long_try_again(
    server: Fake, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SILENT", 0.3)
    server.fault = lambda _: Fault(hang=True)
    tries: list[int] = []
    end = time.monotonic() + 20
    while len(tries) < 3 or tries[-1] < 2:
        assert time.monotonic() < end
        before = server.count("GET")
        with pytest.raises(Unreachable):
            store.get("a")
        tries.append(server.count("GET") - before)
    assert tries[0] > 1
    assert 1 in tries


def test_an_answer_that_was_lost_is_not_taken_for_a_rival(server: Fake, store: S3Store) -> None:
    store.put_new("first", b"")
    server.fault = times(1, LOST, "PUT", "/a")
    store.put_new("a", b"mine")
    assert store.get("a") == b"mine"
    with pytest.raises(AlreadyThere):
        store.put_new("a", b"mine")


def test_an_answer_that_was_lost_is_not_taken_for_a_rivals_because_a_byte_is_wrong(
    server: Fake, store: S3Store
) -> None:
    store.put_new("first", b"")
    lost = times(1, LOST, "PUT", "/a")
    server.fault = lambda r: lost(r) if r.method == "PUT" else Fault(wrong=True)
    store.put_new("a", b"mine")
    server.fault = lambda _: None
    assert store.get("a") == b"mine"


def test_a_rival_is_not_taken_for_an_answer_that_was_lost(server: Fake, store: S3Store) -> None:
    store.put_new("first", b"")
    full = "space/exp-1/00000/a"

    def rival(request: Request) -> Fault | None:
        if request.method != "PUT" or request.key != full:
            return None
        server.objects[full] = b"mine", {"x-amz-meta-trialkeeper-write": "another"}
        server.fault = lambda _: None
        return Fault()

    server.fault = rival
    if not server.honest:
        store.put_new("a", b"mine")  # it came between the look and the write, and nobody can know
        return
    with pytest.raises(AlreadyThere):
        store.put_new("a", b"mine")
    assert server.objects[full][1] == {"x-amz-meta-trialkeeper-write": "another"}


def test_a_conflict_is_tried_again(server: Fake, store: S3Store) -> None:
    server.fault = times(2, Fault(409, b"<Error><Code>ConditionalRequestConflict</Code></Error>"), "PUT")
    store.put_new("a", b"1")
    assert store.get("a") == b"1"


def test_whether_conditions_are_honoured_is_tried_once_and_leaves_nothing(server: Fake, store: S3Store) -> None:
    for number in range(3):
        store.put_new(f"a{number}", b"1")
    assert server.count("PUT", "probes/") == 2
    assert store.list("") == ["a0", "a1", "a2"]
    assert s3._honest[bucket_of(server.url).base] is server.honest


def test_a_large_file_goes_in_parts_and_a_lost_answer_to_the_last_word_does_not_matter(
    server: Fake, store: S3Store, tmp_path: Path
) -> None:
    made, content = tmp_path / "made", os.urandom(1 << 20) * 40
    made.mkdir()
    (made / "w").write_bytes(content)
    seen: list[Request] = []

    def lose(request: Request) -> Fault | None:
        if request.method == "POST" and "uploadId" in request.query and not seen:
            seen.append(request)
            return LOST
        return None

    server.fault = lose
    files = store.keep(made, "data/a", ())
    assert made.exists(), "for its owner to remove"
    assert (store.fetch("data/a", files) / "w").read_bytes() == content
    assert sum("partNumber" in r.query for r in server.requests) == 3


def test_parts_that_cannot_be_sent_are_given_up(server: Fake, store: S3Store, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "w").write_bytes(bytes(40 << 20))
    server.fault = lambda r: DENIED if "partNumber" in r.query else None
    with pytest.raises(OSError, match="AccessDenied"):
        store.keep(made, "data/a", ())
    assert server.uploads == {}
    assert server.objects == {}


def test_parts_that_are_not_put_together_are_no_file(server: Fake, store: S3Store, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "w").write_bytes(bytes(20 << 20))
    late = Fault(200, b"   <Error><Code>InternalError</Code></Error>")
    server.fault = lambda r: late if r.method == "POST" and "uploadId" in r.query else None
    with pytest.raises(OSError, match=r"does not put the parts of .* together"):
        store.keep(made, "data/a", ())


def test_nothing_secret_is_written_to_a_log(
    server: Fake, store: S3Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session")
    caplog.set_level(logging.DEBUG)
    server.fault = times(1, BUSY, "PUT")
    store.put_new("a", b"1")
    store.list("")
    assert server.requests[-1].headers["x-amz-security-token"] == "a-session"
    for secret in (*KEYS.values(), "a-session", "Signature"):
        assert secret not in caplog.text


def test_without_keys_one_sentence_says_what_to_do_and_nobody_is_asked(
    server: Fake, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*KEYS, *keys.IDENTITY):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Unreachable, match=r"there are no keys for .*: give the pod's service account a workload"):
        store.list("")
    assert server.requests == []


def test_a_container_identity_gives_keys_and_is_asked_again_when_they_are_stale(
    server: Fake, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    with fake_s3() as agent:
        body = b'{"AccessKeyId":"a","SecretAccessKey":"b","Token":"from-the-agent","Expiration":"2099-01-01T00:00:00Z"}'
        agent_asked = []

        def answer(request: Request) -> Fault:
            agent_asked.append(request)
            return Fault(200, body)

        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.endpoint}/{BUCKET}/keys")
        agent.fault = answer
        # The agent's server wants a signature, which an agent does not.
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS4-HMAC-SHA256 Credential=x")
        assert store.list("") == []
        assert store.list("") == []
        assert len(agent_asked) == 1
        server.fault = times(1, Fault(400, b"<Error><Code>ExpiredToken</Code></Error>"), "GET")
        assert store.list("") == []
        assert len(agent_asked) == 2
        agent.fault = lambda _: Fault(500)
        server.fault = times(1, Fault(400, b"<Error><Code>ExpiredToken</Code></Error>"), "GET")
        with pytest.raises(Unreachable, match="the workload identity gives no keys for"):
            store.list("")


def test_a_forked_child_has_connections_of_its_own(server: Fake, store: S3Store) -> None:
    store.put_new("a", b"1" * 5000)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, b"".join(store.get("a")[:1] for _ in range(50)))
        finally:
            os._exit(0)
    for _ in range(50):
        assert len(store.get("a")) == 5000
    os.waitpid(child, 0)
    os.close(write)
    assert os.read(read, 100) == b"1" * 50
    os.close(read)


def test_a_certificate_is_checked_against_the_authority_that_was_given(tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    made = tmp_path / "made"
    made.mkdir()
    (made / "w").write_bytes(bytes(20 << 20))
    with fake_s3(tls=context) as server:
        for given in (str(tmp_path / "ca.pem"), (tmp_path / "ca.pem").read_text()):
            with opened(server.url, tmp_path, TRIALKEEPER_STORE_CA=given) as store:
                store.put_new(f"a{len(given)}", b"1")
        with opened(server.url, tmp_path, TRIALKEEPER_STORE_CA=given) as store:
            files = store.keep(made, "data/a", ())
            assert (store.fetch("data/a", files) / "w").stat().st_size == 20 << 20
        asked = len(server.requests)
        with opened(server.url, tmp_path) as store, pytest.raises(Unreachable, match="cannot be trusted: "):
            store.list("")
        unusable = pytest.raises(OSError, match="the certificates in /no/such/file cannot be used")
        with opened(server.url, tmp_path, TRIALKEEPER_STORE_CA="/no/such/file") as store, unusable:
            store.list("")
        assert len(server.requests) == asked


@pytest.mark.parametrize(("access", "used"), [("key\n", "key"), ("k\u00e9y", None), ("k\ney", None), ("  ", None)])
def test_keys_are_taken_without_their_lines_end_and_never_end_a_trainer(
    access: str, used: str | None, server: Fake, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access)
    if used is None:
        with pytest.raises(Unreachable, match="there are no keys for"):
            store.list("")
        return
    store.list("")
    assert f"Credential={used}/" in server.requests[-1].headers["authorization"]


def test_lines_that_could_not_be_sent_go_first_the_next_time(server: Fake, store: S3Store) -> None:
    lines = store.append("results/a.jsonl")
    lines.write(b"1\n")
    server.fault = lambda _: DENIED
    with pytest.raises(OSError, match="AccessDenied"):
        lines.sync()
    lines.write(b"2\n")
    with pytest.raises(OSError, match="AccessDenied"):
        lines.sync()
    server.fault = lambda _: None
    lines.write(b"3\n")
    lines.sync()
    assert [*store.lines("results/a.jsonl")] == [b"3\n", b"2\n", b"1\n"]


def test_a_pod_that_comes_again_sends_what_it_had_not_sent_and_nothing_twice(
    server: Fake, store: S3Store, tmp_path: Path
) -> None:
    lines = store.append("results/a.jsonl")
    lines.write(b"1\n")
    lines.sync()
    lines.write(b"2\n")
    unsent = next(p for p in (tmp_path / "scratch" / "unsent").rglob("*") if p.is_file())
    kept = unsent.read_bytes()
    with opened(server.url, tmp_path) as later:
        again = later.append("results/a.jsonl")
        again.write(b"3\n")
        again.sync()
        assert [*later.lines("results/a.jsonl")] == [b"3\n", b"2\n", b"1\n"]
    # The process died after its line was there and before it had noted that.
    server.objects.pop(max(server.objects))
    unsent.write_bytes(kept)
    with opened(server.url, tmp_path) as later:
        again = later.append("results/a.jsonl")
        again.write(b"4\n")
        again.sync()
        assert [*later.lines("results/a.jsonl")] == [b"4\n", b"2\n", b"1\n"]


def test_of_many_processes_of_a_pod_one_fetches_and_the_others_wait(
    server: Fake, store: S3Store, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "w").write_text("w")
    files = store.keep(made, "data/a", ())
    found = []
    server.fault = lambda r: time.sleep(0.3) if r.method == "GET" else None
    with opened(server.url, tmp_path) as other:
        second = threading.Thread(target=lambda: found.append(other.fetch("data/a", files)))
        second.start()
        found.append(store.fetch("data/a", files))
        second.join()
    assert found[0] == found[1]
    assert (found[0] / "w").read_text() == "w"
    assert server.count("GET", "/w") == 1


@pytest.mark.parametrize("name", ["a\nb", "a\udce9", "/".join(["\u00e4" * 120] * 5)])
def test_a_name_that_no_bucket_holds_is_the_trainers_error(name: str, store: S3Store, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (made / name).parent.mkdir(parents=True)
    (made / name).write_text("")
    with pytest.raises(ValueError, match="a bucket cannot hold a file called"):
        store.keep(made, "data/a", ())
