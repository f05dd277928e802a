"""Who sends a report: the pod's projected token, verified against the cluster's own keys.

The signature, the audience, the issuer and the expiry are checked here, offline; TokenReview is asked only where the
keys cannot be read. Which pod it is, and whether that pod may still speak, is the caller's to judge.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jwt

from trialkeeper.contract import AUDIENCE
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.reconcile.ports import ClusterError, Invalid, NotFound, Unavailable

_ALGORITHMS = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"]
TOKEN_LIMIT = 8192  # characters
_KEEP = 4096  # tokens whose verdict is remembered
_REVIEWED = 60.0  # seconds that a TokenReview's answer holds
# What a forged token can make of a parser: a header may be deep, its algorithm that of another kind of key.
_WRONG = (jwt.PyJWTError, ValueError, TypeError, AttributeError, RecursionError)
_REFRESH = 10.0  # seconds between two readings of the keys


class Sender(NamedTuple):
    """A pod, as its token says."""

    namespace: str
    pod: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}"


class NotAuthentic(Exception):
    """Raised for a token that proves nothing; the message names the reason and never the token."""


class Tokens:
    """Verifies tokens; the keys are read when one is signed by a key that is not known."""

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.time) -> None:
        self._kube, self._clock = kube, clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._issuer: str | None = None
        self._read_at = -_REFRESH
        self._closed = False  # whether the keys may not be read
        self._known: OrderedDict[bytes, tuple[Sender, float]] = OrderedDict()

    async def sender(self, token: str) -> Sender:
        """The pod that a token belongs to.

        :raises NotAuthentic: if it proves nothing.
        :raises Unavailable: if nobody can say now.
        """
        if not token or len(token) > TOKEN_LIMIT:
            raise NotAuthentic("no bearer token")
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        known = self._known.get(digest)
        if known is not None and known[1] > self._clock():
            return known[0]
        sender, until = await self._verified(token)
        self._known[digest] = (sender, until)
        while len(self._known) > _KEEP:
            self._known.popitem(last=False)
        return sender

    async def _verified(self, token: str) -> tuple[Sender, float]:
        try:
            header = jwt.get_unverified_header(token)
        except _WRONG:
            raise NotAuthentic("the bearer token is no JWT") from None
        key = await self._key(str(header.get("kid")))
        if self._closed:
            return await self._reviewed(token)
        if key is None:
            raise NotAuthentic("the token is signed by a key that this cluster does not know")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=AUDIENCE,
                issuer=self._issuer,
                options={"require": ["exp", "aud", "iss"]},
            )
            return _pod(claims.get("kubernetes.io")), float(claims["exp"])
        except _WRONG as wrong:
            raise NotAuthentic(f"the token is refused: {wrong}") from None

    async def _key(self, kid: str) -> jwt.PyJWK | None:
        now = self._clock()
        if kid not in self._keys and not self._closed and now - self._read_at >= _REFRESH:
            await self._read()
            self._read_at = now  # only now: as long as the keys cannot be read, nobody is told that his is unknown
        return self._keys.get(kid)

    async def _read(self) -> None:
        try:
            discovery = await self._kube.call("GET", "/.well-known/openid-configuration")
            keys = await self._kube.call("GET", "/openid/v1/jwks")
        except (Invalid, NotFound):
            self._closed = True
            return
        except Unavailable as error:
            if "forbidden" in str(error).lower():
                self._closed = True
                return
            raise
        self._issuer = str(discovery.get("issuer"))
        found = {}
        for raw in keys.get("keys") or ():
            try:
                found[str(raw.get("kid"))] = jwt.PyJWK(raw)
            except (jwt.PyJWTError, AttributeError):
                continue  # a kind of key that we do not know; others may still be used
        self._keys = found

    async def _reviewed(self, token: str) -> tuple[Sender, float]:
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        }
        try:
            answer = await self._kube.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)
        except Unavailable:
            raise
        except ClusterError as refusal:
            raise NotAuthentic(f"the token cannot be reviewed: {refusal}") from None
        status = answer.get("status") or {}
        if not status.get("authenticated") or AUDIENCE not in (status.get("audiences") or ()):
            raise NotAuthentic("the API server does not accept the token for this audience")
        user = status.get("user") or {}
        extra, name = user.get("extra") or {}, str(user.get("username", ""))
        claims = {
            "namespace": name.split(":")[2] if name.startswith("system:serviceaccount:") else "",
            "pod": {
                "name": (extra.get("authentication.kubernetes.io/pod-name") or [""])[0],
                "uid": (extra.get("authentication.kubernetes.io/pod-uid") or [""])[0],
            },
        }
        return _pod(claims), self._clock() + _REVIEWED


def _pod(claims: Any) -> Sender:
    pod = claims.get("pod") if isinstance(claims, Mapping) else None
    if not isinstance(pod, Mapping) or not pod.get("uid") or not pod.get("name"):
        raise NotAuthentic("the token belongs to no pod")
    return Sender(str(claims.get("namespace", "")), str(pod["name"]), str(pod["uid"]))
