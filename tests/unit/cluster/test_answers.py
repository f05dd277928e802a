"""What each answer of the API server means."""

from __future__ import annotations

from typing import Any

import pytest

from trialkeeper_operator.cluster.answers import decoded, error
from trialkeeper_operator.reconcile import ports

QUOTA = 'pods "p" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2'
NEW_QUOTA = 'pods "p" is forbidden: status unknown for quota: q, resources: pods'
RBAC = 'pods is forbidden: User "u" cannot create resource "pods" in API group "" in the namespace "n"'
ENDING = {"details": {"causes": [{"reason": "NamespaceTerminating"}]}}


@pytest.mark.parametrize(
    ("verb", "code", "body", "kind"),
    [
        ("GET", 200, {}, None),
        ("POST", 201, {}, None),
        ("GET", 404, {}, ports.NotFound),
        ("POST", 404, {"details": {"kind": "namespaces"}}, ports.Unavailable),
        ("POST", 404, {"details": {"kind": "pods"}}, ports.NotFound),
        ("POST", 409, {"reason": "AlreadyExists"}, ports.AlreadyExists),
        ("PUT", 409, {"reason": "Conflict"}, ports.Conflict),
        ("GET", 410, {}, ports.Expired),
        ("POST", 403, {"message": QUOTA}, ports.QuotaExceeded),
        ("POST", 403, {"message": NEW_QUOTA}, ports.QuotaExceeded),
        ("POST", 403, {"message": RBAC}, ports.Forbidden),
        ("POST", 403, ENDING, ports.Unavailable),
        ("POST", 403, {"message": 'pods "p" is forbidden: violates PodSecurity "restricted:latest"'}, ports.Invalid),
        ("POST", 422, {}, ports.Invalid),
        ("PUT", 413, {}, ports.Invalid),
        ("PUT", 500, {"message": "etcdserver: request is too large"}, ports.Invalid),
        ("PUT", 500, {}, ports.Unavailable),
        ("GET", 429, {}, ports.Unavailable),
        ("GET", 401, {}, ports.Unavailable),
    ],
)
def test_an_answer_means_one_thing(verb: str, code: int, body: dict[str, Any], kind: type | None) -> None:
    found = error(verb, code, body)
    assert (None if found is None else type(found)) is kind


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7.0), ("3600", 60.0), ("-1", None), ("nan", None), ("soon", None), (None, None)]
)
def test_retry_after_is_honoured_within_bounds(said: str | None, seconds: float | None) -> None:
    found = error("GET", 429, {}, said)
    assert isinstance(found, ports.Unavailable)
    assert found.retry_after == seconds


def test_a_page_of_a_proxy_becomes_its_first_words() -> None:
    assert decoded(b"<html>bad gateway")["message"] == "<html>bad gateway"
    assert decoded(b"[1]")["message"] == "[1]"
