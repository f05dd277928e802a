"""Processes: started cheaply, awaited without polling, found again after their parent's death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """Wait for a process, and end what it leaves behind in its group; its exit code as a shell has it, 128 + n for n.

    The group goes before the process is reaped: afterwards its number may be somebody else's.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def noticed() -> None:
        if not done.done():
            done.set_result(None)

    if hasattr(os, "pidfd_open"):
        descriptor = os.pidfd_open(process.pid)
        loop.add_reader(descriptor, noticed)
        try:
            await done
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        end_group(process.pid)
        code = process.wait()
    else:
        _tell_when_over(process, loop, noticed)
        await done
        code = process.wait()
        end_group(process.pid)
    return code if code >= 0 else 128 - code


def _tell_when_over(
    process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, noticed: Callable[[], None]
) -> None:
    """Where the system has no descriptor of a process, a thread waits for it: one each, since a pool may be full."""

    def wait() -> None:
        process.wait()
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(noticed)

    threading.Thread(target=wait, name=f"wait for {process.pid}", daemon=True).start()


def end_group(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to everything in a session leader's process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group at once, and take its exit code."""
    end_group(process.pid)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)


def signal_process(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes of which some may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def of_pods(uids: Iterable[str]) -> dict[str, list[int]]:
    """Processes, and their descendants, that were started for these pods, by uid; known by their environment."""
    wanted = frozenset(uids)
    found = _marked(f"{contract.ENV_POD_UID}=") if wanted else {}
    return {uid: pids for uid, pids in found.items() if uid in wanted}


def of_run(pods: Path) -> dict[str, list[int]]:
    """The same for every pod that has its scratch below this folder, by name."""
    found: dict[str, list[int]] = {}
    for rest, pids in _marked(f"{contract.ENV_SCRATCH}={pods}{os.sep}").items():
        found.setdefault(rest.split(os.sep)[0], []).extend(pids)
    return found


def _marked(mark: str) -> dict[str, list[int]]:
    """Other processes of ours with a variable that begins like this, by what follows."""
    start = os.fsencode(mark)
    found: dict[str, list[int]] = {}
    for pid, variables in _environments():
        for variable in variables:
            if variable.startswith(start):
                found.setdefault(os.fsdecode(variable[len(start) :]), []).append(pid)
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
        signal_all(pids, number)
        deadline = asyncio.get_running_loop().time() + seconds
        while any(map(alive, pids)):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.02)  # a process that is not our child cannot be waited for
        else:
            return
