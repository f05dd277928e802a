"""Live values over HTTPS: a background thread sends the newest message, and whoever reports never waits for it.

There is a slot, not a queue: what was not sent when something newer comes is not sent at all. Nothing is lost
without any of this, so a failure is retried later and said once at most.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from trialkeeper import contract
from trialkeeper.contract import Message
from trialkeeper.service import Answer, Service

INTERVAL = 5.0  # seconds between two messages that are not urgent
TIMEOUT = 5.0  # seconds for each wait for the service
PAUSE, PAUSE_LIMIT = 1.0, 60.0  # seconds after a failure, doubled each time, and at most


class Live:
    """Sends messages of one process. `received` gets the settings of an answer, in the background thread."""

    def __init__(
        self, service: Service, received: Callable[[Mapping[str, Any]], None], warn_once: Callable[[str, str], None]
    ) -> None:
        self._service, self._received, self._warn_once = service, received, warn_once
        self._process = os.getpid()
        self._random = random.Random()  # of its own: the trainer's numbers must not depend on failures here
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._slot: Message | None = None
        self._urgent = False
        self._last_until: float | None = None  # when the last message must be out, once there is one
        self._done = threading.Event()
        self._failures = 0
        self._sent_at, self._not_before = float("-inf"), float("-inf")

    def tell(self, message: Message, *, urgent: bool = False) -> None:
        """Have a message sent in its time, at once if it is urgent and the service is well."""
        if os.getpid() != self._process:
            return  # the thread is the parent's
        with self._news:
            self._slot, self._urgent = message, self._urgent or urgent
            self._news.notify()
        self._start()

    def end(self, message: Message, seconds: float) -> None:
        """Try once to send the last message; returns after so many seconds at the latest."""
        if os.getpid() != self._process or seconds <= 0:
            return
        with self._news:
            self._slot, self._last_until = message, time.monotonic() + seconds
            self._news.notify()
        if self._start():
            self._done.wait(seconds)
        else:
            self._post(message, seconds)

    def _start(self) -> bool:
        """Whether the thread is there; a new one cannot be had while the interpreter shuts down."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="trialkeeper-live", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while not self._done.is_set():
            message, last_until = self._next()
            timeout = TIMEOUT if last_until is None else max(last_until - time.monotonic(), 0.05)
            sent = self._post(message, min(timeout, TIMEOUT))
            if last_until is not None:
                self._done.set()
            elif not sent:
                self._keep(message)
        self._service.close()

    def _next(self) -> tuple[Message, float | None]:
        """Wait for a message whose time has come."""
        with self._news:
            while True:
                wait = self._wait()
                if self._slot is not None and wait is not None and wait <= 0:
                    message, self._slot, self._urgent = self._slot, None, False
                    return message, self._last_until
                self._news.wait(wait)

    def _wait(self) -> float | None:
        """Seconds until what is in the slot may be sent, None for as long as nothing is."""
        if self._slot is None:
            return None
        if self._last_until is not None:
            return 0.0
        earliest = self._not_before if self._urgent else max(self._not_before, self._sent_at + INTERVAL)
        return earliest - time.monotonic()

    def _keep(self, message: Message) -> None:
        """What was not sent goes again, unless something newer is there."""
        with self._news:
            if self._slot is None:
                self._slot = message
            self._urgent = True  # the failure's pause is enough of a wait

    def _post(self, message: Message, timeout: float) -> bool:
        try:
            answer = self._service.post(contract.REPORT_PATH, message.encode().encode(), timeout)
        except Exception as error:  # nothing that goes wrong here may end the thread
            self._pause(0.0)
            self._warn_once("live", f"live values cannot be sent ({error}): training goes on, nothing is lost")
            return False
        if 200 <= answer.status < 300:
            self._failures, self._sent_at = 0, time.monotonic()
            self._take_in(answer)
            return True
        if answer.status in (401, 403):
            self._warn_once("live refused", f"live values are not accepted (HTTP {answer.status}): training goes on")
        elif answer.status != 429:
            self._warn_once("live", f"live values are answered with HTTP {answer.status}: training goes on")
        self._pause(answer.retry_after)
        return False

    def _pause(self, asked: float) -> None:
        self._failures += 1
        longest = min(PAUSE_LIMIT, PAUSE * 2 ** min(self._failures, 10))
        own = max(PAUSE, longest * self._random.uniform(0.5, 1.0))
        self._not_before = time.monotonic() + max(own, asked)

    def _take_in(self, answer: Answer) -> None:
        """Hand over the settings that an answer brings, if it brings any."""
        if not answer.body.strip():
            return
        try:
            value = json.loads(answer.body)
            found = value.get("settings")
            if found is not None:
                self._received(found)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError) as broken:
            words = f"{type(broken).__name__}: {broken}"[:200]
            self._warn_once("settings", f"an answer of the report service is ignored, it makes no sense ({words})")
