"""Live values over HTTPS: what is sent when, what comes back, and that nothing of it ever stops a trainer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_service import FakeService, Posted, Reply, fake_service
from trainers import SAVING, Place
from trialkeeper import contract, live, settings
from trialkeeper.contract import Message
from trialkeeper.live import Live
from trialkeeper.service import RETRY_AFTER_LIMIT, Service, retry_after


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    with fake_service(tmp_path) as running:
        yield running


class Sender:
    """A Live under test, with what it has received and said."""

    def __init__(self, service: FakeService, **how: Any) -> None:
        self.received: list[Any] = []
        self.said: dict[str, str] = {}
        self.news = threading.Event()
        ca = how.get("ca", str(service.ca))
        token_file = how.get("token_file", service.token_file)
        self.live = Live(Service(how.get("url", service.url), ca, token_file), self._receive, self._say)

    def _receive(self, value: Any) -> None:
        settings.parse(value)
        self.received.append(value)
        self.news.set()

    def _say(self, about: str, sentence: str) -> None:
        self.said.setdefault(about, sentence)
        self.news.set()


@pytest.fixture
def senders(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sender]]:
    monkeypatch.setattr(live, "INTERVAL", 0.2)
    monkeypatch.setattr(live, "PAUSE", 0.02)
    monkeypatch.setattr(live, "PAUSE_LIMIT", 0.1)
    made: list[Sender] = []

    def make(**how: Any) -> Sender:
        made.append(Sender(service, **how))
        return made[-1]

    yield make
    service.answer = lambda _: Reply()
    service.closing.set()
    for sender in made:
        sender.live.end(Message(), 5)
        if sender.live._thread is not None:
            sender.live._thread.join(10)


def iterations(posted: list[Posted]) -> list[int]:
    return [p.message.iteration for p in posted]


def test_the_first_goes_at_once_and_then_only_the_newest(service: FakeService, senders: Callable[..., Sender]) -> None:
    sender = senders()
    sender.live.tell(Message(iteration=1))
    service.until(lambda p: len(p) == 1)
    start = time.monotonic()
    for iteration in range(2, 500):
        sender.live.tell(Message(iteration=iteration))
    service.until(lambda p: iterations(p)[-1] == 499)
    assert time.monotonic() - start >= 0.1
    assert len(service.posted) < 50
    assert {(p.path, p.token) for p in service.posted} == {(contract.REPORT_PATH, "first-token")}
    assert service.connections == 1


def test_what_is_urgent_does_not_wait_for_its_turn(
    service: FakeService, senders: Callable[..., Sender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "INTERVAL", 3600.0)
    sender = senders()
    sender.live.tell(Message(iteration=1))
    service.until(lambda p: len(p) == 1)
    sender.live.tell(Message(iteration=2), urgent=True)
    service.until(lambda p: iterations(p) == [1, 2])
    sender.live.tell(Message(iteration=3))
    sender.live.end(Message(iteration=4, end="complete"), 10)
    assert iterations(service.posted) == [1, 2, 4]


def test_the_token_is_read_anew(service: FakeService, senders: Callable[..., Sender]) -> None:
    sender = senders()
    sender.live.tell(Message(iteration=1))
    service.until(lambda p: len(p) == 1)
    service.token_file.write_text("second-token")
    sender.live.tell(Message(iteration=2), urgent=True)
    service.until(lambda p: [q.token for q in p] == ["first-token", "second-token"])


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503, 302])
def test_what_is_refused_is_said_once_and_goes_again(
    status: int, service: FakeService, senders: Callable[..., Sender]
) -> None:
    sender = senders()
    service.answer = lambda _: Reply(status, headers={"Location": "https://127.0.0.1:1/"})
    sender.live.tell(Message(iteration=7))
    service.until(lambda p: len(p) == 4)
    service.answer = lambda _: Reply()
    service.until(lambda p: len(p) == 5)
    assert set(iterations(service.posted)) == {7}
    (sentence,) = sender.said.values()
    assert str(status) in sentence
    assert "training goes on" in sentence


def test_retry_after_is_honoured_when_it_is_too_much(service: FakeService, senders: Callable[..., Sender]) -> None:
    sender = senders()
    service.answer = lambda p: Reply(429, headers={"Retry-After": "1"}) if not service.posted else Reply()
    sender.live.tell(Message(iteration=1), urgent=True)
    service.until(lambda p: len(p) == 1)
    start = time.monotonic()
    sender.live.tell(Message(iteration=2), urgent=True)
    service.until(lambda p: iterations(p) == [1, 2])
    assert time.monotonic() - start >= 0.8
    assert sender.said == {}


@pytest.mark.parametrize(
    ("value", "seconds"), [("1.5", 1.5), ("-1", 0.0), ("nan", 0.0), ("1e99", RETRY_AFTER_LIMIT), ("x", 0.0), (None, 0)]
)
def test_retry_after_is_a_number_or_nothing(value: str | None, seconds: float) -> None:
    assert retry_after(value) == seconds


def test_the_end_waits_so_long_and_no_longer(service: FakeService, senders: Callable[..., Sender]) -> None:
    sender = senders()
    service.answer = lambda _: Reply(hang=True)
    start = time.monotonic()
    sender.live.end(Message(end="complete"), 0.3)
    assert 0.2 < time.monotonic() - start < 2
    start = time.monotonic()
    senders().live.end(Message(end="complete"), 0.0)
    assert time.monotonic() - start < 0.1


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"ca": ""}, "certificate verify failed"),
        ({"ca": "/no/such/file"}, "the certificates in /no/such/file cannot be used"),
        ({"ca": "-----BEGIN CERTIFICATE-----\nx"}, "the certificates in the variable cannot be used"),
        ({"token_file": Path("/no/such/file")}, "No such file"),
        ({"token_file": None}, "there is no token"),
        ({"url": "https://127.0.0.1:1"}, "refused"),
    ],
)
def test_what_cannot_be_reached_is_said_once(
    how: dict[str, Any], words: str, service: FakeService, senders: Callable[..., Sender]
) -> None:
    sender = senders(**how)
    sender.live.tell(Message(iteration=1))
    assert sender.news.wait(10)
    assert words in sender.said["live"]
    assert service.posted == []


def test_a_ca_may_be_given_as_text(service: FakeService, senders: Callable[..., Sender]) -> None:
    senders(ca=service.ca.read_text()).live.tell(Message(iteration=1))
    service.until(lambda p: len(p) == 1)


def test_a_connection_that_was_closed_meanwhile_is_opened_again(
    service: FakeService, senders: Callable[..., Sender]
) -> None:
    service.answer = lambda _: Reply(headers={"Connection": "close"})
    sender = senders()
    for iteration in (1, 2):
        sender.live.tell(Message(iteration=iteration), urgent=True)
        service.until(lambda p, i=iteration: iterations(p)[-1:] == [i])  # type: ignore[misc]
    assert sender.said == {}


@pytest.mark.parametrize(
    "answer",
    [
        b"{",
        b"[]",
        b"7",
        b'{"settings": []}',
        b'{"settings": {"stop": {"maxIterations": "many"}}}',
        b'{"settings": {"stop": {"maxIterations": true}}}',
        b'{"settings": {"stop": {"timeoutSeconds": -1}}}',
        b'{"settings": {"stop": {"metrics": {"loss": 1}}}}',
        b'{"settings": {"stop": {"metrics": {"loss": {"below": NaN}}}}}',
        b'{"settings": {"stop": {"plateau": {"results": 0}}}}',
        b'{"settings": {"stop": [1]}}',
        b'{"settings": {"objectives": {"a": 1}, "stop": {"plateau": {}}}}',
        b'{"settings": {"checkpoint": {"frequency": 1.5}}}',
        b'{"settings": {"checkpoint": {"atEnd": "yes"}}}',
        b'{"settings": {"mtbfSeconds": "often"}}',
        b"[" * 100_000,
        b'"' + b"x" * (1 << 19) + b'"',
    ],
)
def test_an_answer_that_makes_no_sense_is_ignored_and_said_once(
    answer: bytes, service: FakeService, senders: Callable[..., Sender]
) -> None:
    service.answer = lambda _: Reply(body=answer)
    sender = senders()
    for iteration in (1, 2):
        sender.live.tell(Message(iteration=iteration), urgent=True)
        service.until(lambda p, i=iteration: iterations(p)[-1:] == [i])  # type: ignore[misc]
    assert sender.news.wait(10)
    assert sender.received == []
    assert list(sender.said) == ["settings"]


def test_settings_of_an_answer_are_handed_over(service: FakeService, senders: Callable[..., Sender]) -> None:
    given = {"stop": {"maxIterations": 5}, "checkpoint": {"frequency": 2}}
    service.answer = lambda _: Reply.of({"settings": given})
    sender = senders()
    sender.live.tell(Message(iteration=1))
    assert sender.news.wait(10)
    assert sender.received == [given]


# Whole trainers.


class Told(Place):
    """A trainer that tells a service."""

    service: FakeService

    def env(self, attempt: int, pod: str | None = None) -> dict[str, str]:
        return super().env(attempt, pod) | self.service.variables


@pytest.fixture
def place(tmp_path: Path, service: FakeService) -> Told:
    made = Told(tmp_path)
    made.service = service
    return made


def test_a_trainer_tells_its_first_report_its_checkpoint_and_its_end(place: Told) -> None:
    left = place.run(SAVING + "for i in range(start, 50): trialkeeper.report({'loss': 1 / (i + 1)}, checkpoint=save)")
    assert (left.code, left.err) == (0, "")
    last = place.service.posted[-1].message
    assert (last.end, last.iteration, last.metrics["loss"].last) == ("complete", 50, 1 / 50)
    assert last.checkpoint is not None
    assert last.checkpoint.iteration == 50
    assert place.service.posted[0].message.end == "running"


def test_a_service_that_hangs_costs_a_trainer_two_seconds_at_its_end_and_nothing_before(place: Told) -> None:
    place.service.answer = lambda _: Reply(hang=True)
    left = place.run(
        "import time\nstart = time.monotonic()\n"
        "for i in range(1000): trialkeeper.report({'loss': 1.0})\nprint(time.monotonic() - start < 2)"
    )
    assert (left.code, left.out, left.err, left.end) == (0, "True\n", "", ("complete", ""))


def test_a_running_trainer_takes_the_settings_that_come_back(place: Told) -> None:
    place.settings["checkpoint"] = {"frequency": 0}
    place.service.answer = lambda _: Reply.of(
        {"settings": {"stop": {"metrics": {"loss": {"above": 3}}}, "checkpoint": {"frequency": 1, "onBusy": "Wait"}}}
    )
    left = place.run(
        "import time\nend, saved = time.monotonic() + 20, 0\n"
        "def save(folder):\n    global saved\n    saved += 1; (folder / 'w').write_text('x')\n"
        "while saved < 4 and time.monotonic() < end: trialkeeper.report({'loss': 2.0}, checkpoint=save)\n"
        "trialkeeper.report({'loss': 4.0}, checkpoint=save)\nprint('no')"
    )
    assert (left.code, left.out, left.end) == (0, "", ("complete", "MetricReached")), left.err
    assert len(place.manifests()) >= 4


def test_a_forked_worker_sends_nothing(place: Told) -> None:
    left = place.run(
        "trialkeeper.report({'loss': 1.0})\npid = os.fork()\nif pid == 0:\n    raise SystemExit(3)\n"
        "os.waitpid(pid, 0); trialkeeper.report({'loss': 1.0})"
    )
    assert (left.code, left.err) == (0, "")
    ends = [p.message.end for p in place.service.posted]
    assert ends.count("complete") == 1


def test_a_trainer_whose_values_are_not_accepted_trains_on(place: Told) -> None:
    place.service.answer = lambda _: Reply(403)
    left = place.run("for i in range(3): trialkeeper.report({'loss': 1.0})")
    assert left.end == ("complete", "")
    assert left.err == "trialkeeper: live values are not accepted (HTTP 403): training goes on\n"


def test_the_numbers_of_the_trainer_do_not_depend_on_the_service(place: Told) -> None:
    place.service.answer = lambda _: Reply(500)
    script = (
        "import random\nrandom.seed(1)\nfor i in range(3): trialkeeper.report({'loss': 1.0})\nprint(random.random())"
    )
    left = place.run(script)
    assert left.out == "0.13436424411240122\n"
