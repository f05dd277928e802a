"""Results of an Experiment in a cluster: what kubectl is asked, the way to the store, and what people are told."""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import builders
import trialkeeper
from fake_s3 import Fake, fake_s3
from shelf import Shelf
from trialkeeper.results.known import NotThere
from trialkeeper.results.reading import Results
from trialkeeper_operator.local import kubectl
from trialkeeper_operator.local.process import alive

UID = "12345678-uid"
KEYS = {"access-key": base64.b64encode(b"chart\n").decode(), "secret-key": base64.b64encode(b"secret").decode()}
PROGRAM = """#!{python}
import json, os, signal, sys, time
place = os.path.dirname(os.path.abspath(__file__))
world = json.load(open(place + "/world.json"))
arguments = sys.argv[1:]
with open(place + "/asked", "a") as file:
    file.write(json.dumps(arguments) + "\\n")
if arguments[0] == "port-forward":
    if world["forward"] is None:
        sys.exit("error: services is (Forbidden)")
    far = arguments[-1].split(":")
    with open(place + "/forwards", "a") as file:
        file.write("%d\\n" % os.getpid())
    print("Forwarding from 127.0.0.1:%s -> %s" % (far[0] or world["forward"], far[1]), flush=True)
    signal.pause()
kind = arguments[1]
namespace = next((a.partition("=")[2] for a in arguments if a.startswith("--namespace=")), "default")
name = arguments[arguments.index("--") + 1] if "--" in arguments else ""
found = [o for o in world["objects"] if o["kind"] == kind and o["metadata"]["namespace"] == namespace]
if kind in world["forbidden"]:
    sys.exit("Error from server (Forbidden): " + kind + " is forbidden")
if not name:
    print(json.dumps({{"items": found}}))
elif not [o for o in found if o["metadata"]["name"] == name]:
    sys.exit('Error from server (NotFound): %s "%s" not found' % (kind, name))
else:
    print(json.dumps(next(o for o in found if o["metadata"]["name"] == name)))
"""


class World:
    """A cluster as a kubectl that reads a file has it, and the store in it."""

    def __init__(self, folder: Path, server: Fake) -> None:
        self.folder, self.server = folder, server
        program = folder / "kubectl"
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(0o755)
        self.objects: list[dict[str, Any]] = []
        self.forbidden: list[str] = []
        self.forward: int | None = int(server.endpoint.rpartition(":")[2])
        self.put("experiments.trialkeeper.dev", {**builders.experiment(uid=UID), "status": {"phase": "Running"}})
        self.put("lease", builders_of("trialkeeper-serves", spec={"holderIdentity": "system/tk-leader"}))
        store = {"mode": "embedded", "endpoint": "http://tk-store.system.svc:9000", "bucket": "trials"}
        self.config(store, lease="tk-leader")
        self.config({"mode": "none"}, lease="other-leader", name="other")
        self.deployment([{"name": "store", "secret": {"secretName": "tk-store"}}])
        self.put("secret", builders_of("tk-store", "system", data=KEYS))

    def put(self, kind: str, obj: dict[str, Any]) -> None:
        meta = {"namespace": "default", **obj["metadata"]}
        self.objects = [
            o for o in self.objects if (o["kind"], o["metadata"]["name"]) != (kind, meta["name"])
        ] + [{**obj, "kind": kind, "metadata": meta}]  # fmt: skip
        self.save()

    def config(self, store: dict[str, Any], *, lease: str, name: str = "tk") -> None:
        text = yaml.safe_dump({"lease": lease, "store": store})
        self.put("configmap", builders_of(name, "system", data={"config.yaml": text}))

    def deployment(self, volumes: list[dict[str, Any]]) -> None:
        spec = {"template": {"spec": {"volumes": volumes}}}
        self.put("deployment", builders_of("tk", "system", spec=spec))

    def experiment(self, **changes: Any) -> None:
        status = changes.pop("status", {"phase": "Running"})
        self.put("experiments.trialkeeper.dev", {**builders.experiment(uid=UID, **changes), "status": status})

    def trial(self, index: int = 0, **status: Any) -> None:
        spec = {"index": index, "parameters": {"lr": 0.5}, "experimentUid": UID}
        raw = builders.trial(f"exp-{index}", uid=f"t{index}", spec=spec, **status)
        raw["metadata"]["ownerReferences"][0]["uid"] = UID
        self.put("trials.trialkeeper.dev", raw)

    def save(self) -> None:
        said = {"objects": self.objects, "forbidden": self.forbidden, "forward": self.forward}
        (self.folder / "world.json").write_text(json.dumps(said))

    def upload(self, shelf: Shelf) -> None:
        for path in sorted(p for p in shelf.root.rglob("*") if p.is_file()):
            self.server.objects[path.relative_to(shelf.root).as_posix()] = path.read_bytes(), {}

    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "asked").read_text().splitlines()]

    def forwards(self) -> list[int]:
        file = self.folder / "forwards"
        return [int(line) for line in file.read_text().split()] if file.exists() else []


