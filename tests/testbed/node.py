"""A node: containerd, kubelet and kube-proxy on a host of its own, and the ways in which it is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from testbed import images, mounts
from testbed.control import Control
from testbed.packages import PLUGINS
from testbed.processes import Processes
from testbed.programs import program
from testbed.shell import CommandFailed, run
from testbed.wait import until

CONTAINERD = """
version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""


class Node:
    """One node of a cluster."""

    def __init__(self, name: str, control: Control, processes: Processes) -> None:
        self.name = name
        self.control = control
        self.plan = control.plan
        self.processes = processes
        self.folder = control.plan.folder / name
        self.socket = self.folder / "containerd.sock"

    def start(self) -> None:
        """Start whatever of the node does not run: at first, and after it was lost."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.processes.pid(mounts.keeper(self.name)) is None:
            mounts.keep(self.plan, self.name, self.processes)
            self._containerd()
        if self.processes.pid(f"{self.name}-kube-proxy") is None:
            self._proxy()  # which also ends when its Node is deleted
        self._kubelet()

    def ready(self) -> bool:
        """Whether the API calls the node ready."""
        for part in ("containerd", "kubelet", "kube-proxy"):
            name = f"{self.name}-{part}"
            if self.processes.pid(name) is None:
                raise RuntimeError(f"{name} has ended:\n{self.processes.tail(name)}")
        nodes = self.control.api().items("/api/v1/nodes")
        conditions = [c for n in nodes if n["metadata"]["name"] == self.name for c in n["status"].get("conditions", ())]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def restart_kubelet(self, **settings: Any) -> None:
        """A kubelet with other settings: fields of its configuration file."""
        self.stop_kubelet()
        self._kubelet(**settings)

    def stop_kubelet(self) -> None:
        """End the kubelet alone: its containers run on, and nobody will ever hear of them."""
        self.processes.kill(f"{self.name}-kubelet")

    def kill(self) -> None:
        """End everything on the node at once, as when a machine is taken away."""
        self.stop_kubelet()
        self.plan.tree.kill(self.name)

    def load(self, archive: Path) -> None:
        """Put the images of an archive into the node, under the names that pods call them by."""
        run("ctr", "--address", self.socket, "--namespace", "k8s.io", "images", "import", archive, timeout=300)

    def _start(self, part: str, *argv: str | Path) -> None:
        command = [*mounts.enter(self.plan, self.name, self.processes), *argv]
        lock = {"XTABLES_LOCKFILE": str(self.folder / "xtables.lock")}
        self.processes.start(f"{self.name}-{part}", command, group=f"{self.name}/programs", env=lock)

    def _containerd(self) -> None:
        config = self.folder / "containerd.toml"
        values = {"folder": self.folder, "socket": self.socket, "pause": images.PAUSE, "plugins": PLUGINS}
        config.write_text(CONTAINERD.format(**values))
        self._write("cni/10-pods.conflist", self._pod_network())
        self._start("containerd", "containerd", "--config", config)

        def answers() -> bool:
            try:
                return bool(run("ctr", "--address", self.socket, "version"))
            except CommandFailed:
                return False

        until(f"containerd of {self.name}", answers, seconds=20)
        self.load(images.pause())

    def _pod_network(self) -> dict[str, Any]:
        """Each pod has a link to its node and nothing else, so that whatever it sends passes the rules for Services."""
        addresses = {
            "type": "host-local",
            "ranges": [[{"subnet": self.plan.pods(self.name)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.folder / "addresses"),
        }
        plugins = [{"type": "ptp", "ipam": addresses}, {"type": "portmap", "capabilities": {"portMappings": True}}]
        return {"cniVersion": "0.4.0", "name": self.plan.namespace(self.name), "plugins": plugins}

    def _kubelet(self, **settings: Any) -> None:
        self.plan.tree.root(f"{self.name}/pods")
        resolv = self.folder / "resolv.conf"
        resolv.write_text(f"nameserver {self.plan.control}\n")
        pair = self.control.authority
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.plan.address(self.name),
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(pair.certificate)}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pair.file(self.name)),
            "tlsPrivateKeyFile": str(pair.key(self.name)),
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "clusterDNS": [self.plan.control],
            "clusterDomain": "cluster.local",
            "resolvConf": str(resolv),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.plan.tree.name}/{self.name}/pods",
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "volumePluginDir": str(self.folder / "volume-plugins"),
            "nodeLeaseDurationSeconds": self.plan.wishes.node_grace,  # renewed four times while it lasts
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            **settings,
        }
        self._write("kubelet.json", config)
        self._start(
            "kubelet",
            program("kubelet"),
            f"--config={self.folder / 'kubelet.json'}",
            f"--kubeconfig={self.control.kubeconfig(self.name)}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.plan.address(self.name)}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'kubelet-certificates'}",
        )

    def _proxy(self) -> None:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": self.plan.all_pods,
            "hostnameOverride": self.name,
            "bindAddress": self.plan.address(self.name),
            "metricsBindAddress": "127.0.0.1:10249",
            "clientConnection": {"kubeconfig": str(self.control.kubeconfig("proxy"))},
            "conntrack": {"maxPerCore": 0, "min": None, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        self._write("kube-proxy.json", config)
        self._start("kube-proxy", program("kube-proxy"), f"--config={self.folder / 'kube-proxy.json'}")

    def _write(self, name: str, document: object) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1))
