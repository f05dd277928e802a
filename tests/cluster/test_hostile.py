"""Thirty hostile or wrong objects: each gets its sentence, none of them stops another.

They stand side by side in namespaces that one operator serves, with a healthy experiment among them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.conftest import Play
from cluster.plane import ENDS_AFTER, Count, Plane, conditions, over, study
from testbed.wait import awaited
from trialkeeper_operator.api import names
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.cluster.paths import path
from trialkeeper_operator.decide.pods import Site
from trialkeeper_operator.reconcile.ports import Invalid, Object

TRAINER = {"name": "trainer", "image": "t", "command": ["python", "t.py"]}
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
SITE = Site(report="https://report.example:8443", report_ca="x", store="s3://trials?endpoint=http://10.255.255.1:9000")


@dataclass
class Stage:
    """What a case finds: a namespace of its own, and a client with all rights."""

    kube: Kube
    namespace: str

    async def create(self, body: Object) -> Object:
        return await self.kube.create(body)

    async def post(self, plural: str, body: dict[str, Any], group: str = "/api/v1") -> Object:
        return await self.kube.call("POST", f"{group}/namespaces/{self.namespace}/{plural}", body)

    def study(self, name: str = "exp", *, template: dict[str, Any] | None = None, **spec: Any) -> Object:
        """An experiment of two trials; `template` changes its pod's spec."""
        made = study(name, self.namespace, **{"maxTrials": 2, **spec})
        made["spec"]["template"]["spec"] |= template or {}
        return made

    async def quota(self, name: str, hard: dict[str, str]) -> None:
        """A quota, once it is counted."""
        await self.post("resourcequotas", {"metadata": {"name": name}, "spec": {"hard": hard}})
        where = f"/api/v1/namespaces/{self.namespace}/resourcequotas/{name}"

        async def counted() -> bool:
            return bool((await self.kube.call("GET", where)).get("status", {}).get("used"))

        await awaited("the quota to count", counted, seconds=30)

    async def experiment(self, name: str = "exp") -> Object:
        found = await self.kube.get(names.EXPERIMENT, self.namespace, name)
        assert found is not None
        return found

    async def trial(self, name: str = "exp-0") -> dict[str, Any]:
        found = await self.kube.get(names.TRIAL, self.namespace, name)
        return (found or {}).get("status") or {}

    async def pod(self, name: str = "exp-0-a1") -> Object | None:
        return await self.kube.get(names.POD, self.namespace, name)

    async def say(self, pod: str, status: dict[str, Any]) -> None:
        """Write a pod's status, as a kubelet would."""
        await awaited(f"the pod {pod}", lambda: self.pod(pod), seconds=30)
        where = path(names.POD, self.namespace, pod, "status")
        await self.kube.call("PATCH", where, {"status": status}, content="application/merge-patch+json")

    async def until_condition(self, type_: str, status: str, reason: str, *words: str, name: str = "exp") -> None:
        """Wait for a condition, and for words in its sentence."""

        async def there() -> bool:
            found = conditions(await self.experiment(name)).get(type_, {})
            right = (found.get("status"), found.get("reason")) == (status, reason)
            return right and all(word in found["message"] for word in words)

        try:
            await awaited(f"{type_}={status} {reason} {words}", there, seconds=45)
        except TimeoutError as late:
            found = (await self.experiment(name)).get("status"), await self.trial(f"{name}-0")
            raise AssertionError(f"{late}: {json.dumps(found)[:3000]}") from None

    async def until_trial(self, phase: str, reason: str, *words: str, name: str = "exp-0") -> None:
        async def there() -> bool:
            found = await self.trial(name)
            right = (found.get("phase"), found.get("reason")) == (phase, reason)
            return right and all(word in found["message"] for word in words)

        try:
            await awaited(f"{name} {phase} {reason} {words}", there, seconds=45)
        except TimeoutError as late:
            raise AssertionError(f"{late}: {json.dumps(await self.trial(name))[:3000]}") from None

    async def ends(self, name: str = "exp") -> Object:
        return await over(self.kube, self.namespace, name, seconds=45)


Case = Callable[[Stage], Awaitable[None]]


