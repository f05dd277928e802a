"""The report service: live values and keys to the store, for pods that prove who they are.

A request is believed for one thing: that it comes from this pod of this namespace. The pod must be one of the
trial's open attempt, and rank 0's to report; every other, a dead attempt's or another trial's, is refused. Bodies are
bounded before they are read, and whatever is refused is logged once in a while and not once a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aiohttp import web

from trialkeeper import contract
from trialkeeper.contract import Message
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.decide.pods import donors, settings
from trialkeeper_operator.reconcile.loop import Operator
from trialkeeper_operator.reconcile.ports import Forbidden, Unavailable
from trialkeeper_operator.serve.credentials import Credentials, NoKeys
from trialkeeper_operator.serve.tokens import NotAuthentic, Sender, Tokens
from trialkeeper_operator.state.cache import owner_uid

log = logging.getLogger(__name__)

BODY_LIMIT = 4 * contract.MESSAGE_LIMIT  # bytes
BODY_SECONDS = 5.0  # until a body must be here
LOG_AGAIN = 600.0  # seconds until the same refusal of the same sender is logged again
_REMEMBERED = 1024


class Refused(Exception):
    """Raised when a sender may not do what it asks."""

    def __init__(self, status: int, reason: str, who: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.who = status, reason, who


class Known(NamedTuple):
    """The sender's trial and experiment, and which of the attempt's pods it is."""

    experiment: Experiment
    trial: Trial
    sender: Sender
    rank: int = 0


class Reports:
    """The service's routes over one operator's knowledge."""

    def __init__(
        self,
        operator: Operator,
        tokens: Tokens,
        credentials: Credentials,
        counted: Callable[[str, int], None] = lambda path, status: None,
    ) -> None:
        self._operator, self._tokens, self._credentials = operator, tokens, credentials
        self._counted = counted
        self._logged: OrderedDict[tuple[str, str], float] = OrderedDict()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=BODY_LIMIT, middlewares=[self._guard])
        app.router.add_post(contract.REPORT_PATH, self._report)
        app.router.add_post(contract.CREDENTIALS_PATH, self._keys)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Turn every refusal into a plain answer; say it in the log once in a while."""
        try:
            response: web.StreamResponse = await handler(request)
        except Refused as refusal:
            self._say(refusal, request)
            response = web.json_response({"error": refusal.reason}, status=refusal.status)
        except (Unavailable, NoKeys) as unavailable:
            self._say(Refused(503, str(unavailable)), request)
            response = web.json_response({"error": "not available now"}, status=503, headers={"Retry-After": "10"})
        except web.HTTPException as other:
            self._say(Refused(other.status, other.reason), request)
            response = web.json_response({"error": other.reason}, status=other.status)
        self._counted(request.path if is_ours(request.path) else "other", response.status)
        if response.status >= 400:
            response.force_close()  # whoever is refused gets no second request on this connection
        return response

    def _say(self, refusal: Refused, request: web.Request) -> None:
        key, now = (refusal.who or str(request.remote), refusal.reason[:64]), time.monotonic()
        if now - self._logged.get(key, -LOG_AGAIN) < LOG_AGAIN:
            return
        self._logged[key] = now
        while len(self._logged) > _REMEMBERED:
            self._logged.popitem(last=False)
        log.warning("%s refused: %s", request.path, refusal.reason, extra={"sender": key[0]})

    async def _known(self, request: web.Request) -> Known:
        """Who asks, if it is the pod of an open attempt."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            sender = await self._tokens.sender(token.strip() if kind.lower() == "bearer" else "")
        except NotAuthentic as reason:
            raise Refused(401, str(reason)) from None
        with contextlib.suppress(Forbidden):  # a pod where we have no rights is none of ours
            await self._look_up(sender)
        return self._open(sender)

    async def _look_up(self, sender: Sender) -> None:
        """Ask for what is not known: an operator that has just come up has not listed everything yet."""
        world, namespace = self._operator.world, sender.namespace
        pod = world.cache.raw(names.POD, (namespace, sender.pod))
        if pod is None:
            found = await world.cluster.get(names.POD, namespace, sender.pod)
            if found is not None and _label(found):
                world.seen(names.POD, found)
                pod = found
        label = _label(pod)
        if not label:
            return
        name = (namespace, label)
        if world.cache.trial(name) is None:
            await world.look(names.TRIAL, name)
        trial = world.cache.trial(name)
        if trial is not None and world.cache.experiment((namespace, trial.spec.experiment)) is None:
            await world.look(names.EXPERIMENT, (namespace, trial.spec.experiment))

    def _open(self, sender: Sender) -> Known:
        who = str(sender)
        cache = self._operator.world.cache
        pod = cache.raw(names.POD, (sender.namespace, sender.pod))
        label = _label(pod)
        trial = cache.trial((sender.namespace, label)) if label else None
        if pod is None or pod["metadata"].get("uid") != sender.uid or trial is None or owner_uid(pod) != trial.uid:
            raise Refused(403, "the pod is not one of a trial's", who)
        experiment = cache.experiment((sender.namespace, trial.spec.experiment))
        if experiment is None or experiment.uid != trial.spec.experiment_uid:
            raise Refused(403, "the trial's experiment is gone", who)
        pods = names.pod_names(trial.name, trial.status.attempt, experiment.spec.nodes)
        if sender.pod not in pods or trial.status.attempt <= trial.status.closed:
            raise Refused(403, "the pod's attempt is over", who)
        rank = pods.index(sender.pod)
        recorded = trial.status.pod.uids if trial.status.pod else []
        if recorded[rank : rank + 1] not in ([], [""], [sender.uid]):
            raise Refused(403, "the attempt belongs to another pod", who)
        return Known(experiment, trial, sender, rank)

    async def _report(self, request: web.Request) -> web.Response:
        if request.content_length is not None and request.content_length > BODY_LIMIT:
            raise Refused(413, "the report is too large")
        known = await self._known(request)
        who = str(known.sender)
        if known.rank:
            raise Refused(403, "only rank 0 reports", who)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = Message.decode(await request.read())
        except TimeoutError:
            raise Refused(408, "the report does not arrive", who) from None
        if message is None:
            raise Refused(400, "the report is not one", who)
        if message.attempt != known.trial.status.attempt or message.podUid not in ("", known.sender.uid):
            raise Refused(403, "the report is of another attempt", who)
        self._operator.reported(known.sender.namespace, known.trial.name, message)
        held = self._operator.world.awaited(known.experiment, known.trial.name)
        told = settings(known.experiment, held) | {"mtbfSeconds": round(self._operator.world.mtbf(known.experiment))}
        return web.json_response({"settings": told}, dumps=_compact)

    async def _keys(self, request: web.Request) -> web.Response:
        known = await self._known(request)
        experiment = known.experiment
        own = contract.prefix(experiment.namespace, experiment.name, experiment.uid, 0).rpartition("/")[0]
        keys = await self._credentials.keys(own, donors(known.trial))
        return web.json_response(keys.to_json(), dumps=_compact, headers={"Cache-Control": "no-store"})


def is_ours(path: str) -> bool:
    """Whether a path is one of ours, so that nobody fills the metrics with invented ones."""
    return path in (contract.REPORT_PATH, contract.CREDENTIALS_PATH)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _label(pod: Mapping[str, Any] | None) -> str:
    """Which trial a pod says that it is of, empty if none."""
    return str((pod["metadata"].get("labels") or {}).get(names.LABEL_TRIAL) or "") if pod else ""
