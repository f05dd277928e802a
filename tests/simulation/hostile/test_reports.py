"""Reports over HTTP, of pods whose tokens are good: whatever the body is, it is answered, and stops nobody."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import aiohttp
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from simulation.hostile.garbage import TEXTS, VALUES, examples, spoiled
from simulation.hostile.test_pods import LAST_WORDS
from simulation.sweeps.surroundings import Errors
from stage import Stage
from trialkeeper.contract import REPORT_PATH
from trialkeeper_operator.reconcile import trial as reconciler
from trialkeeper_operator.reconcile.loop import Operator
from trialkeeper_operator.serve.credentials import Credentials
from trialkeeper_operator.serve.reports import Reports
from trialkeeper_operator.serve.settings import StoreSettings
from trialkeeper_operator.serve.tokens import Sender

ANSWERS = (200, 400, 403, 408, 413)
GOOD = {**LAST_WORDS, "end": "running"}
BODIES = st.one_of(
    spoiled(GOOD).map(lambda said: json.dumps(said).encode()),
    VALUES.map(lambda said: json.dumps(said).encode()),
    TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=200),
    st.sampled_from(
        (b"", b"[" * 12_000, b"{" * 12_000, b"1" * 12_000, b"x" * 200_000, b'{"v":1,"end":"running","time":1e999}')
    ),
)


class _Trusting:
    """Takes a token for what it says: `name uid`."""

    async def sender(self, token: str) -> Sender:
        name, _, uid = token.partition(" ")
        return Sender("default", name, uid)


async def _asked(client: TestClient[Any, Any], pod: Any, body: bytes) -> int:
    meta = pod["metadata"]
    headers = {"Authorization": f"Bearer {meta['name']} {meta['uid']}"}
    try:
        async with client.post(REPORT_PATH, data=body, headers=headers) as answer:
            await answer.read()
            return answer.status
    except aiohttp.ClientError:
        return 413  # the connection was closed before all of a large body had been sent


async def _told(bodies: list[bytes]) -> None:
    stage = Stage()
    await stage.began(2)
    operator = Operator(stage.memory, stage.memory, now=lambda: stage.time)
    await stage.show(operator.world)
    for index in range(2):
        await reconciler.reconcile(operator.world, ("default", f"exp-{index}"))
    await stage.show(operator.world)
    for index in range(2):
        await reconciler.reconcile(operator.world, ("default", f"exp-{index}"))
    pods = [await stage.memory.get("Pod", "default", f"exp-{index}-a1") for index in range(2)]
    reports = Reports(operator, _Trusting(), Credentials(StoreSettings()))  # type: ignore[arg-type]
    async with TestClient(TestServer(reports.application())) as client:
        for body in bodies:
            assert await _asked(client, pods[1], body) in ANSWERS
            stage.time += 40.0  # a status is written every half minute
            await reconciler.reconcile(operator.world, ("default", "exp-1"))
        assert await _asked(client, pods[0], json.dumps(GOOD).encode()) == 200
    await reconciler.reconcile(operator.world, ("default", "exp-0"))
    healthy = await stage.memory.get("Trial", "default", "exp-0")
    assert healthy is not None
    assert healthy["status"]["iteration"] == GOOD["iteration"]


@examples(25)
@given(st.lists(BODIES, min_size=1, max_size=8))
def test_whatever_a_report_is_it_is_answered_and_the_next_ones_is_heard(bodies: list[bytes]) -> None:
    errors = Errors()
    loggers = [logging.getLogger(name) for name in ("trialkeeper_operator", "aiohttp")]
    for logger in loggers:
        logger.addHandler(errors)
    try:
        asyncio.run(_told(bodies))
    finally:
        for logger in loggers:
            logger.removeHandler(errors)
    assert errors.found == []
