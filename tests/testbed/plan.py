"""What a cluster is called and where things are: everything follows from its name, its number and its wishes.

Names of cgroups, namespaces and folders carry its name, so that it can be taken down even if its files are gone;
addresses, and the link to the outside, carry its number, which keeps two clusters of one machine apart.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from testbed import cache
from testbed.cgroups import Tree

NUMBERS = range(16)  # 10.77.0.0/16 has room for sixteen clusters of fifteen nodes
NAMESPACES = Path("/run/netns")
SOCKET_PATH = 100  # characters; the kernel takes 107, and a kubelet appends a few


class ClusterRefused(RuntimeError):
    """Raised when a cluster cannot be had as it was asked for; the message is a sentence for a person."""


@dataclass(frozen=True)
class Wishes:
    """What somebody wants of a cluster."""

    nodes: int = 1  # 0: a control plane alone
    kwok: int = 0  # fake nodes of a control plane alone
    storage_class: bool = True  # whether there is a default StorageClass
    node_grace: int = 40  # seconds after which a silent node is Unknown


@dataclass(frozen=True)
class Plan:
    """One cluster of this machine."""

    name: str
    number: int
    wishes: Wishes

    @property
    def folder(self) -> Path:
        return folder(self.name)

    @property
    def tree(self) -> Tree:
        return tree(self.name)

    @property
    def nodes(self) -> list[str]:
        return [f"node{index}" for index in range(1, self.wishes.nodes + 1)]

    def namespace(self, host: str) -> str:
        """The network namespace of `control` or of a node."""
        return f"{namespaces(self.name)}{host}"

    def enter(self, host: str) -> list[str]:
        """The command that runs another one in a host's network: `ip netns exec` would hide the cgroups from it."""
        return ["nsenter", f"--net={NAMESPACES / self.namespace(host)}"]

    @property
    def link(self) -> str:
        """The interface by which the machine reaches the cluster."""
        return link(self.number)

    @property
    def control(self) -> str:
        """The address of the API server and of the cluster's DNS."""
        return f"10.76.{self.number}.1"

    @property
    def outside(self) -> str:
        """The machine's own address in the cluster's network."""
        return f"10.76.{self.number}.254"

    def address(self, node: str) -> str:
        return f"10.76.{self.number}.{10 + self.nodes.index(node) + 1}"

    def pods(self, node: str) -> str:
        """The range of a node's pods."""
        return f"10.77.{self.number * 16 + self.nodes.index(node) + 1}.0/24"

    @property
    def all_pods(self) -> str:
        return f"10.77.{self.number * 16}.0/20"

    @property
    def services(self) -> str:
        return f"10.96.{self.number}.0/24"

    @property
    def kubernetes(self) -> str:
        """The address of the Service `kubernetes`."""
        return f"10.96.{self.number}.1"

    @property
    def kubeconfig(self) -> Path:
        """The file by which people and tests reach the cluster."""
        return self.folder / "kubeconfig"


def folder(name: str) -> Path:
    """Where a cluster keeps everything."""
    return cache.home() / "clusters" / name


def link(number: int) -> str:
    return f"tk{number}"


def tree(name: str) -> Tree:
    """The cgroups of a cluster."""
    return Tree(f"trialkeeper-{name}")


def namespaces(name: str) -> str:
    """How the network namespaces of a cluster begin; no name has a dot, so none begins like another."""
    return f"tk.{name}."


def find(name: str) -> Plan | None:
    """The plan of a cluster that was begun, if there is one."""
    try:
        found = json.loads((folder(name) / "plan.json").read_text())
        return Plan(found["name"], found["number"], Wishes(**found["wishes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def reserve(name: str, wishes: Wishes) -> Plan:
    """Give a new cluster a number, and write that down before anything else happens.

    :raises ClusterRefused: if its name cannot be used, or all numbers are taken.
    """
    longest = folder(name) / "node1" / "kubelet" / "device-plugins" / "kubelet.sock"
    if len(str(longest)) > SOCKET_PATH or not name.replace("-", "").isalnum() or not name.isascii():
        raise ClusterRefused(f"{folder(name)}: a cluster's folder must have a short name of letters, digits and dashes")
    with cache.locked("clusters"):
        begun = [find(path.name) for path in folder(name).parent.glob("*") if path.is_dir()]
        taken = {plan.number for plan in begun if plan}
        free = [n for n in NUMBERS if n not in taken and not Path(f"/sys/class/net/{link(n)}").exists()]
        if not free:
            raise ClusterRefused(f"{len(NUMBERS)} clusters are on this machine already")
        plan = Plan(name, free[0], wishes)
        plan.folder.mkdir(parents=True, exist_ok=True)
        half = plan.folder / "plan.half"
        half.write_text(json.dumps(asdict(plan)))
        half.rename(plan.folder / "plan.json")
    return plan
