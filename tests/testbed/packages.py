"""What a cluster needs of the machine's own distribution, and how it is had."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
from pathlib import Path

from testbed.plan import ClusterRefused
from testbed.shell import run

log = logging.getLogger("testbed")

PLUGINS = Path("/usr/lib/cni")  # where Debian's package puts the network plugins
# Commands and files, and the packages of Debian and Ubuntu that have them.
NEEDED = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    str(PLUGINS / "ptp"): "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "socat": "socat",
    "ip": "iproute2",
    "openssl": "openssl",
}
NEEDED_FOR_IMAGES = {"buildah": "buildah", "debootstrap": "debootstrap"}


def missing(needed: dict[str, str]) -> list[str]:
    """The packages whose commands are not there; who has installed them some other way needs no package."""
    return sorted({package for command, package in needed.items() if shutil.which(command) is None})


def check() -> None:
    """Say in a sentence why no cluster can be run here, if that is so.

    :raises ClusterRefused: with that sentence.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise ClusterRefused(
            "the testbed needs Linux and root: KUBECONFIG=... names another cluster to be used instead"
        )
    if absent := missing(NEEDED):
        raise ClusterRefused(f"not installed: {', '.join(absent)}; `python -m testbed install` does that")


def install() -> None:
    """Install the packages that are missing.

    :raises ClusterRefused: if that is for a person to do.
    """
    absent = missing(NEEDED | NEEDED_FOR_IMAGES)
    if not absent:
        return
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ClusterRefused(f"these packages (by Debian's names) must be installed first, by root: {' '.join(absent)}")
    log.info("installing %s", " ".join(absent))
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", timeout=300, env=quiet)
    run("apt-get", "install", "--yes", "--no-install-recommends", *absent, timeout=900, env=quiet)


def release() -> tuple[str, list[str]]:
    """(code name, mirror) of this machine's own release; no mirror if apt does not know one, yet."""
    system = platform.freedesktop_os_release()
    codename, origin = system.get("VERSION_CODENAME", ""), system["ID"].capitalize()
    filters = ("Created-By: Packages", f"Codename: {codename}", f"Origin: {origin}")
    mirrors = run("apt-get", "indextargets", "--format", "$(REPO_URI)", *filters).split()
    return codename, mirrors[:1]
