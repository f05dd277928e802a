"""One replica from its start to its end: wait for the Lease, lead, and let go of it.

A replica that has lost the Lease, or yields it, replaces itself by a fresh process (`os.execv`): nothing that was in
flight can reach the cluster any more, and Kubernetes counts no restart against the pod.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from trialkeeper.store.address import Bucket
from trialkeeper_operator.cluster.access import connect
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.reconcile.loop import Operator
from trialkeeper_operator.serve.claims import Claims
from trialkeeper_operator.serve.credentials import Credentials, NoKeys, ensure_bucket
from trialkeeper_operator.serve.endpoint import Endpoint, Outdone
from trialkeeper_operator.serve.handlers import KopfSource, WatchEnded
from trialkeeper_operator.serve.health import Health, listen
from trialkeeper_operator.serve.leader import Elector, LeaseLost
from trialkeeper_operator.serve.metrics import Metrics
from trialkeeper_operator.serve.reports import Reports
from trialkeeper_operator.serve.settings import ReportSettings, Settings
from trialkeeper_operator.serve.sweeping import StoreSweep, swept, tree_of
from trialkeeper_operator.serve.telling import Telling
from trialkeeper_operator.serve.tokens import Tokens

log = logging.getLogger(__name__)

HTTP_PORT = 8080
REPORT_PORT = 8443
_BUCKET_RETRY = 1.0


@dataclass(frozen=True)
class Place:
    """Who this replica is, from the downward API."""

    namespace: str
    pod: str

    @staticmethod
    def of_environment() -> Place:
        return Place(os.environ.get("POD_NAMESPACE", "default"), os.environ.get("POD_NAME", os.uname().nodename))


def site(settings: Settings) -> Site:
    """What pods are told of this installation."""
    store, report = settings.store, settings.report
    url, store_ca, report_url, report_ca = "", "", "", ""
    if store.mode != "none":
        lent = store.credentials_dir is not None
        url = Bucket(store.bucket, endpoint=store.endpoint, region=store.region, from_service=lent).url
        store_ca = Path(store.ca_file).read_text() if store.ca_file else ""
    if report is not None:
        report_url, report_ca = report.url, (report.tls_dir / "ca.crt").read_text()
    return Site(store=url, store_ca=store_ca, report=report_url, report_ca=report_ca, swept=swept(settings))


async def run(settings: Settings, place: Place, *, http_port: int = HTTP_PORT, report_port: int = REPORT_PORT) -> None:
    """Serve until SIGTERM or SIGINT.

    :raises LeaseLost: when the Lease is lost, as WatchEnded when the watch is, and Outdone when another replica
        should lead; the caller starts the process anew.
    """
    metrics = Metrics()
    health = Health(metrics)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with AsyncExitStack() as stack:
        runner = await listen(health.application(), http_port)
        stack.push_async_callback(runner.cleanup)
        kube = await connect(
            counted=lambda verb, kind, code: metrics.requests.labels(verb, kind or "other", str(code)).inc()
        )
        stack.push_async_callback(kube.close)
        elector = Elector(kube, place.namespace, settings.lease, f"{place.pod}_{os.urandom(4).hex()}")
        endpoint = Endpoint(kube, place.namespace, place.pod)
        replica = Replica(settings, place, kube, metrics, health, elector, endpoint, report_port)
        main = asyncio.create_task(replica.main())
        beat = asyncio.create_task(health.run())
        stop = asyncio.create_task(stopped.wait())
        await asyncio.wait({main, stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in (main, beat, stop):
            if not task.done():
                task.cancel()
        await asyncio.wait({main, beat, stop})
        error = None if main.cancelled() else main.exception()
        if error is None:
            await replica.let_go()
        if error is None or isinstance(error, Outdone) or not renewable(error):
            # Only now that nothing of ours is in flight may the next replica begin.
            await elector.release()
        if error is not None:
            raise error
        log.info("stopped")


@dataclass
class Replica:
    """The parts of a replica."""

    settings: Settings
    place: Place
    kube: Kube
    metrics: Metrics
    health: Health
    elector: Elector
    endpoint: Endpoint
    report_port: int
    claims: Claims | None = None

    async def let_go(self) -> None:
        """Give the namespaces back, so that another installation need not wait until the claims run out."""
        if self.claims is not None:
            await self.claims.release()

    async def main(self) -> None:
        """Wait for the Lease, then lead until it is lost or this is cancelled."""
        await self.endpoint.leave()
        await self.endpoint.wait()
        await self.elector.acquire()
        self.metrics.leader.set(1)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.elector.hold(), name="lease")
                tasks.create_task(self._lead(tasks), name="lead")
        except* Exception as failed:
            raise failed.exceptions[0] from None

    async def _lead(self, tasks: asyncio.TaskGroup) -> None:
        identity, listed = f"{self.place.namespace}/{self.settings.lease}", bool(self.settings.watch_namespaces)
        claims = self.claims = Claims(self.kube, identity, listed=listed)
        for namespace in self.settings.watch_namespaces:
            await claims.serves(namespace)
        telling = Telling(self.kube, self.metrics, time.time)
        source = KopfSource(self.settings.watch_namespaces)
        operator = Operator(
            self.kube,
            source,
            now=time.time,
            status_interval=self.settings.status_seconds,
            sweep_interval=self.settings.sweep_seconds,
            site=site(self.settings),
            observer=telling,
            serves=claims.serves,
            namespaces=self.settings.watch_namespaces,
            passed=self._passed,
        )
        source.relisted = operator.sweep_soon
        self.health.refresh = lambda: self._refresh(operator)
        self.health.trouble = operator.trouble
        tasks.create_task(telling.run(), name="events")
        tasks.create_task(claims.run(), name="claims")
        credentials = Credentials(self.settings.store)
        tasks.create_task(self._bucket(credentials), name="bucket")
        if swept(self.settings):
            tree = tree_of(self.settings.store, Path("/nowhere"))
            sweeper = StoreSweep(operator.world, tree, self.metrics, claims.serves, self.settings.watch_namespaces)
            tasks.create_task(sweeper.run(), name="store")
        tasks.create_task(operator.run(), name="operator")
        if self.settings.report is not None:
            await self._serve_reports(operator, credentials, self.settings.report)
        tasks.create_task(self.endpoint.stay(), name="endpoint")

    def _passed(self, kind: str, seconds: float, failed: bool) -> None:
        self.metrics.reconciles.labels(kind).observe(seconds)
        if failed:
            self.metrics.failed.labels(kind).inc()

    def _refresh(self, operator: Operator) -> None:
        depth, age = operator.world.queue.backlog()
        self.metrics.depth.set(depth)
        self.metrics.age.set(age)
        self.metrics.stale.set(1 if operator.trouble() else 0)

    async def _serve_reports(self, operator: Operator, credentials: Credentials, report: ReportSettings) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(report.tls_dir / "tls.crt", report.tls_dir / "tls.key")
        reports = Reports(
            operator,
            Tokens(self.kube),
            credentials,
            lambda path, status: self.metrics.reports.labels(path, str(status)).inc(),
        )
        await listen(reports.application(), self.report_port, context)

    async def _bucket(self, credentials: Credentials) -> None:
        """Make the chart's bucket, however long the store takes to come up."""
        said = False
        while not credentials.bucket_made:
            try:
                await asyncio.to_thread(ensure_bucket, self.settings.store)
                credentials.bucket_made = True
                return
            except NoKeys as error:
                if not said:
                    log.warning("waiting for the store: %s", error)
                said = True
            await asyncio.sleep(_BUCKET_RETRY)


def renewable(error: BaseException) -> bool:
    """Whether a fresh process can do what this one cannot any more; else somebody has to mend something."""
    if isinstance(error, BaseExceptionGroup):
        return any(renewable(inner) for inner in error.exceptions)
    return isinstance(error, (LeaseLost, WatchEnded, Outdone))


def again() -> None:
    """Replace this process by a fresh one of the same arguments."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "trialkeeper_operator.serve", *sys.argv[1:]])
