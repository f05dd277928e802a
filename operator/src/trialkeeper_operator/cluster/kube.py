"""The Cluster port over a real API server: raw objects through `kubernetes.aio`, a deadline on every call.

The typed half of the client is left alone: it drops fields that are newer than itself and refuses to send
them. Retries are the queue's business, since only it knows whether the write is still wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException

from trialkeeper_operator.cluster.answers import decoded, error
from trialkeeper_operator.cluster.paths import path, told
from trialkeeper_operator.reconcile.ports import Expired, NotFound, Object, Unavailable

if TYPE_CHECKING:
    from trialkeeper_operator.reconcile.ports import Cluster

DEADLINE = 10.0  # seconds for one call
PAGE = 500  # objects of a list in one answer

Counter = Callable[[str, str, int], None]  # verb, kind, code (0: no answer)


class Kube:
    """Reads and writes through one client, whose connections it owns. `counted` hears of every call."""

    def __init__(
        self,
        configuration: Configuration | None = None,
        *,
        deadline: float = DEADLINE,
        connections: int = 32,
        counted: Counter = lambda verb, kind, code: None,
    ) -> None:
        if configuration is not None:
            configuration.connection_pool_maxsize = connections
        self._client = ApiClient(configuration)
        self._client.user_agent = "trialkeeper"
        self._deadline = deadline
        self._counted = counted

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.close()

    async def call(
        self,
        verb: str,
        where: str,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        *,
        kind: str = "",
        content: str = "application/json",
    ) -> Object:
        """One request and its answer as an object.

        :raises ClusterError: whatever the answer means, see `answers.error`; `Unavailable` if there is none.
        """
        url = where + (f"?{urlencode(query)}" if query else "")
        code = 0
        try:
            async with asyncio.timeout(self._deadline):
                request = await self._client.param_serialize(
                    verb,
                    url,
                    header_params={"Accept": "application/json, */*;q=0.5", "Content-Type": content},
                    body=body,
                    auth_settings=["BearerToken"],
                )
                answer = await self._client.call_api(
                    *request, _request_timeout=aiohttp.ClientTimeout(total=self._deadline)
                )
                raw = await answer.read()
                code = int(answer.status)
        except (TimeoutError, aiohttp.ClientError, ApiException, OSError) as broken:
            raise Unavailable(f"{verb} {where}: no answer ({type(broken).__name__}: {broken})") from broken
        finally:
            self._counted(verb, kind, code)
        value = decoded(raw)
        refusal = error(verb, code, value, answer.getheader("Retry-After"))
        if refusal is not None:
            raise refusal
        return value

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        try:
            return told(kind, await self.call("GET", path(kind, namespace, name), kind=kind))
        except NotFound:
            return None

    async def list(
        self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Object]:
        query = {"limit": str(PAGE)}
        if labels:
            query["labelSelector"] = ",".join(f"{key}={value}" for key, value in labels.items())
        while True:
            try:
                page = await self.call("GET", path(kind, namespace), query=query, kind=kind)
            except Expired:
                # The snapshot that the pages were of is compacted away; what was told so far may be told again.
                if query.pop("continue", None) is None:
                    raise
                continue
            for item in page.get("items") or ():
                yield told(kind, item)
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            query["continue"] = token

    async def create(self, body: Object, *, dry_run: bool = False) -> Object:
        return await self._write("POST", body, named=False, query={"dryRun": "All"} if dry_run else None)

    async def put(self, body: Object) -> Object:
        return await self._write("PUT", body)

    async def put_status(self, body: Object) -> Object:
        return await self._write("PUT", body, sub="status")

    async def patch(self, kind: str, namespace: str, name: str, change: Object) -> Object:
        """Merge a change into an object."""
        where = path(kind, namespace, name)
        return await self.call("PATCH", where, change, kind=kind, content="application/merge-patch+json")

    async def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        version: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        expected = {"uid": uid, "resourceVersion": version}
        if preconditions := {field: value for field, value in expected.items() if value is not None}:
            options["preconditions"] = preconditions
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        await self.call("DELETE", path(kind, namespace, name), options, kind=kind)

    async def _write(
        self, verb: str, body: Object, *, named: bool = True, sub: str = "", query: Mapping[str, str] | None = None
    ) -> Object:
        kind, meta = body["kind"], body["metadata"]
        where = path(kind, meta.get("namespace"), meta["name"] if named else "", sub)
        return told(kind, await self.call(verb, where, body, query, kind=kind))


if TYPE_CHECKING:
    _cluster: Cluster = Kube()
