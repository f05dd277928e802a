"""The frameworks' own virtual environment: made once, in the cache, under a name that tells what is in it.

`python tests/frameworks/environment.py operator/locks/frameworks.txt` prints its interpreter.
"""

from __future__ import annotations

import sys
from pathlib import Path

from testbed.cache import digest, forget, once
from testbed.shell import run


def made(lock: Path) -> Path:
    """The interpreter of an environment with what is locked, and nothing of ours: that lies in the work tree."""

    def make(folder: Path) -> None:
        run(sys.executable, "-m", "venv", folder, timeout=300)
        install = ("-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-compile")
        run(folder / "bin" / "python", *install, "--require-hashes", "--no-deps", "-r", lock, timeout=3000)

    name = f"frameworks-{digest(lock.read_bytes(), sys.version)}"
    python = once(name, make) / "bin" / "python"
    forget("frameworks-*", keep=1)
    return python


if __name__ == "__main__":
    print(made(Path(sys.argv[1])))  # noqa: T201