@dataclass
class Cases:
    """The cases by name; `labels` are those of their namespaces."""

    all: dict[str, Case] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)

    def __call__(self, case: Case) -> Case:
        self.all[case.__name__] = case
        return case

    def labelled(self, labels: dict[str, str]) -> Callable[[Case], Case]:
        def kept(case: Case) -> Case:
            self.labels[case.__name__] = labels
            return self(case)

        return kept


case = Cases()


# Pods that are refused.


@case
async def a_template_that_no_api_server_takes(stage: Stage) -> None:
    await stage.create(stage.study(template={"containers": [TRAINER | {"ports": [{"containerPort": 99999}]}]}))
    await stage.until_condition("Accepted", "False", "PodRefused", "its pods are refused", "containerPort", "65535")


@case
async def a_volume_that_is_nowhere(stage: Stage) -> None:
    mounts = [{"name": "data", "mountPath": "/data"}]
    await stage.create(stage.study(template={"containers": [TRAINER | {"volumeMounts": mounts}]}))
    await stage.until_condition("Accepted", "False", "PodRefused", "volumeMounts[0].name: Not found")


@case
async def a_template_whose_unknown_fields_are_nonsense(stage: Stage) -> None:
    await stage.create(stage.study(template={"tolerations": "all", "containers": [TRAINER]}))
    await stage.until_condition("Accepted", "False", "PodRefused", "tolerations")


@case
async def a_lifecycle_that_is_text(stage: Stage) -> None:
    await stage.create(stage.study(template={"containers": [TRAINER | {"lifecycle": "forever"}]}))
    await stage.until_condition("Accepted", "False", "PodRefused", "lifecycle")


@case
async def volumes_that_are_numbers(stage: Stage) -> None:
    await stage.create(stage.study(template={"volumes": [1, 2], "containers": [TRAINER]}))
    await stage.until_condition("Accepted", "False", "PodRefused", "volumes")


@case
async def a_security_context_that_is_text(stage: Stage) -> None:
    await stage.create(stage.study(template={"containers": [TRAINER], "initContainers": "none"}))
    await stage.until_condition("Accepted", "False", "PodRefused", "initContainers")


@case
async def a_service_account_that_is_missing(stage: Stage) -> None:
    await stage.create(stage.study(template={"serviceAccountName": "ghost"}))
    await stage.until_condition(
        "Accepted", "False", "PodRefused", "its pods are refused", 'serviceaccount "ghost" not found'
    )


@case
async def a_priority_class_that_is_missing(stage: Stage) -> None:
    await stage.create(stage.study(template={"priorityClassName": "urgent"}))
    await stage.until_condition("Accepted", "False", "PodRefused", "PriorityClass", "urgent")


@case
async def a_limit_range_that_refuses(stage: Stage) -> None:
    limits = [{"type": "Container", "max": {"cpu": "1"}}]
    await stage.post("limitranges", {"metadata": {"name": "small"}, "spec": {"limits": limits}})
    resources = {"requests": {"cpu": "8"}, "limits": {"cpu": "8"}}
    await stage.create(stage.study(template={"containers": [TRAINER | {"resources": resources}]}))
    await stage.until_condition("Accepted", "False", "PodRefused", "maximum cpu usage per Container is 1")


@case.labelled(RESTRICTED)
async def restricted_pods_that_could_be_hardened(stage: Stage) -> None:
    nothing = {"securityContext": None, "initContainers": None, "tolerations": None, "volumes": None}
    await stage.create(stage.study(ends_after="200ms", template=nothing))
    assert (await stage.ends())["status"]["counts"] == {"Succeeded": 2}


@case.labelled(RESTRICTED)
async def restricted_pods_that_want_the_host(stage: Stage) -> None:
    await stage.create(stage.study(template={"hostNetwork": True}))
    await stage.until_condition("Accepted", "False", "PodRefused", "violates PodSecurity", "host namespaces")


# Pods that cannot start.


