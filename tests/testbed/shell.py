"""Commands that are run and waited for: bounded, and loud when they fail."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

TAIL = 3000  # characters of a failed command's output that its error repeats


class CommandFailed(RuntimeError):
    """Raised when a command ends with a code other than 0; what it said last is in the message."""

    def __init__(self, argv: tuple[str, ...], code: int, said: str) -> None:
        super().__init__(f"{' '.join(argv)}: exit code {code}\n{said[-TAIL:].strip()}")
        self.code = code
        self.said = said


def run(
    *argv: str | Path,
    timeout: float = 60,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end; its standard output.

    :raises CommandFailed: if its exit code is not 0.
    :raises subprocess.TimeoutExpired: if it takes longer than `timeout` seconds.
    """
    command = tuple(str(part) for part in argv)
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=env, check=False
    )
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, done.stdout + done.stderr)
    return done.stdout
