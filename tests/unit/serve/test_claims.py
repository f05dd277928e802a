"""A namespace belongs to one installation at a time, and to nobody once it is gone."""

from __future__ import annotations

import asyncio
import copy
from typing import Any, cast

from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.reconcile.ports import AlreadyExists, Conflict, Object, Unavailable
from trialkeeper_operator.serve.claims import Claims


class Leases:
    """What claims need of an API server: Leases in namespaces that are there."""

    def __init__(self, *namespaces: str) -> None:
        self.namespaces, self.leases, self.writes = set(namespaces), dict[str, Object](), 0
        self.rights: list[Object] | None = []  # what everybody may do; None: nobody can tell

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        if kind == "Namespace":
            return {"metadata": {"name": name}} if name in self.namespaces else None
        return copy.deepcopy(self.leases.get(namespace))

    async def call(self, verb: str, where: str, body: Object, *, kind: str) -> Object:
        assert (verb, where.rpartition("/")[2]) == ("POST", "selfsubjectrulesreviews")
        assert body["kind"] == kind
        if self.rights is None:
            raise Unavailable("nobody answers")
        return {**body, "status": {"resourceRules": self.rights, "nonResourceRules": [], "incomplete": False}}

    async def create(self, body: Object) -> Object:
        if body["metadata"]["namespace"] in self.leases:
            raise AlreadyExists("it is there")
        return self._write(body)

    async def put(self, body: Object) -> Object:
        known = self.leases.get(body["metadata"]["namespace"])
        if known is None or known["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise Conflict("another version")
        return self._write(body)

    def _write(self, body: Object) -> Object:
        namespace = body["metadata"]["namespace"]
        if namespace not in self.namespaces:
            raise Unavailable(f'namespaces "{namespace}" not found')
        self.writes += 1
        body = copy.deepcopy(body)
        body["metadata"]["resourceVersion"] = str(self.writes)
        self.leases[namespace] = body
        return copy.deepcopy(body)


def claims(leases: Leases, identity: str, now: list[float], *, listed: bool = False) -> Claims:
    return Claims(cast(Kube, leases), identity, listed=listed, clock=lambda: now[0])


def sign(identity: str) -> Object:
    """A right as the chart gives it, for every namespace."""
    return {
        "verbs": ["get"],
        "apiGroups": ["trialkeeper.dev"],
        "resources": ["installations"],
        "resourceNames": [identity],
    }


def test_the_second_installation_stands_back_until_the_first_lets_go() -> None:
    async def story() -> None:
        leases, now = Leases("a", "b"), [0.0]
        one, two = claims(leases, "x/one", now), claims(leases, "y/two", now)
        assert await one.serves("a")
        assert not await two.serves("a")
        assert await two.serves("b")
        await one.release()
        now[0] += 60
        assert await two.serves("a")
        now[0] += 600
        assert not await one.serves("a")

    asyncio.run(story())


def test_a_namespace_that_is_gone_is_renewed_no_more() -> None:
    async def story() -> None:
        leases, now = Leases("a"), [0.0]
        one = claims(leases, "x/one", now)
        assert await one.serves("a")
        await one.renew()
        leases.namespaces.clear()
        leases.leases.clear()
        await one.renew()
        await one.renew()
        written: Any = leases.writes
        await one.renew()
        assert leases.writes == written
        assert not one._claims

    asyncio.run(story())


def test_a_list_of_namespaces_stands_back_where_somebody_serves_every_namespace() -> None:
    async def story() -> None:
        leases, now = Leases("a"), [0.0]
        leases.rights = [{"verbs": ["get"], "apiGroups": ["", "apps"], "resources": ["*"]}, sign("x/one")]
        two = claims(leases, "y/two", now, listed=True)
        assert not await two.serves("a")
        await two.renew()
        assert leases.writes == 0
        # The other one is uninstalled, and its rights with it.
        leases.rights = []
        now[0] += 60
        assert await two.serves("a")
        # It comes back, and is the second one now, also when we begin anew.
        leases.rights = [sign("x/one")]
        await two.release()
        assert await claims(leases, "y/two", now, listed=True).serves("a")
        assert not await claims(leases, "z/three", now, listed=True).serves("a")

    asyncio.run(story())


def test_an_own_sign_and_a_question_without_an_answer_keep_nobody_back() -> None:
    async def story() -> None:
        leases, now = Leases("a", "b"), [0.0]
        leases.rights = [sign("y/two")]
        two = claims(leases, "y/two", now, listed=True)
        assert await two.serves("a")
        leases.rights = None
        assert await two.serves("b")

    asyncio.run(story())
