"""The trainer's end of its upload process: started when there is something to send, and again if it has died."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from trialkeeper.environment import Environment
from trialkeeper.saving import remove
from trialkeeper.upload import messages
from trialkeeper.upload.messages import Answer, Committed, Dropped, Failed, Fenced, Refused, Save

DEATHS = 2  # of upload processes in a row, after which what they had in hand is given up
# Not by -m, which looks for every module in the current folder first: a trainer's data may be called json.py.
BEGIN = "import sys; sys.path[:1] == [''] and sys.path.pop(0); import trialkeeper.upload.__main__"
REAP = 0.2  # seconds for a process that is over to be gone; one of the lowest priority may take longer
EAR = 0.2  # seconds in which the process, if it is well, has read what it is told


class Uploader:
    """Saves on their way. Not safe for threads: whoever calls holds the session's lock.

    `news` is called, in a thread of its own and without that lock, when there may be something to hear.
    """

    def __init__(self, env: Environment, news: Callable[[], None]) -> None:
        self._env, self._news = env, news
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: messages.Lines | None = None
        self._words: messages.Words | None = None
        self._number = 0
        self._deaths = 0
        self._hurried = False
        self.begun_at = 0.0  # (monotonic) when the save in hand was begun, or could have been
        self.outstanding: dict[int, Save] = {}  # in their order, the first one in hand
        self.failing: Failed | None = None  # what the save in hand has met, until it gets through

    def save(self, **described: Any) -> int:
        """Have a folder committed; arguments are those of `messages.Save` without its number, which is returned.

        :raises OSError: if the process cannot be started.
        """
        self._number += 1
        asked = Save(number=self._number, **described)
        if self._process is None:
            self._start()
        self._ask(messages.written(asked))
        if not self.outstanding:
            self.begun_at = time.monotonic()
        self.outstanding[self._number] = asked
        return self._number

    def sync(self) -> None:
        """Have the raw results sent.

        :raises OSError: if the process cannot be started.
        """
        if self._process is None:
            self._start()
        self._ask(b'{"is":"sync"}\n')

    def retry(self) -> None:
        """Have what has failed tried again at once; until that fails, too, nothing is known against it."""
        if self.failing is not None:
            self.failing = None
            self._ask(b'{"is":"retry"}\n')

    def hurry(self, seconds: float) -> None:
        """Say once that all must be done in so many seconds."""
        if not self._hurried and self._process is not None:
            self._hurried = True
            self._ask(b'{"is":"leaveBy","seconds":%f}\n' % seconds)

    def hear(self, timeout: float = 0.0) -> list[Answer]:
        """What the process has answered, after so many seconds at the latest."""
        answers = self._heard(timeout)
        if self._lines is not None and self._lines.ended:
            answers += self._died()
        return answers

    def _heard(self, timeout: float) -> list[Answer]:
        self._ask(b"")
        if self._lines is None or not self._lines.wait(timeout):
            return []
        answers = [messages.answer(line) for line in self._lines.read()]
        for heard in answers:
            self._note(heard)
        return answers

    def _note(self, heard: Answer) -> None:
        if isinstance(heard, Failed) and heard.again:
            self.failing = heard
            return
        if isinstance(heard, (Committed, Failed, Dropped, Refused)):
            if next(iter(self.outstanding), 0) == heard.number:
                self.begun_at, self.failing = time.monotonic(), None
            self.outstanding.pop(heard.number, None)
        if isinstance(heard, Committed):
            self._deaths = 0
        if isinstance(heard, Fenced):
            self.outstanding.clear()

    def _died(self) -> list[Answer]:
        """Start another process for what is not done, unless they die of it."""
        self._let_go()
        if not self.outstanding:
            return []
        self._deaths += 1
        text = "the upload process dies, again and again: has this pod enough memory?"
        if self._deaths <= DEATHS:
            try:
                self._start()
            except OSError as error:
                text = f"the upload process has died, and no other can be started: {error}"
            else:
                for asked in self.outstanding.values():
                    self._ask(messages.written(replace(asked, again=True)))
                return []
        self._deaths = 0
        given_up: list[Answer] = [Failed(number, "failed", text, False) for number in self.outstanding]
        for asked in self.outstanding.values():
            remove(Path(asked.folder))
        self.outstanding.clear()
        self.failing = None
        return given_up

    def give_up(self) -> None:
        """End the process and forget what it has in hand: there is no time for it."""
        if self._process is not None:
            self._process.kill()
            self._let_go()
        for save in self.outstanding.values():
            remove(Path(save.folder))
        self.outstanding.clear()
        self.failing = None

    def close(self, seconds: float) -> list[Answer]:
        """Let the process send the results and go; end it after so many seconds. What it still had to say."""
        if self._process is None or self._process.stdin is None:
            return []
        end, answers = time.monotonic() + seconds, list[Answer]()
        self._ask(b'{"is":"sync"}\n')
        self._process.stdin.close()
        self._words = None
        while self._lines is not None and not self._lines.ended and (left := end - time.monotonic()) > 0:
            answers += self._heard(left)
        self.give_up()
        return answers

    def forked(self) -> None:
        """In a forked child: the pipes are the parent's, and its death must be seen at their other end."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process.returncode = 0  # not this process's child
            self._process = self._words = self._lines = None

    # The process.

    def _ask(self, line: bytes) -> None:
        if self._words is not None:
            with contextlib.suppress(BrokenPipeError):  # it has died, which is heard as the end of its answers
                self._words.say(line, EAR if line else 0.0)

    def _start(self) -> None:
        """Start the process with this one's import path, and without what `site` would do once more.

        :raises OSError: if the system has no process left.
        """
        own = Path(__file__).parents[2]  # an editable install may be known to an import hook only
        known = [os.fsdecode(p) or os.getcwd() for p in sys.path if isinstance(p, (str, bytes, os.PathLike))]
        path = os.pathsep.join([*known, os.fspath(own)])
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", BEGIN, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._lines = messages.Lines(self._process.stdout.fileno())
        self._words = messages.Words(self._process.stdin.fileno())
        self._ask(messages.packed(self._env))
        self._listen(self._process, self._lines)

    def _listen(self, process: subprocess.Popen[bytes], lines: messages.Lines) -> None:
        """Have answers heard while the trainer is in a long step."""

        def wait() -> None:
            while self._process is process and lines.wait(None):
                if self._process is process:
                    self._news()

        with contextlib.suppress(RuntimeError):  # no new thread while the interpreter shuts down
            threading.Thread(target=wait, name="trialkeeper-uploads", daemon=True).start()

    def _let_go(self) -> None:
        process, self._process, self._lines, self._words = self._process, None, None, None
        self._hurried = False
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            process.wait(timeout=REAP)
        except subprocess.TimeoutExpired:
            process.returncode = -signal.SIGKILL  # it is dying, and nobody needs to see it
