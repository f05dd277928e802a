"""A node's own mounts: what two kubelets of one machine would otherwise share, or change for everybody.

A node gets folders of its own in place of the machine's, and files in place of those sysctls that a kubelet sets, so
the machine keeps its settings. Whatever a node mounts is seen by the node alone and goes with its last process.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from testbed import cache
from testbed.plan import Plan
from testbed.processes import Processes
from testbed.wait import until

# Paths that containerd, its plugins and the kubelet have built in.
OWN = (
    "/run/containerd",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
)
SYSCTLS = (
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)
# The process that keeps a node's mounts while nothing else runs there.
KEEP = """
while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 1; shift 2; done
touch "$2" && exec sleep infinity
"""


def _made() -> Path:
    """The list of folders of the machine that were made to mount upon."""
    return cache.home() / "clusters.mountpoints"


def points() -> None:
    """Make the folders that nodes mount upon, where the machine has none, and remember that."""
    with cache.locked("mountpoints"):
        missing = [folder for folder in OWN if not Path(folder).is_dir()]
        if missing:
            known = json.loads(_made().read_text()) if _made().exists() else []
            _made().write_text(json.dumps([*known, *missing]))
        for folder in missing:
            Path(folder).mkdir(parents=True)


def remove_points() -> None:
    """Remove those folders again, if no cluster is left that has something mounted upon them."""
    with cache.locked("mountpoints"):
        if not _made().exists() or list((cache.home() / "clusters").glob("*")):
            return
        for folder in json.loads(_made().read_text()):
            with contextlib.suppress(OSError):  # somebody else has put something there
                Path(folder).rmdir()
        _made().unlink()


def enter(plan: Plan, node: str, processes: Processes) -> list[str]:
    """The command that runs another one in a node's mounts and its network."""
    return [*plan.enter(node), f"--mount=/proc/{processes.pid(keeper(node))}/ns/mnt"]


def keeper(node: str) -> str:
    """The program that keeps a node's mounts."""
    return f"{node}-mounts"


def keep(plan: Plan, node: str, processes: Processes) -> None:
    """Give a node its own mounts."""
    folder = plan.folder / node
    pairs: list[Path] = []
    for machines in OWN:
        own = folder / machines.strip("/").replace("/", "-")
        own.mkdir(parents=True, exist_ok=True)
        pairs += [own, Path(machines)]
    for sysctl in SYSCTLS:
        path = Path("/proc/sys", sysctl)
        own = folder / sysctl.replace("/", "-")
        if path.exists():
            own.write_text(path.read_text())
            pairs += [own, path]
    kept = folder / "mounts-are-made"
    kept.unlink(missing_ok=True)
    shell: list[str | Path] = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", KEEP, "sh"]
    processes.start(keeper(node), [*shell, *pairs, "--", kept], group=f"{node}/programs")
    until(f"the mounts of {node}", kept.exists, seconds=10)