def builders_of(name: str, namespace: str = "default", **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, **more}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(kubectl, "AGAIN", 0.01)
    with fake_s3() as server:
        made = World(tmp_path, server)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        yield made


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path / "store", "default/exp-12345678/00000")
    made.begin()
    made.rows(1, range(1, 4))
    made.save(1, 3)
    return made


def await_end(process: int) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if not alive(process):
            return
        pause.wait(0.01)
    raise AssertionError("kubectl lives on")


def test_the_charts_store_is_reached_by_a_forwarded_port(world: World, shelf: Shelf) -> None:
    world.upload(shelf)
    world.trial(0, phase="Running")
    world.trial(1, phase="Pending")
    with trialkeeper.open_results("exp/default/exp") as results:
        assert [(t.name, t.state, len(t.history())) for t in results.trials] == [
            ("exp-0", "Running", 3),
            ("exp-1", "Pending", 0),
        ]
        assert results.trial(0).checkpoints[0].whole
        assert results.trial(0).parameters == {"lr": 0.5}
        assert not results.finished
        world.experiment(status={"phase": "Succeeded", "completionTime": "2026-01-01T00:00:00.000000Z"})
        results.refresh()
        assert results.finished
        (process,) = world.forwards()
        assert alive(process)
    await_end(process)
    credentials = {r.headers["authorization"].partition("Credential=")[2][:6] for r in world.server.requests}
    assert credentials == {"chart/"}
    assert ["port-forward", "--namespace=system", "--address=127.0.0.1", "service/tk-store", ":9000"] in world.asked()


def test_an_experiment_that_is_deleted_is_over(world: World, shelf: Shelf) -> None:
    world.upload(shelf)
    world.trial(0, phase="Running")
    with trialkeeper.open_results("exp/exp") as results:
        world.objects = [o for o in world.objects if o["metadata"]["name"] != "exp"]
        world.save()
        results.refresh()
        assert (results.finished, [t.name for t in results.trials]) == (True, ["exp-0"])


def test_a_forwarding_that_ends_is_begun_again(world: World) -> None:
    forward = kubectl.Forward("system", "service/tk-store", 9000)
    try:
        assert forward.port == world.forward
        pause = threading.Event()
        for times in (1, 2):
            os.kill(world.forwards()[-1], signal.SIGKILL)
            for _ in range(1000):
                if len(world.forwards()) > times:
                    break
                pause.wait(0.01)
        assert len(world.forwards()) == 3
        assert world.asked()[-1][-1] == f"{forward.port}:9000", "at the same port"
    finally:
        forward.close()
    await_end(world.forwards()[-1])


