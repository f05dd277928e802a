"""Which API server: the one of the pod that this process runs in, else the one that kubectl speaks to."""

from __future__ import annotations

import os

from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from kubernetes.aio.config.config_exception import ConfigException

from trialkeeper_operator.cluster.kube import Counter, Kube


class NoAccess(Exception):
    """Raised when nothing says where the API server is; the message says what to do."""


async def configuration(kubeconfig: str | None = None) -> Configuration:
    """How to reach the cluster that `kubeconfig` names, or else this pod's, or else $KUBECONFIG's.

    :raises NoAccess: if there is none.
    """
    found = Configuration()
    try:
        if kubeconfig is None and os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=found)
        else:
            await config.load_kube_config(kubeconfig, client_configuration=found)
    except (ConfigException, OSError) as error:
        raise NoAccess(f"no cluster is known here ({error}): set KUBECONFIG, or see `kubectl config view`") from error
    return found


async def connect(kubeconfig: str | None = None, counted: Counter = lambda verb, kind, code: None) -> Kube:
    """A client of that cluster.

    :raises NoAccess: if there is none.
    """
    return Kube(await configuration(kubeconfig), counted=counted)
