"""Pods of trials as the report service meets them: their tokens, and requests over TLS, well made and badly."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import trustme

from testbed import Cluster
from trialkeeper.contract import AUDIENCE

JSON = {"Content-Type": "application/json"}


def certify(folder: Path) -> Path:
    """A folder with the certificate of a service on the loopback, as the chart's Secret has it."""
    folder.mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    issued.private_key_pem.write_to_path(str(folder / "tls.key"))
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(folder / "tls.crt"), append=True)
    return folder


@dataclass(frozen=True)
class Service:
    """The report service as somebody reaches it who may mean harm."""

    port: int
    ca: Path

    def connect(self) -> ssl.SSLSocket:
        """A connection, for those who speak HTTP by hand."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        return ssl.create_default_context(cafile=str(self.ca)).wrap_socket(plain, server_hostname="127.0.0.1")

    def ask(
        self,
        path: str,
        authorization: str | None = None,
        body: bytes | Any = b"",
        *,
        method: str = "POST",
        headers: Mapping[str, str] = JSON,
    ) -> tuple[int, Any]:
        """(status, decoded body) of one request; a body that is no bytes is sent in chunks."""
        context = ssl.create_default_context(cafile=str(self.ca))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=context)
        given = {**headers, **({} if authorization is None else {"Authorization": authorization})}
        try:
            try:
                connection.request(method, path, body, given, encode_chunked=not isinstance(body, bytes))
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                pass  # it does not read to the end what it refuses; its answer may be here all the same
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()


@dataclass(frozen=True)
class Tokens:
    """Makes tokens: those that the API server gives, and those that only its keys could sign."""

    cluster: Cluster

    def bound(self, pod: Mapping[str, Any], audience: str = AUDIENCE) -> str:
        """The token that a kubelet would put into a pod; no audience: the API server's own."""
        meta = pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        return self._requested(meta["namespace"], audience, {"boundObjectRef": bound})

    def of_account(self, namespace: str) -> str:
        """A token of our audience that belongs to no pod."""
        return self._requested(namespace, AUDIENCE, {})

    def _requested(self, namespace: str, audience: str, more: dict[str, Any]) -> str:
        spec = {"expirationSeconds": 3600, **({"audiences": [audience]} if audience else {}), **more}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        where = f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token"
        return str(self.cluster.control.api().request("POST", where, body)["status"]["token"])

    def signed(self, token: str, claims: Mapping[str, Any], *, key: str | None = None, algorithm: str = "RS256") -> str:
        """A token with other claims, signed by the cluster's key or by another one."""
        told = jwt.decode(token, options={"verify_signature": False})
        kid = jwt.get_unverified_header(token)["kid"]
        key = (self.cluster.control.authority.folder / "tokens.key").read_text() if key is None else key
        return jwt.encode({**told, **claims}, key, algorithm, headers={"kid": kid})

    def expired(self, token: str) -> str:
        past = int(time.time()) - 3600
        return self.signed(token, {"iat": past - 600, "nbf": past - 600, "exp": past})
