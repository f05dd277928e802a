"""Processes: started cheaply, awaited without polling, found again after their parent's death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trialkeeper import contract


def start(command: Sequence[str], *, env: Mapping[str, str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a command as the leader of a session of its own, its output appended to `log`.

    :raises OSError: if it cannot be started.
    """
    with log.open("ab", buffering=0) as output:
        return subprocess.Popen(
            command,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; its exit code as a shell has it, 128 + n for signal n."""
    if hasattr(os, "pidfd_open"):
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        descriptor = os.pidfd_open(process.pid)

        def readable() -> None:
            if not done.done():
                done.set_result(None)

        loop.add_reader(descriptor, readable)
        try:
            await done
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        code = process.wait()
    else:
        code = await asyncio.to_thread(process.wait)
    return code if code >= 0 else 128 - code


def end_group(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to everything in a session leader's process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def signal_process(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def of_pods(uids: Iterable[str]) -> dict[str, list[int]]:
    """Processes, and their descendants, that were started for these pods, by uid; by their environment."""
    wanted = {f"{contract.ENV_POD_UID}={uid}".encode(): uid for uid in uids}
    found: dict[str, list[int]] = {}
    if not wanted:
        return found
    for pid, variables in _environments():
        for variable in variables:
            uid = wanted.get(variable)
            if uid is not None:
                found.setdefault(uid, []).append(pid)
    return found


def _environments() -> Iterable[tuple[int, list[bytes]]]:
    """Every other process of ours with its environment; empty where the system does not tell."""
    if sys.platform == "darwin":
        listed = subprocess.run(["ps", "-Eww", "-axo", "pid=,command="], capture_output=True, check=False).stdout
        for line in listed.splitlines():
            pid, _, rest = line.strip().partition(b" ")
            if pid.isdigit() and int(pid) != os.getpid():
                yield int(pid), rest.split(b" ")
        return
    for entry in os.scandir("/proc") if os.path.isdir("/proc") else ():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                yield int(entry.name), Path(entry.path, "environ").read_bytes().split(b"\0")


def alive(pid: int) -> bool:
    """Whether a process is there and not just a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


async def end_all(pids: Sequence[int], grace: float) -> None:
    """End processes that are nobody's children here: SIGTERM, `grace` seconds, SIGKILL; returns when all are gone."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        deadline = asyncio.get_running_loop().time() + seconds
        while any(map(alive, pids)):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.02)  # a process that is not our child cannot be waited for
        else:
            return