@case
async def an_image_that_does_not_exist(stage: Stage) -> None:
    slow = stage.study(maxTrials=1)
    slow["spec"]["template"]["metadata"]["annotations"]["testbed.trialkeeper.dev/starts-after"] = "1h"
    await stage.create(slow)
    waits = {"reason": "ErrImagePull", "message": "registry.example/t: not found"}
    await stage.say("exp-0-a1", pending(waits))
    await stage.until_condition("Stalled", "True", "ImageNotPulled", "exp-0: the image", "not found")
    version = (await stage.kube.get(names.TRIAL, stage.namespace, "exp-0") or {})["metadata"]["resourceVersion"]
    # The kubelet's other word for it is no news.
    await stage.say("exp-0-a1", pending({"reason": "ImagePullBackOff", "message": "Back-off pulling image"}))
    await stage.create(stage.study("other", maxTrials=1, ends_after="100ms"))
    await stage.ends("other")
    assert (await stage.kube.get(names.TRIAL, stage.namespace, "exp-0") or {})["metadata"]["resourceVersion"] == version


@case
async def a_secret_that_is_missing(stage: Stage) -> None:
    variable = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "ghost", "key": "key"}}}
    slow = stage.study(maxTrials=1, template={"containers": [TRAINER | {"env": [variable]}]})
    slow["spec"]["template"]["metadata"]["annotations"]["testbed.trialkeeper.dev/starts-after"] = "1h"
    await stage.create(slow)
    await stage.say(
        "exp-0-a1", pending({"reason": "CreateContainerConfigError", "message": 'secret "ghost" not found'})
    )
    await stage.until_condition("Stalled", "True", "ContainerConfig", 'secret "ghost" not found')


@case
async def a_node_that_does_not_exist(stage: Stage) -> None:
    await stage.create(stage.study(maxTrials=1, template={"nodeSelector": {"pool": "ghost"}}))
    await stage.until_condition("Stalled", "True", "Unschedulable", "no node takes the pod", "node affinity")


def pending(waits: dict[str, str]) -> dict[str, Any]:
    state = {
        "name": "trainer",
        "image": "t",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": waits},
    }
    return {"phase": "Pending", "containerStatuses": [state]}


# Quotas.


@case
async def a_quota_of_nothing(stage: Stage) -> None:
    await stage.quota("none", {"pods": "0"})
    await stage.create(stage.study())
    await stage.until_condition(
        "Stalled", "True", "QuotaExceeded", "the namespace's quota has no room", "limited: pods=0"
    )
    assert (await stage.trial())["attempt"] == 1
    assert "failures" not in await stage.trial() or (await stage.trial())["failures"] == 0


@case
async def a_quota_of_two(stage: Stage) -> None:
    """It is so new that nobody has counted yet, which the API server says in words of its own."""
    await stage.post("resourcequotas", {"metadata": {"name": "two"}, "spec": {"hard": {"pods": "2"}}})
    await stage.create(stage.study(maxTrials=4, parallelism=4, ends_after="300ms"))
    done = await stage.ends()
    assert done["status"]["counts"] == {"Succeeded": 4}
    found = [t async for t in stage.kube.list(names.TRIAL, stage.namespace)]
    assert [t["status"]["attempt"] for t in found] == [1] * 4


@case
async def a_quota_of_one_trial(stage: Stage) -> None:
    hard = {"count/trials.trialkeeper.dev": "1"}  # of a kind that the quota's own controller has not heard of yet
    await stage.post("resourcequotas", {"metadata": {"name": "one"}, "spec": {"hard": hard}})
    await stage.create(stage.study())
    await stage.until_condition(
        "Stalled", "True", "QuotaExceeded", "no room for another trial", "quota: one", "trials.trialkeeper.dev"
    )


@case
async def a_quota_of_no_config_maps(stage: Stage) -> None:
    await stage.quota("none", {"count/configmaps": "0"})
    await stage.create(stage.study(ends_after="200ms"))
    done = await stage.ends()
    assert done["status"]["counts"] == {"Succeeded": 2}
    await stage.until_condition("SnapshotKept", "False", "NotWritten", "exceeded quota: none")


# Names.


@case
async def names_as_long_as_they_can_be(stage: Stage) -> None:
    name = "e" * 40
    await stage.create(stage.study(name, ends_after="200ms"))
    assert (await stage.ends(name))["status"]["counts"] == {"Succeeded": 2}


@case
async def names_that_are_too_long(stage: Stage) -> None:
    with pytest.raises(Invalid, match="must have at most 40 characters, since pods add index and attempt to it"):
        await stage.create(stage.study("e" * 63))


