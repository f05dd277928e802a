"""Pod Security, level restricted, as its standard lists the controls; each breach is one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
_SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def breaches(metadata: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    """Whatever the level does not allow."""
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field} is set"
    for key, value in (metadata.get("annotations") or {}).items():
        if key.startswith("container.apparmor.security.beta.kubernetes.io/") and value not in ("", "runtime/default"):
            yield f"AppArmor profile {value}"
    for volume in spec.get("volumes", []):
        kinds = volume.keys() - {"name"}
        if not kinds <= _VOLUMES:
            yield f"volume {volume['name']} is of the kind {kinds}"
    pod = spec.get("securityContext") or {}
    for sysctl in pod.get("sysctls", []):
        if sysctl["name"] not in _SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _either("the pod", pod)
    for group in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(group, []):
            yield from _container(container, pod)


def _container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    name, own = container["name"], container.get("securityContext") or {}
    yield from _either(name, own)
    for port in container.get("ports", []):
        if port.get("hostPort"):
            yield f"{name} has a host port"
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        for way in ("httpGet", "tcpSocket"):
            if container.get(probe, {}).get(way, {}).get("host"):
                yield f"{name}'s {probe} names a host"
    if own.get("privileged"):
        yield f"{name} is privileged"
    if own.get("procMount", "Default") != "Default":
        yield f"{name} unmasks /proc"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name} may gain privileges"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", []):
        yield f"{name} keeps capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name} adds capabilities"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield f"{name} may run as root"
    seccomp = own.get("seccompProfile", pod.get("seccompProfile")) or {}
    if seccomp.get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{name} has no seccomp profile"


def _either(name: str, context: dict[str, Any]) -> Iterator[str]:
    """What pods and containers may both say."""
    if context.get("runAsUser") == 0:
        yield f"{name} runs as root"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in _SELINUX or selinux.get("user") or selinux.get("role"):
        yield f"{name} has SELinux options"
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") == "Unconfined":
        yield f"{name} is not confined by AppArmor"
    if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
        yield f"{name} is not confined by seccomp"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{name} is a host process"
