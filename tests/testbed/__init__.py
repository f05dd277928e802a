"""A real Kubernetes cluster on a bare Linux machine: no Docker, no image registry, package registries only.

`with cluster(nodes=2) as c:` in tests, `python -m testbed up` in a shell. Every node is a host of its own (network,
mounts, sysctls), every process and container is in one tree of cgroups, and every file is in one folder: that is why
`down` can leave nothing behind, whatever became of the process that said `up`.

Standard library only, so that it runs before anything has been installed.
"""

from testbed.cluster import Cluster, cluster
from testbed.plan import ClusterRefused

__all__ = ["Cluster", "ClusterRefused", "cluster"]
