"""The operator as its own process, as the chart starts it, but outside of a pod: free ports, a kubeconfig."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from cluster.plane import WRITES
from testbed import Cluster
from testbed.wait import until

PATIENCE = 30.0  # seconds that a replica may take to end


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Replica:
    """A running process; it keeps its number even when it begins anew by `os.execv`."""

    name: str
    process: subprocess.Popen[bytes]
    http_port: int
    report_port: int
    log: Path

    def get(self, path: str) -> str:
        """What its plain HTTP port answers; nothing while it does not."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of every sample of one metric."""
        found = text_string_to_metric_families(self.get("/metrics"))
        return [(s.labels, s.value) for family in found for s in family.samples if s.name == name]

    def value(self, name: str) -> float:
        return sum(value for _, value in self.samples(name))

    def calls(self) -> Counter[tuple[str, str]]:
        """Requests to the API server by verb and kind."""
        calls: Counter[tuple[str, str]] = Counter()
        for labels, value in self.samples("trialkeeper_api_requests_total"):
            calls[labels["verb"], labels["kind"]] += int(value)
        return calls

    def leads(self) -> bool:
        return self.value("trialkeeper_leader") == 1

    def memory(self) -> float:
        """The most memory that it has had, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024

    def lines(self) -> list[dict[str, Any]]:
        """Its log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def said(self, words: str) -> list[dict[str, Any]]:
        """Lines of its log whose message has these words."""
        return [line for line in self.lines() if words in line["message"]]

    def stop(self) -> int:
        """End it by SIGTERM, as a kubelet does, and wait."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def replica(
    cluster: Cluster,
    folder: Path,
    name: str,
    namespace: str,
    watched: Sequence[str] = (),
    *,
    kubeconfig: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    lives: bool = True,
) -> Iterator[Replica]:
    """A replica whose own namespace is `namespace`, until the block is left; `settings` go into its file.

    It `lives` when the block is entered, unless it is one that cannot.
    """
    config, log = folder / f"{name}.yaml", folder / f"{name}.log"
    config.write_text(json.dumps({"watchNamespaces": list(watched), "logLevel": "info", **(settings or {})}))
    ports = free_port(), free_port()
    options = ["--config", str(config), "--http-port", str(ports[0]), "--report-port", str(ports[1])]
    place = {"POD_NAME": name, "POD_NAMESPACE": namespace, "KUBECONFIG": str(kubeconfig or cluster.kubeconfig)}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "trialkeeper_operator.serve", *options],
            env={**cluster.environment(), **place, "PYTHONUNBUFFERED": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    running = Replica(name, process, *ports, log)
    try:
        until(f"the replica {name}", lambda: process.poll() is not None or running.get("/readyz"), seconds=30)
        assert process.poll() is None or not lives, log.read_text()
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def requests(cluster: Cluster) -> Counter[tuple[str, str, int]]:
    """What the API server itself has counted: writes that were carried out, by verb, resource and code."""
    seen: Counter[tuple[str, str, int]] = Counter()
    text = cluster.kubectl("get", "--raw", "/metrics")
    lines = (line for line in text.splitlines(keepends=True) if line.startswith("apiserver_request_total{"))
    for family in text_string_to_metric_families("".join(lines)):
        for sample in family.samples:
            labels = sample.labels
            if labels["verb"] in WRITES and not labels["dry_run"]:
                resource = labels["resource"] + (f"/{labels['subresource']}" if labels["subresource"] else "")
                seen[labels["verb"], resource, int(labels["code"])] += int(sample.value)
    return seen