@case
async def parameters_that_are_called_like_variables(stage: Stage) -> None:
    called = ["path", "home", "TRIALKEEPER_ATTEMPT", "LD_PRELOAD"]
    await stage.create(
        stage.study(parameters=[{"name": n, "fixed": "/evil"} for n in called], maxTrials=1, ends_after="1h")
    )
    pod = await awaited("the pod", stage.pod, seconds=30)
    assert pod is not None
    variables = {e["name"]: e.get("value") for e in pod["spec"]["containers"][0]["env"]}
    assert variables["TRIALKEEPER_ATTEMPT"] == "1"
    assert not {"PATH", "path", "HOME", "LD_PRELOAD"} & variables.keys()
    assert variables["TRIALKEEPER_PARAM_PATH"] == "/evil"


@case
async def variables_that_pretend_to_be_ours(stage: Stage) -> None:
    evil = [{"name": "TRIALKEEPER_ATTEMPT", "value": "7"}, {"name": "TRIALKEEPER_PREFIX", "value": "other/x"}]
    await stage.create(stage.study(maxTrials=1, ends_after="1h", template={"containers": [TRAINER | {"env": evil}]}))
    pod = await awaited("the pod", stage.pod, seconds=30)
    assert pod is not None
    values = [e.get("value") for e in pod["spec"]["containers"][0]["env"] if e["name"] == "TRIALKEEPER_PREFIX"]
    assert len(values) == 1
    assert values[0].startswith(f"{stage.namespace}/exp-")


@case
async def a_name_that_somebody_else_has(stage: Stage) -> None:
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "exp-0-a1"}, "spec": {"containers": [TRAINER]}}
    await stage.post("pods", body)
    await stage.create(stage.study(maxTrials=1))
    await stage.until_condition("Stalled", "True", "NameTaken", "exp-0: the pod's name exp-0-a1 is somebody else's")


# What others wrote.


@case
async def a_trial_made_by_hand(stage: Stage) -> None:
    spec = {"experiment": "ghost", "experimentUid": "none", "index": 0, "parameters": {"a": [None, {"b": "\\u0000"}]}}
    meta = {"name": "by-hand", "namespace": stage.namespace}
    await stage.create({"apiVersion": names.API_VERSION, "kind": "Trial", "metadata": meta, "spec": spec})
    of_ours = {**spec, "experiment": "exp", "index": 999_999}
    await stage.create(stage.study(ends_after="200ms"))
    worn = {"name": "exp-999999", "namespace": stage.namespace, "labels": {names.LABEL_EXPERIMENT: "exp"}}
    await stage.create({"apiVersion": names.API_VERSION, "kind": "Trial", "metadata": worn, "spec": of_ours})
    done = await stage.ends()
    assert (done["status"]["trials"], done["status"]["counts"]) == (2, {"Succeeded": 2})
    assert await stage.trial("by-hand") == await stage.trial("exp-999999") == {}


@case
async def a_trial_that_claims_to_be_ours(stage: Stage) -> None:
    owner = await stage.create(stage.study(ends_after="200ms", maxTrials=2))
    reference = names.owner(names.EXPERIMENT, "exp", owner["metadata"]["uid"])
    spec = {
        "experiment": "exp",
        "experimentUid": owner["metadata"]["uid"],
        "index": 1_000_000,
        "parameters": {"x": [1]},
    }
    meta = {"name": "exp-forged", "namespace": stage.namespace, "ownerReferences": [reference]}
    await stage.create({"apiVersion": names.API_VERSION, "kind": "Trial", "metadata": meta, "spec": spec})
    done = await stage.ends()
    assert (done["status"]["trials"], done["status"]["counts"]) == (2, {"Succeeded": 2})
    assert await stage.trial("exp-forged") == {}


@case
async def pods_that_wear_our_labels(stage: Stage) -> None:
    labels: dict[str, str] = {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_EXPERIMENT: "exp",
        names.LABEL_TRIAL: "exp-0",
        names.LABEL_ATTEMPT: "many",
    }
    bare = {names.LABEL_TRIAL: "", names.LABEL_ATTEMPT: ""}
    for name, worn in (("a", labels), ("exp-0-a9", labels), ("b", labels | bare)):
        meta = {"name": name, "labels": worn, "annotations": {ENDS_AFTER: "1h"}}
        await stage.post("pods", {"metadata": meta, "spec": {"containers": [TRAINER]}})
    await stage.create(stage.study(ends_after="300ms"))
    assert (await stage.ends())["status"]["counts"] == {"Succeeded": 2}
    assert all([await stage.pod(name) for name in ("a", "exp-0-a9", "b")])


