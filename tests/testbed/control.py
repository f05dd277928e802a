"""The control plane: etcd, the API server, the two that act on what it says, and the cluster's DNS."""

from __future__ import annotations

from pathlib import Path

from testbed.access import Api, kubeconfig
from testbed.certificates import Authority
from testbed.plan import Plan
from testbed.processes import Processes
from testbed.programs import program
from testbed.wait import until

GROUP = "control"
# Who talks to the API server from here, and as whom.
USERS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "coredns": ("coredns", ""),
    "proxy": ("system:kube-proxy", ""),
    "kubelet-client": ("kube-apiserver", "system:masters"),
}
COREFILE = """
.:53 {{
    bind {address}
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 1
    }}
    loop
}}
"""


class Control:
    """The control plane of one cluster, in a namespace of its own."""

    def __init__(self, plan: Plan, processes: Processes) -> None:
        self.plan = plan
        self.processes = processes
        self.authority = Authority(plan.folder / "certificates")
        self.server = f"https://{plan.control}:6443"

    def api(self) -> Api:
        """A client with all rights."""
        return Api(self.server, self.authority, "admin")

    def kubeconfig(self, name: str) -> Path:
        return self.plan.kubeconfig if name == "admin" else self.authority.folder / f"{name}.kubeconfig"

    def certify(self) -> None:
        """Make everybody's certificates and kubeconfig files."""
        plan = self.plan
        self.authority.make()
        services = [f"kubernetes{suffix}" for suffix in ("", ".default", ".default.svc", ".default.svc.cluster.local")]
        hosts = ("127.0.0.1", "localhost", plan.control, plan.kubernetes, *services)
        self.authority.issue("apiserver", "kube-apiserver", hosts=hosts)
        for name, (user, group) in USERS.items():
            self.authority.issue(name, user, group=group)
        for node in plan.nodes:
            hosts = (node, plan.address(node))
            self.authority.issue(node, f"system:node:{node}", group="system:nodes", hosts=hosts)
        for name in (*USERS, *plan.nodes):
            kubeconfig(self.kubeconfig(name), self.server, self.authority, name)

    def start(self) -> None:
        """Start the control plane, and wait for the API."""
        self._etcd()
        self._apiserver()
        self.wait()
        self._controllers()

    def wait(self) -> None:
        """Wait until the API server is ready; a program that ended meanwhile will not come back."""
        api = self.api()

        def ready() -> bool:
            for name in ("etcd", "kube-apiserver"):
                if self.processes.pid(name) is None:
                    raise RuntimeError(f"{name} has ended:\n{self.processes.tail(name)}")
            return api.ready()

        until("the API server", ready, seconds=60)

    def dns(self) -> None:
        """Start the DNS that pods are told to ask; it knows the cluster's names and no others."""
        config = self.plan.folder / "Corefile"
        config.write_text(COREFILE.format(address=self.plan.control, kubeconfig=self.kubeconfig("coredns")))
        self._start("coredns", f"-conf={config}")

    def _start(self, name: str, *arguments: str) -> None:
        self.processes.start(name, [*self.plan.enter("control"), program(name), *arguments], group=GROUP)

    def _etcd(self) -> None:
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        self._start(
            "etcd",
            f"--data-dir={self.plan.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        )

    def _apiserver(self) -> None:
        pair = self.authority
        self._start(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--bind-address={self.plan.control}",
            f"--advertise-address={self.plan.control}",
            "--secure-port=6443",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={pair.certificate}",
            f"--tls-cert-file={pair.file('apiserver')}",
            f"--tls-private-key-file={pair.key('apiserver')}",
            f"--kubelet-certificate-authority={pair.certificate}",
            f"--kubelet-client-certificate={pair.file('kubelet-client')}",
            f"--kubelet-client-key={pair.key('kubelet-client')}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pair.folder / 'tokens.pub'}",
            f"--service-account-signing-key-file={pair.folder / 'tokens.key'}",
            f"--service-cluster-ip-range={self.plan.services}",
            "--endpoint-reconciler-type=lease",
            "--allow-privileged",
        )

    def _controllers(self) -> None:
        grace = self.plan.wishes.node_grace
        self._start(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('controller-manager')}",
            "--bind-address=127.0.0.1",
            "--use-service-account-credentials",
            f"--root-ca-file={self.authority.certificate}",
            f"--service-account-private-key-file={self.authority.folder / 'tokens.key'}",
            "--leader-elect=false",
            f"--flex-volume-plugin-dir={self.plan.folder / 'volume-plugins'}",
            f"--node-monitor-grace-period={grace}s",
            f"--node-monitor-period={min(5, max(1, grace // 6))}s",
        )
        self._start(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig('scheduler')}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
        )
