"""The programs of a cluster: started so that they outlive whoever started them, and found again by anybody.

What is known of each stands in a folder: its command as a JSON file, and its line of /proc, which has its number and
the moment it began. A number alone may be somebody else's by tomorrow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.cgroups import Tree, kill
from testbed.shell import run
from testbed.wait import until

# A cgroup first and a record second, both before the program is itself: there is no moment at which nobody knows it.
START = """
echo $$ > "$1/cgroup.procs" || exit 1
read -r stat < /proc/$$/stat
echo "$stat" > "$2.new" && mv "$2.new" "$2" || exit 1
log=$3
shift 3
exec "$@" < /dev/null >> "$log" 2>&1
"""
BEGAN = 19  # where a process's start time stands in its line, counted behind its name
DEAD = ("Z", "X")  # states of a process that has ended, and that its parent has not asked about


class Processes:
    """The programs of one cluster."""

    def __init__(self, folder: Path, tree: Tree) -> None:
        self.folder = folder / "processes"
        self.logs = folder / "logs"
        self.tree = tree

    def start(self, name: str, argv: Sequence[str | Path], *, group: str, env: Mapping[str, str] | None = None) -> None:
        """Start a program in a cgroup of the cluster, its output appended to its log."""
        for folder in (self.folder, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        command = {"argv": [str(part) for part in argv], "group": group, "env": dict(env or {})}
        (self.folder / f"{name}.json").write_text(json.dumps(command))
        self.restart(name)

    def restart(self, name: str) -> None:
        """End a program, if it runs, and start it again as it was started."""
        self.kill(name)
        command = json.loads((self.folder / f"{name}.json").read_text())
        record = self.folder / name
        record.unlink(missing_ok=True)
        group = self.tree.group(command["group"])
        assignments = [f"{key}={value}" for key, value in command["env"].items()]
        shell = ("sh", "-c", START, "sh", group, record, self.logs / f"{name}.log")
        run("setsid", "--fork", "env", *assignments, *shell, *command["argv"])
        until(f"{name} to start", record.exists, seconds=10)

    def pid(self, name: str) -> int | None:
        """A program's number, or None if it does not run."""
        try:
            number, began, _ = _identity((self.folder / name).read_text())
            now = _identity(Path(f"/proc/{number}/stat").read_text())
        except OSError:
            return None
        return number if now[:2] == (number, began) and now[2] not in DEAD else None

    def kill(self, name: str) -> None:
        """End a program by SIGKILL, and nothing that it started."""
        if pid := self.pid(name):
            kill(pid)

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a program's log."""
        try:
            text = (self.logs / f"{name}.log").read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def _identity(stat: str) -> tuple[int, str, str]:
    """(number, start time, state) from a process's line; its name is in brackets and may contain anything."""
    fields = stat.rsplit(")", 1)[1].split()
    return int(stat.split(None, 1)[0]), fields[BEGAN], fields[0]
