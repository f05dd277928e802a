"""A cluster's network: one namespace for the control plane, one for each node, and a link from the machine to them.

Nothing of it is reachable from another machine: the machine forwards nothing, and only the link has an address on it.
"""

from __future__ import annotations

import contextlib

from testbed.plan import NAMESPACES, Plan, find, namespaces
from testbed.shell import CommandFailed, run


def make(plan: Plan) -> None:
    """Make the namespaces, the bridge between them, and the routes to pods and Services."""
    control = plan.namespace("control")
    for host in ("control", *plan.nodes):
        run("ip", "netns", "add", plan.namespace(host))
        run(*plan.enter(host), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    _batch(
        control,
        "link set lo up",
        "link add lan0 type bridge",
        f"address add {plan.control}/24 dev lan0",
        "link set lan0 up",
    )
    for node in plan.nodes:
        namespace = plan.namespace(node)
        _batch(
            None,
            f"link add {node} netns {control} type veth peer name eth0 netns {namespace}",
        )
        _batch(control, f"link set {node} master lan0", f"link set {node} up")
        _batch(
            namespace,
            "link set lo up",
            f"address add {plan.address(node)}/24 dev eth0",
            "link set eth0 up",
            *_routes(plan, host=node),
        )
    _batch(None, f"link add {plan.link} type veth peer name outside netns {control}")
    _batch(control, "link set outside master lan0", "link set outside up", *_routes(plan, host="control"))
    outside = [f"address add {plan.outside}/24 dev {plan.link}", f"link set {plan.link} up"]
    _batch(None, *outside, *_routes(plan, host="outside"))


def remove(name: str) -> None:
    """Remove the namespaces of a cluster, and with them links, rules and routes."""
    if plan := find(name):
        with contextlib.suppress(CommandFailed):  # it was not made, or went with its other end
            run("ip", "link", "delete", plan.link)
    for path in NAMESPACES.glob(f"{namespaces(name)}*"):
        run("ip", "netns", "delete", path.name)


def _routes(plan: Plan, *, host: str) -> list[str]:
    """Ways from a host to the pods of all nodes but itself; to Services by the first node, whose rules know them."""
    routes = [f"route add {plan.pods(node)} via {plan.address(node)}" for node in plan.nodes if node != host]
    if plan.nodes and host not in plan.nodes:
        routes.append(f"route add {plan.services} via {plan.address(plan.nodes[0])}")
    return routes


def _batch(namespace: str | None, *commands: str) -> None:
    where = ["-n", namespace] if namespace else []
    run("ip", *where, "-batch", "-", stdin="\n".join(commands) + "\n")