@case
async def pods_whose_statuses_are_garbage(stage: Stage) -> None:
    await stage.create(stage.study(maxTrials=1, ends_after="1h"))
    ended = {
        "exitCode": -2147483648,
        "reason": "x" * 2000,
        "message": "\\u0000\\ud800",
        "finishedAt": "1970-01-01T00:00:00Z",
    }
    other = {
        "name": "nobody",
        "image": "",
        "imageID": "",
        "ready": True,
        "restartCount": -5,
        "state": {"terminated": ended},
    }
    garbage = {
        "phase": "Unknown",
        "reason": "\\u202e",
        "containerStatuses": [other],
        "startTime": "0001-01-01T00:00:00Z",
    }
    await stage.say("exp-0-a1", garbage)
    # A node's clock that is ahead does not put the next attempt off: it waits its usual seconds.
    own = {**other, "name": "trainer", "state": {"terminated": {**ended, "finishedAt": "2999-01-01T00:00:00Z"}}}
    await stage.say("exp-0-a1", {"phase": "Bogus", "containerStatuses": [own]})
    await stage.until_trial("Waiting", "ExitCode", "exited with code -2147483648")


def last_words(**fields: Any) -> str:
    return json.dumps({"v": 1, "end": "complete", "attempt": 1, **fields})


@case
async def last_words_that_are_garbage(stage: Stage) -> None:
    words = {
        "deep": "[" * 2000,
        "late": last_words(time=1e300, firstReport=1e300, iteration=3),
        "early": last_words(saveInterval=-5, trainedSeconds=-1e300),
        "huge": last_words(
            iteration=2**53 - 1, resumed={"attempt": 2**53 - 1, "iteration": 0, "time": 0, "lostIterations": 2**53 - 1}
        ),
        "wide": last_words(metrics={f"m{i}": {"last": 1, "min": 1, "max": 1} for i in range(60)}),
        "large": last_words(metrics={"loss": {"last": 1e308, "min": -1e308, "max": 1e308}}),
        "odd": last_words(reason="\\ud800" * 64, text="\\u0000" * 300, metrics={"": {"last": 1, "min": 1, "max": 1}}),
        "plain": '{"metrics": {"loss": 1e999, "a": null, "b": -1e308}}',
    }
    for name, said in words.items():
        await stage.create(stage.study(name, maxTrials=1, ends_after="100ms", message=said))
    for name in words:
        done = await stage.ends(name)
        assert done["status"]["phase"] in ("Succeeded", "Failed"), name


@case
async def a_status_written_by_hand(stage: Stage) -> None:
    await stage.create(stage.study(maxTrials=1, ends_after="1h"))
    await awaited("the pod", stage.pod, seconds=30)
    pod = {"name": "exp-0-a1", "uid": "not-it", "startTime": "yesterday", "firstReportTime": "\\u0000"}
    wrong = {
        "nextAttemptTime": "tomorrow",
        "startTime": "never",
        "pod": pod,
        "phase": "Pending",
        "attempt": 1,
        "closed": 0,
    }
    where = path(names.TRIAL, stage.namespace, "exp-0", "status")

    await stage.kube.call("PATCH", where, {"status": wrong}, content="application/merge-patch+json")

    async def mended() -> bool:
        found = await stage.trial()
        history = [h["class"] for h in found.get("history", ())]
        return (found["attempt"], found["phase"], history[:1]) == (2, "Running", ["Lost"])

    await awaited("another attempt of what was never said to have ended", mended, seconds=45)


@case
async def a_snapshot_that_is_somebody_elses(stage: Stage) -> None:
    theirs = {"metadata": {"name": "exp-snapshot"}, "data": {"their": "settings"}}
    await stage.post("configmaps", theirs)
    await stage.create(stage.study(ends_after="200ms"))
    assert (await stage.ends())["status"]["counts"] == {"Succeeded": 2}
    await stage.until_condition("SnapshotKept", "False", "NameTaken", "exp-snapshot is somebody else's")
    found = await stage.kube.get(names.CONFIG_MAP, stage.namespace, "exp-snapshot")
    assert found is not None
    assert (found.get("data"), found.get("binaryData")) == ({"their": "settings"}, None)


