"""One installation serves every namespace, another one comes with a list: the second stands back, whoever it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.plane import study
from cluster.replicas import Replica, replica
from cluster.test_rights import GROUP, install, kubeconfig, own_pod, space
from testbed import Cluster
from testbed.wait import until


class Listed:
    """An installation with a list of one namespace, and the rights that the chart gives it."""

    def __init__(self, fakes: Cluster, folder: Path) -> None:
        self._fakes, self._folder = fakes, folder
        self.home, self.served = space(fakes), space(fakes)
        config, account = install(fakes, "listed", self.home, f"--set=watchNamespaces={{{self.served}}}")
        own_pod(fakes, self.home, "op")
        self._key = kubeconfig(fakes, self.home, account, folder / "kubeconfig")
        self._settings = {"lease": config["lease"], "sweepSeconds": 2}

    @contextmanager
    def running(self, name: str) -> Iterator[Replica]:
        """Its operator, as soon as it leads."""
        with replica(
            self._fakes, self._folder, name, self.home, [self.served], kubeconfig=self._key, settings=self._settings
        ) as operator:
            until("it to lead", operator.leads, seconds=30)
            yield operator

    def create(self, name: str) -> None:
        body = study(name, self.served, maxTrials=1, ends_after="100ms")
        self._fakes.control.api().request("POST", f"{GROUP}/{self.served}/experiments", body)

    def phase(self, name: str) -> Any:
        found = self._fakes.control.api().get(f"{GROUP}/{self.served}/experiments/{name}")
        return (found.get("status") or {}).get("phase")


@contextmanager
def everywhere(fakes: Cluster) -> Iterator[str]:
    """An installation for every namespace, of which no operator needs to run; its own namespace."""
    home = space(fakes)
    try:
        install(fakes, f"r{home}", home)
        yield home
    finally:
        uninstall(fakes, home)


def uninstall(fakes: Cluster, home: str) -> None:
    fakes.kubectl("delete", "clusterrole,clusterrolebinding", "-l", f"app.kubernetes.io/instance=r{home}")


@pytest.mark.timeout(150)
def test_a_list_comes_second_where_no_experiment_was_yet(fakes: Cluster, tmp_path: Path) -> None:
    with everywhere(fakes) as first:
        listed = Listed(fakes, tmp_path)
        with listed.running("op") as operator:
            said = until("a sentence", lambda: operator.said("another installation"), seconds=20)
            where = f"namespace {listed.served} is served by another installation ({first}/r{first}-trialkeeper-leader"
            assert said[0]["message"].startswith(where)
            listed.create("exp")
            until("sweeps", lambda: operator.calls()["GET", "Experiment"] > 3, seconds=30)
            assert listed.phase("exp") is None
            assert not fakes.kubectl("get", "leases", "-n", listed.served, "-o", "name")
            # The first one goes, and the second one may.
            uninstall(fakes, first)
            until("its end", lambda: listed.phase("exp") == "Succeeded", seconds=60)


@pytest.mark.timeout(150)
def test_a_list_that_was_first_goes_on(fakes: Cluster, tmp_path: Path) -> None:
    listed = Listed(fakes, tmp_path)
    with listed.running("op") as operator:
        until("its claim", lambda: fakes.kubectl("get", "leases", "-n", listed.served, "-o", "name"), seconds=20)
        with everywhere(fakes):
            assert operator.stop() == 0
            with listed.running("again") as operator:
                listed.create("exp")
                until("its end", lambda: listed.phase("exp") == "Succeeded", seconds=60)
                assert operator.said("another installation") == []
