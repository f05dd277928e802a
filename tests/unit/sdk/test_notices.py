"""Spot notices, of metadata services that stand in for the clouds'."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trainers import SAVING, Place
from trialkeeper import notices


@contextmanager
def metadata(answers: dict[str, tuple[int, str]]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A metadata service on loopback: (status, body) by path, 404 for all others; and the headers it saw."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            seen.append({"method": self.command, **{k.lower(): v for k, v in self.headers.items()}})
            status, body = answers.get(self.path, (404, ""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_PUT = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


NOW = 1_795_000_000.0


@pytest.mark.parametrize(
    ("cloud", "body", "left"),
    [
        ("aws", json.dumps({"action": "terminate", "time": at(NOW + 120).strftime("%Y-%m-%dT%H:%M:%SZ")}), 120.0),
        ("gcp", "FALSE", None),
        ("gcp", "TRUE", 15.0),
        ("azure", json.dumps({"Events": []}), None),
        ("azure", json.dumps({"Events": [{"EventType": "Reboot"}]}), None),
        ("azure", json.dumps({"Events": [{"EventType": "Preempt", "NotBefore": ""}]}), 30.0),
        (
            "azure",
            json.dumps(
                {"Events": [{"EventType": "Preempt", "NotBefore": at(NOW + 45).strftime("%a, %d %b %Y %H:%M:%S GMT")}]}
            ),
            45.0,
        ),
    ],
)
def test_a_cloud_says_how_much_is_left(cloud: str, body: str, left: float | None) -> None:
    with metadata({"/here": (200, body), "/latest/api/token": (200, "secret")}) as (url, seen):
        assert notices.ask(notices.CLOUDS[cloud]._replace(address=f"{url}/here"), NOW) == left
    for name, value in notices.CLOUDS[cloud].headers.items():
        assert seen[-1][name.lower()] == value
    if cloud == "aws":
        assert seen[-1]["x-aws-ec2-metadata-token"] == "secret"


def test_no_notice_is_not_found_and_anything_else_is_an_error() -> None:
    with metadata({"/latest/api/token": (200, "t"), "/odd": (200, "[]"), "/no": (500, "")}) as (url, _):
        aws = notices.CLOUDS["aws"]
        assert notices.ask(aws._replace(address=f"{url}/none"), NOW) is None
        with pytest.raises(OSError, match="500"):
            notices.ask(aws._replace(address=f"{url}/no"), NOW)
        with pytest.raises(ValueError, match="makes no sense"):
            notices.ask(aws._replace(address=f"{url}/odd"), NOW)


def test_a_trainer_trains_on_and_saves_before_the_node_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    place.settings["checkpoint"] = {"frequency": 0}
    soon = at(time.time() + 23).strftime("%Y-%m-%dT%H:%M:%SZ")
    answers = {"/n": (200, json.dumps({"action": "stop", "time": soon})), "/latest/api/token": (200, "t")}
    with metadata(answers) as (url, _):
        monkeypatch.setenv("TRIALKEEPER_SPOT_NOTICE", "aws")
        monkeypatch.setenv("TRIALKEEPER_SPOT_NOTICE_URL", f"{url}/n")
        left = place.run(
            SAVING + "import itertools, time\nfor i in itertools.count(start):\n"
            "    time.sleep(0.05)\n    going = trialkeeper.preemption()\n"
            "    if going: print(going.source, going.fits, 10 < going.deadline < 20)\n"
            "    trialkeeper.report({'loss': 1.0}, checkpoint=save)"
        )
    assert left.code == 143, left.err
    assert left.out == "spot notice True True\n"
    assert "takes this node back" in left.err
    assert len(place.rows()) > 5, "it was not at once"
    assert [int(m[-12:]) for m in place.manifests()] == [len(place.rows())]


def test_a_cloud_that_nobody_knows_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIALKEEPER_SPOT_NOTICE", "mars")
    left = Place(tmp_path).run("trialkeeper.report({'loss': 1})")
    assert "TRIALKEEPER_SPOT_NOTICE is 'mars': it is one of aws, gcp, azure" in left.err