@case
async def a_snapshot_that_nobody_may_change(stage: Stage) -> None:
    meta = {"name": "exp-snapshot", "annotations": {"trialkeeper.dev/experiment-uid": "an-earlier-one"}}
    stuck = {"metadata": meta, "immutable": True, "binaryData": {"snapshot.json.gz": base64.b64encode(b"x").decode()}}
    await stage.post("configmaps", stuck)
    await stage.create(stage.study(ends_after="200ms"))
    assert (await stage.ends())["status"]["counts"] == {"Succeeded": 2}
    await stage.until_condition("SnapshotKept", "False", "NotWritten", "immutable")


@case
async def a_namespace_that_is_being_deleted(stage: Stage) -> None:
    held = {"metadata": {"name": "held", "finalizers": ["example.com/held"]}}
    await stage.post("configmaps", held)
    await stage.create(stage.study(maxTrials=4, ends_after="200ms", parallelism=1))
    await awaited("the pod", stage.pod, seconds=30)
    await stage.kube.call("DELETE", path("Namespace", name=stage.namespace))
    await awaited("its end", lambda: gone(stage), seconds=45)
    where = path(names.CONFIG_MAP, stage.namespace, "held")
    await stage.kube.call("PATCH", where, {"metadata": {"finalizers": None}}, content="application/merge-patch+json")


async def gone(stage: Stage) -> bool:
    return await stage.kube.get(names.EXPERIMENT, stage.namespace, "exp") is None


@case
async def a_store_that_never_answers(stage: Stage) -> None:
    """Nobody in the operator talks to it: it is the trainer's, who says that it could not."""
    said = json.dumps(
        {"v": 1, "end": "error", "attempt": 1, "reason": "StoreUnreachable", "text": "no answer for 300 s"}
    )
    made = stage.study(maxTrials=1, ends_after="100ms", message=said)
    made["spec"]["template"]["metadata"]["annotations"]["testbed.trialkeeper.dev/exit-code"] = "1"
    await stage.create(made)
    await stage.until_trial("Waiting", "StoreUnreachable", "no answer for 300 s")


# Beside them all.

HEALTHY = 30  # trials of the healthy experiment


@pytest.mark.timeout(240)
def test_each_gets_its_sentence_and_none_stops_another(
    play: Play, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert len(case.all) >= 30

    async def healthy(kube: Kube, namespace: str, name: str) -> float:
        began = time.monotonic()
        await kube.create(study(name, namespace, maxTrials=HEALTHY, parallelism=10, ends_after="1s"))
        done = await over(kube, namespace, name, seconds=120)
        assert done["status"]["counts"] == {"Succeeded": HEALTHY}
        return time.monotonic() - began

    async def story(plane: Plane) -> None:
        kube, count = await plane.kube(), Count()
        stages = {name: Stage(kube, await plane.namespace(kube, "h", case.labels.get(name))) for name in case.all}
        own = await plane.namespace(kube, "healthy")
        served = [own, *(stage.namespace for stage in stages.values())]
        failed: dict[str, BaseException] = {}

        async def play_case(name: str) -> None:
            try:
                await case.all[name](stages[name])
            except Exception as error:
                failed[name] = error

        async with plane.operator(await plane.kube(counted=count), served, site=SITE):
            alone = min([await healthy(kube, own, f"alone-{turn}") for turn in (1, 2)])
            writes = count.writes()
            async with asyncio.TaskGroup() as tasks:
                playing = [tasks.create_task(play_case(name)) for name in case.all]
                await asyncio.wait(playing)
            count.calls.clear()
            beside = min([await healthy(kube, own, f"beside-{turn}") for turn in (1, 2)])
            again = count.writes()
        with capsys.disabled():
            print(f"\n  a healthy experiment: {alone:.1f} s alone, {beside:.1f} s beside {len(stages)} hostile ones")  # noqa: T201
            print(f"  writes: {writes} alone, {again} beside them, theirs included")  # noqa: T201
        assert not failed, "\n".join(f"{name}: {type(e).__name__}: {e}" for name, e in failed.items())
        assert [r.getMessage() for r in caplog.records if r.exc_info] == []
        # Time is only told, since two cores have other things to do as well: what is bounded is the work.
        assert again <= writes * 1.2

    play(story)
