"""What kubectl says of a cluster, with whatever way to log in it knows; and a way through it to a port in there."""

from __future__ import annotations

import atexit
import json
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

SECONDS = 30.0  # that an answer may take
COME_UP = 20.0  # seconds until a port is forwarded
AGAIN = 1.0  # seconds before a forwarding that ended is begun again

Object = dict[str, Any]

_KLOG = re.compile(r"[EWIF]\d{4} ")  # how a line of kubectl's log begins; what it says of it follows
_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")
# kubectl must not outlive us, however we end: it ends with the pipe that is its shell's input.
_TIED = 'exec 3<&0; "$@" </dev/null & p=$!; (cat <&3 >/dev/null; kill $p) >/dev/null 2>&1 & wait $p'


class NoKubectl(OSError):
    """Raised when there is no kubectl on this machine."""


class Refusal(OSError):
    """Raised when kubectl does not do it; the message is what it says."""

    @property
    def forbidden(self) -> bool:
        """Whether rights are missing."""
        return "(Forbidden)" in str(self) or "forbidden:" in str(self)

    @property
    def missing(self) -> bool:
        """Whether there is no such object."""
        return "(NotFound)" in str(self)

    @property
    def conflict(self) -> bool:
        """Whether somebody else has changed the object meanwhile."""
        return "(Conflict)" in str(self) or "has been modified" in str(self)


def _program() -> str:
    found = shutil.which("kubectl")
    if found is None:
        raise NoKubectl("there is no kubectl to look into a cluster with")
    return found


def get(kind: str, name: str = "", namespace: str | None = None, *more: str) -> Object:
    """An object, or without a name a list of them.

    :raises NoKubectl: if there is none here.
    :raises Refusal: if there is no such object, no right to it, or no answer.
    """
    return _answer("get", kind, namespace, *more, *(["--", name] if name else []))


def find(kind: str, name: str, namespace: str | None) -> Object | None:
    """An object, None if there is no such object.

    :raises NoKubectl: if there is none here.
    :raises Refusal: if there is no right to it, or no answer.
    """
    try:
        return get(kind, name, namespace)
    except Refusal as refusal:
        if refusal.missing:
            return None
        raise


def patch(kind: str, name: str, namespace: str, change: Object) -> Object:
    """Change some fields of an object (RFC 7386), with metadata.resourceVersion only if it is still that one; as it is.

    :raises NoKubectl: if there is none here.
    :raises Refusal: if there is no such object, no right to change it, or the change is refused.
    """
    return _answer("patch", kind, namespace, "--type=merge", f"--patch={json.dumps(change)}", "--", name)


def create(obj: Object, namespace: str | None) -> Object:
    """Make an object; as it is then.

    :raises NoKubectl: if there is none here.
    :raises Refusal: if there is one of that name, no right to make one, or it is refused.
    """
    return _object(["create", "--filename=-", "-o", "json", *_where(namespace)], stdin=json.dumps(obj))


def delete(kind: str, name: str, namespace: str | None, *more: str) -> None:
    """Delete an object, and do not wait until it is gone.

    :raises NoKubectl: if there is none here.
    :raises Refusal: if there is no such object, or no right to delete it.
    """
    _said(["delete", kind, "--wait=false", *_where(namespace), *more, "--", name])


def _where(namespace: str | None) -> list[str]:
    return [] if namespace is None else [f"--namespace={namespace}"]


def _answer(verb: str, kind: str, namespace: str | None, *more: str) -> Object:
    return _object([verb, kind, "-o", "json", *_where(namespace), *more])


def _object(arguments: list[str], stdin: str | None = None) -> Object:
    try:
        found = json.loads(_said(arguments, stdin))
    except ValueError as broken:
        raise Refusal(f"kubectl did not answer with an object: {broken}") from broken
    if not isinstance(found, dict):
        raise Refusal("kubectl did not answer with an object")
    return found


def _said(arguments: list[str], stdin: str | None = None) -> str:
    command = [_program(), *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Refusal(f"kubectl has not answered within {SECONDS:g} s") from None
    if done.returncode != 0:
        raise Refusal(_words(done.stderr) or f"kubectl ended with code {done.returncode}")
    return done.stdout


def _words(said: str) -> str:
    """What kubectl says to people, without its log."""
    return "\n".join(line for line in said.splitlines() if not _KLOG.match(line)).strip()[:500]


class Forward:
    """A port of loopback that leads to one in a cluster until `close`; begun again whenever kubectl gives up."""

    def __init__(self, namespace: str, target: str, port: int) -> None:
        """:raises Refusal: if it cannot be had."""
        self._command = [_program(), "port-forward", f"--namespace={namespace}", "--address=127.0.0.1", target]
        self._far, self._closed = port, threading.Event()
        self._process: subprocess.Popen[str] | None = None
        ready: queue.Queue[int | str] = queue.Queue()
        self._thread = threading.Thread(target=self._keep, args=(ready,), name="port-forward", daemon=True)
        self._thread.start()
        try:
            said = ready.get(timeout=COME_UP)
        except queue.Empty:
            said = f"kubectl has not forwarded a port within {COME_UP:g} s"
        if isinstance(said, str):
            self.close()
            raise Refusal(said)
        self.port = said
        atexit.register(self.close)

    def close(self) -> None:
        """End it."""
        self._closed.set()
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
        self._thread.join(5)
        atexit.unregister(self.close)

    def _keep(self, ready: queue.Queue[int | str]) -> None:
        local = 0
        while not self._closed.is_set():
            port = f"{local or ''}:{self._far}"
            with _tied([*self._command, port]) as process:
                self._process = process
                if self._closed.is_set():
                    return
                assert process.stdout is not None
                said: list[str] = []
                for line in process.stdout:
                    match = _FORWARDING.search(line)
                    if match and not local:
                        local = int(match[1])
                        ready.put(local)
                    said[:] = [*said[-9:], line]
                process.wait()
            if not local:
                ready.put(_words("".join(said)) or "kubectl forwards no port")
                return
            self._closed.wait(AGAIN)


def _tied(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", "-c", _TIED, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
