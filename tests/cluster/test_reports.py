"""The report service with real tokens over TLS: a pod speaks for its own open attempt, and nobody else does.

Whatever is refused leaves no trace but one line in the log.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import pytest
from minio import Minio as Client
from minio.commonconfig import CopySource
from minio.credentials.providers import AssumeRoleProvider
from minio.error import S3Error

from cluster.plane import study
from cluster.pods import Service, Tokens, certify
from cluster.replicas import Replica, replica
from minio_server import KEYS, Minio, minio
from testbed import Cluster
from testbed.access import Api
from testbed.wait import until
from trialkeeper.contract import CREDENTIALS_PATH, REPORT_PATH, Message, MetricSummary, prefix
from trialkeeper_operator.serve.reports import BODY_SECONDS

BUCKET = "own"
GROUP = "/apis/trialkeeper.dev/v1alpha1/namespaces"
pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Served:
    """A namespace with an experiment of two trials whose pods run, the service, and the store that it gives keys to."""

    api: Api
    namespace: str
    service: Service
    tokens: Tokens
    operator: Replica
    store: Minio

    def trial(self, name: str) -> Any:
        return self.api.get(f"{GROUP}/{self.namespace}/trials/{name}")

    def pod(self, name: str) -> Any:
        return self.api.get(f"/api/v1/namespaces/{self.namespace}/pods/{name}")

    def token(self, pod: str = "exp-0-a1") -> str:
        return self.tokens.bound(self.pod(pod))

    def report(self, authorization: str | None, body: bytes | Any = b"", **how: Any) -> tuple[int, Any]:
        return self.service.ask(REPORT_PATH, authorization, body, **how)

    def no_effect(self, trial: str = "exp-0") -> str:
        """What must not change: the version of a trial."""
        return str(self.trial(trial)["metadata"]["resourceVersion"])


def namespace(api: Api) -> str:
    name = f"r-{uuid.uuid4().hex[:8]}"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    until("its service account", lambda: api.items(f"/api/v1/namespaces/{name}/serviceaccounts"), seconds=30)
    return name


def begin(api: Api, where: str, name: str) -> None:
    """An experiment of two trials that run for as long as anybody looks."""
    api.request("POST", f"{GROUP}/{where}/experiments", study(name, where, maxTrials=2, ends_after="1h"))

    def run() -> bool:
        trials = [t for t in api.items(f"{GROUP}/{where}/trials") if t["spec"]["experiment"] == name]
        return [bool(t.get("status", {}).get("pod")) for t in trials] == [True, True]

    until(f"the trials of {name}", run, seconds=30)


@pytest.fixture(scope="module")
def served(fakes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    api = fakes.control.api()
    own, other = namespace(api), namespace(api)
    keys = folder / "keys"
    keys.mkdir()
    (keys / "access-key").write_text(KEYS["AWS_ACCESS_KEY_ID"])
    (keys / "secret-key").write_text(KEYS["AWS_SECRET_ACCESS_KEY"])
    tls = certify(folder / "tls")
    with ExitStack() as stack:
        store = stack.enter_context(minio(folder))
        settings = {
            "report": {"url": "https://127.0.0.1", "tlsDir": str(tls)},
            "store": {"mode": "embedded", "endpoint": store.endpoint, "bucket": BUCKET, "credentialsDir": str(keys)},
            "statusSeconds": 1,
        }
        running = stack.enter_context(replica(fakes, folder, "reports", own, [own, other], settings=settings))
        begin(api, own, "exp")
        begin(api, own, "next")
        begin(api, other, "exp")
        until("the bucket", lambda: root(store).bucket_exists(BUCKET), seconds=30)
        service = Service(running.report_port, tls / "ca.crt")
        until("the service", lambda: service.ask("/", method="GET")[0], seconds=30)
        yield Served(api, own, service, Tokens(fakes), running, store)


def root(store: Minio) -> Client:
    """The store with all rights."""
    return Client(
        store.endpoint.removeprefix("http://"),
        access_key=KEYS["AWS_ACCESS_KEY_ID"],
        secret_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        secure=False,
        region="us-east-1",
    )


def message(**fields: Any) -> bytes:
    """A report of the first attempt."""
    now = time.time()
    said = Message(attempt=1, time=now, firstReport=now, iteration=3, metrics={"loss": MetricSummary(0.25, 0.25, 0.5)})
    return json.dumps(asdict(said) | fields).encode()


def test_a_pod_reports_for_its_own_attempt(served: Served) -> None:
    pod = served.pod("exp-1-a1")
    status, answer = served.report(f"Bearer {served.tokens.bound(pod)}", message(podUid=pod["metadata"]["uid"]))
    assert (status, answer["settings"]["objectives"][0]["metric"]) == (200, "loss")

    def heard() -> bool:
        return bool(served.trial("exp-1")["status"].get("metrics", {}).get("loss", {}).get("last") == 0.25)

    until("the report in the trial's status", heard, seconds=20)
    assert served.trial("exp-1")["status"]["iteration"] == 3


def unauthentic(served: Served) -> dict[str, str | None]:
    """Authorization headers that prove nothing, by what is wrong with them."""
    good = served.token()
    tokens = served.tokens
    public = (tokens.cluster.control.authority.folder / "tokens.pub").read_text()
    head, claims, signature = good.split(".")
    kid = json.loads(base64.urlsafe_b64decode(head + "=="))["kid"]

    def forged(header: Any) -> str:
        text = header if isinstance(header, str) else json.dumps(header)
        return f"Bearer {base64.urlsafe_b64encode(text.encode()).decode().rstrip('=')}.{claims}.{signature}"

    pod = {"name": "exp-0-a1", "uid": served.pod("exp-0-a1")["metadata"]["uid"]}
    return {
        "no header": None,
        "nothing": "Bearer nothing",
        "no token": "Bearer ",
        "another scheme": f"Basic {good}",
        "without end": "Bearer " + "x" * 7000,
        "not even text": "Bearer \xff\xfe.a.b",
        "wrong audience": f"Bearer {tokens.bound(served.pod('exp-0-a1'), 'somebody.else')}",
        "for the API server": f"Bearer {tokens.bound(served.pod('exp-0-a1'), '')}",
        "of no pod": f"Bearer {tokens.of_account(served.namespace)}",
        "expired": f"Bearer {tokens.expired(good)}",
        "of another issuer": f"Bearer {tokens.signed(good, {'iss': 'https://elsewhere.example'})}",
        "without an end of its life": f"Bearer {tokens.signed(good, {'exp': None})}",
        "a pod without a uid": "Bearer " + tokens.signed(good, {"kubernetes.io": {"pod": {"name": "exp-0-a1"}}}),
        "a pod that is a list": "Bearer " + tokens.signed(good, {"kubernetes.io": {"pod": [pod]}}),
        "signed by a secret": f"Bearer {tokens.signed(good, {}, key='s' * 64, algorithm='HS256')}",
        "signed by nobody": forged({"alg": "none", "kid": kid}),
        "signed with the public key": forged({"alg": "HS256", "kid": kid, "key": public[:100]}),
        "of another kind of key": forged({"alg": "ES256", "kid": kid}),
        "of a key that is not known": forged({"alg": "RS256", "kid": "somebody's"}),
        "with other claims": f"Bearer {head}.{claims[:-4]}AAAA.{signature}",
        "with a header without end": forged("[" * 4000),
        "with a header that is a list": forged([1]),
    }


@pytest.mark.parametrize("path", [REPORT_PATH, CREDENTIALS_PATH])
def test_what_proves_nothing_is_refused(served: Served, path: str) -> None:
    before = served.no_effect()
    for what, authorization in unauthentic(served).items():
        for _ in range(2):
            status, answer = served.service.ask(path, authorization, message())
            assert (status, list(answer)) == (401, ["error"]), f"{what}: {answer}"
    assert served.no_effect() == before
    assert served.operator.process.poll() is None


@pytest.mark.parametrize("path", [REPORT_PATH, CREDENTIALS_PATH])
def test_a_pod_that_is_not_the_open_attempts_is_refused(served: Served, path: str) -> None:
    name, api = "next-0-a1", served.api
    dead = served.pod(name) if served.trial("next-0")["status"]["attempt"] == 1 else None
    stranger = pod_of_a_stranger(
        name if dead is None else "next-0-a7", served.pod("next-0-a2" if dead is None else name)
    )
    tokens = {}
    if dead is not None:
        tokens["a dead attempt's"] = served.tokens.bound(dead)
        api.request("DELETE", f"/api/v1/namespaces/{served.namespace}/pods/{name}")
        until(
            "the next attempt", lambda: (served.trial("next-0")["status"].get("pod") or {}).get("name") == "next-0-a2"
        )
    made = api.request("POST", f"/api/v1/namespaces/{served.namespace}/pods", stranger)
    tokens["a stranger's with our labels"] = served.tokens.bound(made)
    elsewhere = namespace(api)
    twin = {**stranger, "metadata": {**stranger["metadata"], "name": "exp-0-a1"}}
    tokens["the right name's in another namespace"] = served.tokens.bound(
        api.request("POST", f"/api/v1/namespaces/{elsewhere}/pods", twin)
    )
    before = served.no_effect("next-0"), served.no_effect()
    for what, token in tokens.items():
        for _ in range(2):
            status, answer = served.service.ask(path, f"Bearer {token}", message())
            assert (status, list(answer)) == (403, ["error"]), f"{what}: {answer}"
    assert (served.no_effect("next-0"), served.no_effect()) == before
    api.request("DELETE", f"/api/v1/namespaces/{served.namespace}/pods/{made['metadata']['name']}")


def pod_of_a_stranger(name: str, like: Any) -> dict[str, Any]:
    """A pod that looks like one of a trial's, but that no trial owns."""
    labels = like["metadata"]["labels"]
    spec = {"containers": [{"name": "trainer", "image": "t"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def test_a_pod_cannot_speak_for_another_trial(served: Served) -> None:
    before = served.no_effect()
    other = served.pod("exp-0-a1")["metadata"]["uid"]
    for said in (message(podUid=other), message(attempt=2), message(attempt=0)):
        assert served.report(f"Bearer {served.token('exp-1-a1')}", said)[0] == 403
    assert served.no_effect() == before


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 65536):
        yield b"x" * 65536


def bodies() -> dict[str, tuple[bytes | Iterator[bytes], int]]:
    """Bodies that are no reports, and the answer to each."""
    large = 10 * 1024 * 1024
    return {
        "10 MB": (b"x" * large, 413),
        "10 MB in chunks": (chunks(large), 413),
        "nothing": (b"", 400),
        "half of JSON": (message()[:-5], 400),
        "a list": (b"[]", 400),
        "a number": (b"1", 400),
        "no text": (b"\xff\xfe\xfd", 400),
        "deep JSON": (b"[" * 6000 + b"]" * 6000, 400),
        "deep JSON inside": (message()[:-1] + b',"x":' + b"[" * 4000 + b"]" * 4000 + b"}", 400),
        "another version": (message(v=2), 400),
        "a number that is none": (message(time=float("nan")), 400),
        "a number without end": (message(trainedSeconds=float("inf")), 400),
        "a metric without end": (message(metrics={"loss": {"last": float("inf"), "min": 0, "max": 0}}), 400),
        "a number of a thousand digits": (message()[:-1] + b',"time":' + b"9" * 1000 + b"}", 400),
        "a time that no calendar has": (message(time=1e300), 400),
        "a first report that no calendar has": (message(firstReport=1e18), 400),
        "a negative time": (message(trainedSeconds=-1), 400),
        "iterations that are text": (message(iteration="3"), 400),
        "metrics that are a list": (message(metrics=[1]), 400),
        "an end that nobody knows": (message(end="won"), 400),
    }


def test_a_body_that_is_no_report_is_refused(served: Served) -> None:
    before, authorization = served.no_effect(), f"Bearer {served.token()}"
    for what, (body, expected) in bodies().items():
        status, answer = served.report(authorization, body)
        assert (status, list(answer)) == (expected, ["error"]), f"{what}: {answer}"
    assert served.no_effect() == before
    # Without a token nothing of it is read.
    assert served.report(None, b"x" * 10_000_000)[0] == 413
    assert served.report(None, chunks(10_000_000))[0] == 401


def test_other_methods_and_paths_are_refused(served: Served) -> None:
    authorization = f"Bearer {served.token()}"
    for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
        assert served.service.ask(REPORT_PATH, authorization, method=method)[0] == 405
    for path in ("/", "/v1", "/v1/report/", "/v2/report", "/metrics", "/healthz", "/v1/../v1/report%00"):
        assert served.service.ask(path, authorization, message())[0] == 404


def test_who_is_slow_is_not_waited_for(served: Served) -> None:
    head = f"POST {REPORT_PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token()}\r\n"
    with served.service.connect() as slow:
        slow.sendall(f"{head}Content-Length: 200\r\n\r\n{{".encode())
        began = time.monotonic()
        answer = slow.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 3 * BODY_SECONDS
        assert slow.recv(4096) == b""  # and the connection is closed


def test_what_is_refused_is_logged_once(served: Served) -> None:
    lines = served.operator.said("refused")
    told = [(line["sender"], line["message"]) for line in lines]
    assert len(told) == len(set(told)) > 5
    assert not served.operator.said("Error handling request")
    assert not [line for line in served.operator.lines() if line["level"] == "error" or "traceback" in line]
    assert not [line for line in served.operator.lines() if served.token()[:40] in json.dumps(line)]


# Keys to the store.


def keys(served: Served, pod: str) -> Client:
    """The store as a pod reaches it by the keys that it is given."""
    status, given = served.service.ask(CREDENTIALS_PATH, f"Bearer {served.token(pod)}")
    assert (status, sorted(given)) == (200, ["accessKey", "expires", "secretKey", "sessionToken"])
    assert given["accessKey"] != KEYS["AWS_ACCESS_KEY_ID"]
    assert 1000 < given["expires"] - time.time() <= 3600
    return Client(
        served.store.endpoint.removeprefix("http://"),
        access_key=given["accessKey"],
        secret_key=given["secretKey"],
        session_token=given["sessionToken"],
        secure=False,
        region="us-east-1",
    )


def place(served: Served, namespace: str, experiment: str) -> str:
    """The prefix of an experiment."""
    found = served.api.get(f"{GROUP}/{namespace}/experiments/{experiment}")["metadata"]
    return prefix(namespace, experiment, found["uid"], 0).rpartition("/")[0]


def put(client: Client, key: str, data: bytes = b"1") -> None:
    from io import BytesIO

    client.put_object(BUCKET, key, BytesIO(data), len(data))


def denied(what: str, call: Any) -> None:
    with pytest.raises(S3Error) as refusal:
        call()
    assert refusal.value.code == "AccessDenied", f"{what}: {refusal.value.code}"


def test_keys_open_their_own_experiment(served: Served) -> None:
    own, client = place(served, served.namespace, "exp"), keys(served, "exp-0-a1")
    key = f"{own}/00000/attempts/000001.json"
    put(client, key, b"claimed")
    assert client.get_object(BUCKET, key).read() == b"claimed"
    assert [o.object_name for o in client.list_objects(BUCKET, f"{own}/0", recursive=True)] == [key]
    client.copy_object(BUCKET, f"{own}/00001/copy", CopySource(BUCKET, key))
    for made in (key, f"{own}/00001/copy"):
        client.remove_object(BUCKET, made)
    assert list(client.list_objects(BUCKET, f"{own}/0", recursive=True)) == []


def test_keys_open_nothing_else(served: Served) -> None:
    others = [served.api.items("/apis/trialkeeper.dev/v1alpha1/experiments")]
    own, client = place(served, served.namespace, "exp"), keys(served, "exp-0-a1")
    elsewhere = next(
        e["metadata"]["namespace"]
        for e in others[0]
        if e["metadata"]["namespace"] not in (served.namespace,)
        and e["metadata"]["name"] == "exp"
        and e["metadata"]["namespace"].startswith("r-")
    )
    foreign = {
        "another experiment": place(served, served.namespace, "next"),
        "the same name in another namespace": place(served, elsewhere, "exp"),
        "a name that begins like ours": f"{own}x",
        "the namespace itself": served.namespace,
        "another bucket's root": "",
    }
    for what, where in foreign.items():
        key = f"{where}/secret".lstrip("/")
        put(root(served.store), key, b"secret")
        denied(f"read {what}", lambda key=key: client.get_object(BUCKET, key))
        denied(f"write {what}", lambda key=key: put(client, key))
        denied(f"delete {what}", lambda key=key: client.remove_object(BUCKET, key))
        denied(f"stat {what}", lambda key=key: client.get_object_tags(BUCKET, key))
        copied = CopySource(BUCKET, key)
        denied(f"copy {what}", lambda copied=copied: client.copy_object(BUCKET, f"{own}/stolen", copied))
        listed = f"{where}/" if where else ""
        denied(f"list {what}", lambda listed=listed: list(client.list_objects(BUCKET, listed)))
        assert root(served.store).get_object(BUCKET, key).read() == b"secret"
    denied("list without a slash", lambda: list(client.list_objects(BUCKET, own)))
    denied("the policy", lambda: client.get_bucket_policy(BUCKET))
    denied("another bucket", lambda: client.make_bucket("mine"))
    denied("the bucket's end", lambda: client.remove_bucket(BUCKET))
    denied("which buckets there are", client.list_buckets)


def test_keys_cannot_be_widened(served: Served) -> None:
    status, given = served.service.ask(CREDENTIALS_PATH, f"Bearer {served.token()}")
    assert status == 200
    everything = {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}
    wider = AssumeRoleProvider(
        sts_endpoint=served.store.endpoint,
        access_key=given["accessKey"],
        secret_key=given["secretKey"],
        duration_seconds=900,
        policy=json.dumps({"Version": "2012-10-17", "Statement": [everything]}),
        region="us-east-1",
    )
    with pytest.raises((S3Error, ValueError)):
        wider.retrieve()


def test_another_pod_gets_its_own_keys(served: Served) -> None:
    client = keys(served, "next-1-a1")
    put(client, f"{place(served, served.namespace, 'next')}/00001/x")
    denied("exp", lambda: put(client, f"{place(served, served.namespace, 'exp')}/00001/x"))
