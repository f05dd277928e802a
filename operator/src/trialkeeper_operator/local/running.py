"""One pod that is ours: what is known of it, and how its process is started. It does not know when, or why."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trialkeeper_operator.api import names
from trialkeeper_operator.local import environment, process
from trialkeeper_operator.local.environment import CannotStart
from trialkeeper_operator.local.place import Place
from trialkeeper_operator.reconcile.ports import Object

# What the machine lacks at the moment and no other command would change.
_NO_ROOM = frozenset(
    {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
)


class NoRoom(OSError):
    """Raised when this machine cannot start a process now, whatever the command."""


@dataclass
class Running:
    """One pod while it is ours. `orders`: grace in seconds until SIGKILL, 0 at once."""

    pod: Object
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    orders: asyncio.Queue[float] = field(default_factory=asyncio.Queue)
    deadline_passed: bool = False
    vanished: bool = False  # its object is removed by whoever kills it
    report_seen: int = 0

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.pod["metadata"]["namespace"])

    @property
    def container(self) -> Mapping[str, Any]:
        """The container that is run here."""
        annotations = self.pod["metadata"].get("annotations") or {}
        return environment.trainer(self.pod, annotations.get(names.ANNOTATION_TRAINER))


def start(running: Running, place: Place, visible: str | None) -> subprocess.Popen[bytes]:
    """Start a pod's trainer; `visible` are the GPUs it has been lent.

    :raises CannotStart: if its command cannot be started on this machine.
    :raises NoRoom: if nothing can be started at the moment.
    """
    container = running.container
    try:
        own = environment.variables(container, running.pod, place.shell)
        command = environment.command(container, own)
        folder = environment.folder(container, place.base)
        env = {k: v for k, v in place.shell.items() if not k.startswith("TRIALKEEPER_")}
        env |= own | place.prepare(running.name)
        env["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), env.get("PATH", os.defpath)])
        if visible is not None:
            env["CUDA_VISIBLE_DEVICES"] = visible
        if os.sep not in command[0] and shutil.which(command[0], path=env["PATH"]) is None:
            raise CannotStart(f"{command[0]}: no such command: install it, or mend the template's command")
        return process.start(command, env=env, folder=folder, log=place.log(running.name))
    except CannotStart:
        raise
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise NoRoom(error.errno, error.strerror, error.filename) from error
        what = error.filename or "the command"
        raise CannotStart(f"{what} could not be started: {error.strerror}: mend the template's command") from error
    except (ValueError, subprocess.SubprocessError) as error:
        raise CannotStart(f"the command or a variable of the template cannot be used: {error}") from error
