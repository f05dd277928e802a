"""Who may speak of several pods: each of the open attempt's gets keys, and rank 0 alone reports."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from builders import NOW, experiment, pod, trial
from trialkeeper.contract import CREDENTIALS_PATH, REPORT_PATH, Message
from trialkeeper_operator.api.times import stamp
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.reconcile.loop import Operator
from trialkeeper_operator.serve.credentials import Keys
from trialkeeper_operator.serve.reports import Reports
from trialkeeper_operator.serve.tokens import Sender


class Believing:
    """Takes a token for the name of a pod, and what is after a slash for its uid."""

    async def sender(self, token: str) -> Sender:
        name, _, uid = token.partition("/")
        return Sender("default", name, uid)


class Giving:
    async def keys(self, own: str, readable: Any = ()) -> Keys:
        return Keys("access", "secret")


@dataclass(frozen=True)
class Answer:
    status: int
    body: Mapping[str, Any]


class There(Memory):
    """A cluster in which some objects are, whoever has heard of them."""

    there: Sequence[dict[str, Any]] = ()

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        return next((dict(o) for o in self.there if o["kind"] == kind and o["metadata"]["name"] == name), None)


def ask(path: str, token: str, *, others: list[str], known: bool = True) -> Answer:
    """What the service says to one request, with the pods of three ranks, of which these are recorded."""

    async def whole() -> Answer:
        memory = There(now=lambda: NOW)
        operator = Operator(memory, memory, now=lambda: NOW)
        record = {"name": "exp-0-a1-r0", "uid": "pod-0", "others": others, "startTime": stamp(NOW)}
        pods = [pod(name=f"exp-0-a1-r{rank}", uid=f"pod-{rank}") for rank in range(3)]
        memory.there = (experiment(nodes=3), trial(attempt=1, closed=0, pod=record), *pods)
        for obj in memory.there if known else ():
            operator.world.seen(obj["kind"], obj)
        service = Reports(operator, Believing(), Giving())  # type: ignore[arg-type]
        async with TestClient(TestServer(service.application())) as client:
            body = Message(attempt=1, podUid=token.rpartition("/")[2]).encode()
            answer = await client.post(path, data=body, headers={"Authorization": f"Bearer {token}"})
            return Answer(answer.status, await answer.json())

    return asyncio.run(whole())


@pytest.mark.parametrize("rank", range(3))
def test_every_rank_gets_keys(rank: int) -> None:
    answer = ask(CREDENTIALS_PATH, f"exp-0-a1-r{rank}/pod-{rank}", others=["pod-1", ""])
    assert (answer.status, answer.body["accessKey"]) == (200, "access")


@pytest.mark.parametrize("path", [REPORT_PATH, CREDENTIALS_PATH])
def test_an_operator_that_has_just_come_up_asks_for_what_it_does_not_know(path: str) -> None:
    assert ask(path, "exp-0-a1-r0/pod-0", others=["pod-1", "pod-2"], known=False).status == 200


def test_rank_0_reports_and_no_other_does() -> None:
    assert ask(REPORT_PATH, "exp-0-a1-r0/pod-0", others=["pod-1", "pod-2"]).status == 200
    refused = ask(REPORT_PATH, "exp-0-a1-r1/pod-1", others=["pod-1", "pod-2"])
    assert (refused.status, refused.body["error"]) == (403, "only rank 0 reports")


@pytest.mark.parametrize("path", [REPORT_PATH, CREDENTIALS_PATH])
@pytest.mark.parametrize("token", ["exp-0-a1-r1/pod-1", "exp-0-a1/pod-0", "exp-0-a1-r3/pod-3", "exp-0-a2-r1/pod-1"])
def test_another_pod_gets_nothing(path: str, token: str) -> None:
    assert ask(path, token, others=["somebody", "pod-2"]).status == 403