def test_kubectl_does_not_outlive_a_reader_that_is_killed(world: World) -> None:
    import subprocess

    code = (
        "from trialkeeper_operator.local.kubectl import Forward; import os, signal\n"
        "Forward('system', 'service/tk-store', 9000); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    (process,) = world.forwards()
    await_end(process)


def opened(where: str = "exp/exp") -> Results:
    with trialkeeper.open_results(where) as results:
        return results


def test_what_is_missing_is_said(world: World) -> None:
    with pytest.raises(NotThere, match=r"no Experiment nothing in namespace team: write exp/NAMESPACE/nothing"):
        opened("exp/team/nothing")
    world.config({"mode": "none"}, lease="tk-leader")
    with pytest.raises(NotThere, match="the installation has no store"):
        opened()
    world.config({"mode": "embedded", "bucket": "trials", "endpoint": "https://x.y.svc"}, lease="tk-leader")
    with pytest.raises(NotThere, match="from inside of the cluster only"):
        opened()
    world.objects = [o for o in world.objects if o["kind"] != "configmap"]
    world.save()
    with pytest.raises(NotThere, match="no installation of Trialkeeper in namespace system"):
        opened()


@pytest.mark.parametrize("kind", ["secret", "configmap", "deployment"])
def test_a_right_that_is_missing_is_named(kind: str, world: World) -> None:
    world.forbidden = [kind]
    world.save()
    with pytest.raises(kubectl.Refusal, match=rf"you may not read {kind}.* in namespace system: ask for a Role"):
        opened()


def test_a_port_that_may_not_be_forwarded_is_said(world: World) -> None:
    world.forward = None
    world.save()
    with pytest.raises(kubectl.Refusal, match="may not forward a port of service tk-store in namespace system"):
        opened()


def test_without_the_lease_the_usual_namespace_is_looked_into(world: World) -> None:
    world.forbidden = ["lease"]
    world.save()
    with pytest.raises(NotThere, match="in namespace trialkeeper-system"):
        opened()


def test_a_bucket_of_ones_own_with_its_secret(world: World, shelf: Shelf) -> None:
    world.upload(shelf)
    world.trial(0)
    bucket = {"bucket": "trials", "endpoint": world.server.endpoint, "secretName": "mine", "caConfigMap": "ca"}
    world.experiment(storage={"s3": bucket})
    world.put("secret", builders_of("mine", data={**KEYS, "access-key": base64.b64encode(b"own").decode()}))
    world.put("configmap", builders_of("ca", data={"ca.crt": "-----BEGIN CERTIFICATE-----"}))
    with trialkeeper.open_results("exp/exp") as results:
        assert len(results.history("exp-0")) == 3
    assert {r.headers["authorization"].partition("Credential=")[2][:4] for r in world.server.requests} == {"own/"}
    assert world.forwards() == []
    world.put("secret", builders_of("mine", data={"access-key": "!"}))
    with pytest.raises(NotThere, match="has no access-key and secret-key"):
        opened()


def test_a_volume_is_said_to_be_reached_by_pods_only(world: World) -> None:
    world.experiment(storage={"volume": {"claimName": "mine", "path": "/checkpoints"}})
    with pytest.raises(NotThere, match=r"volume claim mine .* trialkeeper results /checkpoints/default"):
        opened()


def test_an_external_store_with_its_own_authority(world: World, shelf: Shelf) -> None:
    world.upload(shelf)
    world.trial(0)
    world.config({"mode": "external", "endpoint": world.server.endpoint, "bucket": "trials"}, lease="tk-leader")
    authority = {"name": "trust", "items": [{"key": "own.pem", "path": "ca.crt"}]}
    secret = {"name": "store", "secret": {"secretName": "tk-store"}}
    world.deployment([secret, {"name": "store-ca", "configMap": authority}])
    world.put("configmap", builders_of("trust", "system", data={"own.pem": "-----BEGIN CERTIFICATE-----"}))
    with trialkeeper.open_results("exp/exp") as results:
        assert len(results.history(0)) == 3


def test_a_finished_trial_that_was_taken_over_has_its_donors_story(world: World, tmp_path: Path) -> None:
    donor = Shelf(tmp_path / "store", "default/old-87654321/00000")
    donor.begin()
    donor.rows(1, range(1, 6))
    world.upload(donor)
    key = f"{donor.prefix}/{donor.save(1, 4)}"
    checkpoint = {"attempt": 1, "iteration": 4, "key": key, "time": "2026-01-01T00:00:00.000000Z"}
    world.upload(donor)
    world.trial(0, phase="Succeeded", checkpoint=checkpoint)
    with trialkeeper.open_results("exp/exp") as results:
        assert [row["training_iteration"] for row in results.history(0)] == [1, 2, 3, 4, 5]
        assert [c.iteration for c in results.trial(0).checkpoints] == [4]


def test_without_kubectl_it_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(world.folder / "nowhere"))
    with pytest.raises(kubectl.NoKubectl, match="there is no kubectl"):
        opened()
