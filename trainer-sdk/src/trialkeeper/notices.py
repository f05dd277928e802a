"""Spot notices: a cloud's metadata service says ahead of time that it takes this node back. For those who ask for it.

Where nothing in the cluster turns such a notice into SIGTERM, a trial would lose what came after its newest save. A
notice is acted on as late as a save allows, since a pod that left at once could be started again on the same node.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import NamedTuple

from trialkeeper import session

POLL = 5.0  # seconds, as clouds ask for
TIMEOUT = 2.0
AHEAD = 20.0  # seconds before the deadline, at least, at which the trainer is asked to go


class Cloud(NamedTuple):
    """How a cloud is asked. `left` is what an answer says: seconds, or None for no notice. `key`: first to be got."""

    address: str
    headers: Mapping[str, str]
    left: Callable[[str, float], float | None]
    key: tuple[str, str, str, str] | None = None  # method, path, header to ask with, header to use it in


def _aws(answer: str, now: float) -> float | None:
    """`spot/instance-action`: {"action": "terminate", "time": "2026-11-24T08:22:00Z"}."""
    return datetime.fromisoformat(json.loads(answer)["time"].replace("Z", "+00:00")).timestamp() - now


def _gcp(answer: str, now: float) -> float | None:
    """`instance/preempted`: TRUE or FALSE. GKE gives pods half of the 30 s that a machine gets."""
    return 15.0 if answer.strip() == "TRUE" else None


def _azure(answer: str, now: float) -> float | None:
    """Scheduled events: one of type Preempt, 30 s ahead or more."""
    events = [event for event in json.loads(answer).get("Events", ()) if event.get("EventType") == "Preempt"]
    if not events:
        return None
    try:
        before = datetime.strptime(events[0].get("NotBefore", ""), "%a, %d %b %Y %H:%M:%S GMT")
    except ValueError:
        return 30.0
    return max(before.replace(tzinfo=timezone.utc).timestamp() - now, 0.0)


CLOUDS: Mapping[str, Cloud] = {
    "aws": Cloud(
        "http://169.254.169.254/latest/meta-data/spot/instance-action",
        {},
        _aws,
        ("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"),
    ),
    "gcp": Cloud(
        "http://metadata.google.internal/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}, _gcp
    ),
    "azure": Cloud(
        "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"}, _azure
    ),
}


def ask(cloud: Cloud, now: float) -> float | None:
    """Seconds that a cloud leaves to this machine, None if it has not said that it takes it back.

    :raises OSError: if it does not answer.
    :raises ValueError: if its answer makes no sense.
    """
    from urllib.error import HTTPError
    from urllib.parse import urlsplit
    from urllib.request import ProxyHandler, Request, build_opener

    direct = build_opener(ProxyHandler({}))
    headers = dict(cloud.headers)
    if cloud.key is not None:
        method, path, asked_by, used_in = cloud.key
        place = urlsplit(cloud.address)._replace(path=path, query="").geturl()
        with direct.open(Request(place, method=method, headers={asked_by: "60"}), timeout=TIMEOUT) as answer:
            headers[used_in] = answer.read(4096).decode()
    try:
        with direct.open(Request(cloud.address, headers=headers), timeout=TIMEOUT) as answer:
            said = answer.read(1 << 16).decode()
    except HTTPError as none:
        if none.code == 404:
            return None
        raise
    try:
        return cloud.left(said, now)
    except (KeyError, TypeError, AttributeError) as odd:
        raise ValueError(f"its answer makes no sense: {said[:80]!r}") from odd


def listen(current: session.Session, cloud: Cloud) -> None:
    """Ask in a thread, and tell the session when it is time to save and go."""

    def run() -> None:
        while not current.signalled:
            try:
                left = ask(cloud, time.time())
            except (OSError, ValueError) as error:
                current.warn_once("notices", f"spot notices are asked for and cannot be had: {error}")
                left = None
            if left is None:
                time.sleep(POLL)
                continue
            by = time.monotonic() + left
            session.warn(f"the cloud takes this node back in {left:.0f} s")
            while not current.signalled:
                now = time.monotonic()
                if now >= by - max(AHEAD, current.needs()):
                    current.asked(by - now - session.LAST_WORDS, "spot notice")
                    return
                time.sleep(0.2)

    threading.Thread(target=run, name="trialkeeper-notices", daemon=True).start()
