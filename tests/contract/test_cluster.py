"""The Cluster contract: what a real API server answers, asked of every cluster there is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from contract.bench import Bench, Tell, reference
from trialkeeper_operator.api.times import seconds
from trialkeeper_operator.reconcile.ports import AlreadyExists, ClusterError, Conflict, Invalid, NotFound, Object


def version(obj: Object) -> str:
    return str(obj["metadata"]["resourceVersion"])


def with_meta(obj: Object, **fields: Any) -> Object:
    return {**obj, "metadata": {**obj["metadata"], **fields}}


def without_meta(obj: Object, *fields: str) -> Object:
    return {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k not in fields}}


def with_spec(obj: Object, **fields: Any) -> Object:
    return {**obj, "spec": {**obj["spec"], **fields}}


# Creating.


def test_a_new_object_gets_what_the_server_gives(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create({**bench.experiment(), "status": {"phase": "Faked"}})
        meta = one["metadata"]
        assert meta["uid"]
        assert meta["resourceVersion"]
        assert seconds(meta["creationTimestamp"]) > 0
        assert meta["generation"] == 1
        assert "phase" not in one.get("status", {})
        assert one["spec"]["objectives"][0]["direction"] == "Minimize"
        assert await bench.get("Experiment", "exp") == one
        assert await bench.gone("Experiment", "other")

    tell(story)


def test_what_a_new_object_says_in_the_servers_fields_is_left_out(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        said = {"uid": "mine", "generation": 7, "creationTimestamp": "2020-01-01T00:00:00Z"}
        one = await bench.cluster.create(with_meta(bench.experiment(), **said))
        assert all(one["metadata"][field] != value for field, value in said.items())
        with pytest.raises(ClusterError, match=r"resourceVersion"):
            await bench.cluster.create(with_meta(bench.experiment("two"), resourceVersion="1"))

    tell(story)


def test_a_new_pod_is_pending_whatever_it_says(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create({**bench.pod(), "status": {"phase": "Running"}})
        assert one["status"]["phase"] == "Pending"
        assert not one["spec"].get("nodeName")

    tell(story)


def test_a_name_is_taken_once_per_kind(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        await bench.cluster.create(bench.config_map("one"))
        await bench.cluster.create(bench.pod("one"))
        for body in (bench.config_map("one", "2"), bench.pod("one")):
            with pytest.raises(AlreadyExists):
                await bench.cluster.create(body)
        assert (await bench.get("ConfigMap", "one"))["data"] == {"v": "1"}

    tell(story)


def test_whoever_takes_a_name_again_gets_another_uid(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        uids = set()
        for _ in range(3):
            uids.add((await bench.cluster.create(bench.config_map()))["metadata"]["uid"])
            await bench.delete("ConfigMap", "map")
        assert len(uids) == 3

    tell(story)


BAD_METADATA: dict[str, dict[str, Any]] = {
    "a name with capitals": {"name": "Bad_Name"},
    "a name that is too long": {"name": "a" * 254},
    "a label that is a number": {"labels": {"a": 1}},
    "an annotation that is an object": {"annotations": {"a": {}}},
    "an owner without uid": {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "c"}]},
    "an owner with an empty uid": {
        "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": ""}]
    },
    "two controllers": {
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": name, "controller": True} for name in "cd"
        ]
    },
}


@pytest.mark.parametrize("what", BAD_METADATA)
def test_bad_metadata_is_refused(tell: Tell, what: str) -> None:
    async def story(bench: Bench) -> None:
        with pytest.raises(Invalid):
            await bench.cluster.create(with_meta(bench.config_map(), **BAD_METADATA[what]))
        assert await bench.names("ConfigMap") == []

    tell(story)


BAD_PODS: dict[str, dict[str, Any]] = {
    "no container": {"containers": []},
    "two containers of one name": {"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "j"}]},
    "a container without image": {"containers": [{"name": "c"}]},
    "a container without name": {"containers": [{"image": "i"}]},
    "an unknown restart policy": {"restartPolicy": "Sometimes"},
}


@pytest.mark.parametrize("what", BAD_PODS)
def test_bad_pods_are_refused(tell: Tell, what: str) -> None:
    async def story(bench: Bench) -> None:
        with pytest.raises(Invalid):
            await bench.cluster.create(with_spec(bench.pod(), **BAD_PODS[what]))
        assert await bench.names("Pod") == []

    tell(story)


def test_a_config_map_holds_a_mebibyte_of_text_and_no_more(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        limit = 1024 * 1024
        await bench.cluster.create(bench.config_map("fits", "x" * (limit - 10)))
        for data in ({"v": "x" * (limit + 1)}, {"v": 1}):
            with pytest.raises(Invalid):
                await bench.cluster.create({**bench.config_map("bad"), "data": data})

    tell(story)


def test_admission_refuses_with_a_sentence(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        with pytest.raises(Invalid, match=r"maxTrials"):
            await bench.cluster.create(bench.experiment(maxTrials=0))
        one = await bench.cluster.create(bench.experiment())
        with pytest.raises(Invalid, match=r"cannot change"):
            await bench.cluster.put(with_spec(one, onNonFinite="Continue"))
        trial = await bench.cluster.create(bench.trial(one))
        with pytest.raises(Invalid, match=r"spec\.desired"):
            await bench.cluster.put(with_spec(trial, seed=9))
        stopped = await bench.cluster.put(with_spec(trial, desired="Stop"))
        assert stopped["metadata"]["generation"] == 2

    tell(story)


# Replacing.


def test_generation_follows_spec_and_nothing_else(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment())
        two = await bench.cluster.put(with_spec(one, parallelism=3))
        three = await bench.cluster.put_status({**two, "status": {"phase": "Running"}})
        four = await bench.cluster.put(with_meta(three, labels={"x": "y"}))
        five = await bench.cluster.put(with_meta(four, generation=99, labels={"x": "z"}))
        assert [o["metadata"]["generation"] for o in (one, two, three, four, five)] == [1, 2, 2, 2, 2]
        assert len({version(o) for o in (one, two, three, four, five)}) == 5

    tell(story)


def test_status_and_the_rest_are_written_apart(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment())
        body = with_meta(with_spec(one, parallelism=9), labels={"x": "y"})
        two = await bench.cluster.put_status({**body, "status": {"phase": "Running"}})
        assert two["spec"] == one["spec"]
        assert "labels" not in two["metadata"]
        three = await bench.cluster.put({**with_spec(two, parallelism=9), "status": {"phase": "Other"}})
        assert three["spec"]["parallelism"] == 9
        assert three["status"]["phase"] == "Running"

    tell(story)


def test_a_status_keeps_what_is_known_and_refuses_what_is_wrong(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment())
        two = await bench.cluster.put_status({**one, "status": {"phase": "Running", "unknown": 3}})
        assert two["status"]["phase"] == "Running"
        assert "unknown" not in two["status"]
        with pytest.raises(Invalid, match=r"phase"):
            await bench.cluster.put_status({**two, "status": {"phase": 3}})

    tell(story)


def test_a_status_can_be_taken_away(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment())
        two = await bench.cluster.put_status({**one, "status": {"phase": "Running"}})
        three = await bench.cluster.put_status({k: v for k, v in two.items() if k != "status"})
        assert "status" not in three

    tell(story)


def test_a_config_map_has_no_status(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.config_map())
        with pytest.raises(NotFound):
            await bench.cluster.put_status({**one, "status": {"phase": "Running"}})

    tell(story)


def test_a_stale_write_is_a_conflict(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment())
        await bench.cluster.put_status({**one, "status": {"phase": "Running"}})
        for write in (bench.cluster.put, bench.cluster.put_status):
            with pytest.raises(Conflict):
                await write({**with_spec(one, parallelism=5), "status": {"phase": "Late"}})
        assert (await bench.get("Experiment", "exp"))["status"]["phase"] == "Running"

    tell(story)


def test_of_two_writers_that_read_the_same_one_wins(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.config_map())
        bodies = [{**one, "data": {"v": str(n)}} for n in range(10, 18)]
        answers = await asyncio.gather(*map(bench.cluster.put, bodies), return_exceptions=True)
        won = [a for a in answers if not isinstance(a, BaseException)]
        assert len(won) == 1
        assert all(isinstance(a, Conflict) for a in answers if isinstance(a, BaseException))
        assert await bench.get("ConfigMap", "map") == won[0]

    tell(story)


def test_a_stale_write_is_a_conflict_even_if_it_is_invalid_too(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment())
        await bench.cluster.put(with_spec(one, parallelism=4))
        with pytest.raises(Conflict):
            await bench.cluster.put(with_spec(one, maxTrials=0))

    tell(story)


def test_a_custom_resource_is_not_replaced_unseen_and_a_config_map_may_be(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = without_meta(await bench.cluster.create(bench.experiment()), "resourceVersion")
        for write in (bench.cluster.put, bench.cluster.put_status):
            with pytest.raises(Invalid, match=r"resourceVersion"):
                await write({**with_spec(one, parallelism=5), "status": {"phase": "Running"}})
        await bench.cluster.create(bench.config_map())
        assert (await bench.cluster.put(bench.config_map(value="2")))["data"] == {"v": "2"}

    tell(story)


def test_a_namesakes_uid_is_a_conflict(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        for body in (bench.experiment(), bench.pod()):
            old = await bench.cluster.create(body)
            kind, name = old["kind"], old["metadata"]["name"]
            await bench.delete(kind, name, uid=old["metadata"]["uid"])
            new = await bench.cluster.create(body)
            ours = without_meta(old, "resourceVersion")
            for write in (bench.cluster.put, bench.cluster.put_status):
                with pytest.raises(Conflict):
                    await write({**with_meta(ours, labels={"x": "y"}), "status": {"phase": "Running"}})
            with pytest.raises(Conflict):
                await bench.delete(kind, name, uid=old["metadata"]["uid"])
            assert await bench.get(kind, name) == new

    tell(story)


def test_a_write_that_changes_nothing_makes_no_version(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.experiment())
        assert await bench.cluster.put(one) == one
        two = await bench.cluster.put_status({**one, "status": {"phase": "Running"}})
        for same in (two, {**two, "status": {"phase": "Running", "unknown": 1}}, without_meta(two, "uid")):
            assert version(await bench.cluster.put_status(same)) == version(two)
        claims = with_meta(two, generation=99, creationTimestamp="2020-01-01T00:00:00Z")
        assert await bench.cluster.put(claims) == two

    tell(story)


def test_what_a_put_leaves_out_is_gone_and_who_the_object_is_stays(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.config_map(labels={"a": "b"}, annotations={"c": "d"}))
        two = await bench.cluster.put(bench.config_map(value="2"))
        assert "labels" not in two["metadata"]
        assert "annotations" not in two["metadata"]
        for field in ("uid", "creationTimestamp", "name", "namespace"):
            assert two["metadata"][field] == one["metadata"][field]

    tell(story)


def test_what_does_not_exist_cannot_be_written_or_deleted(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        for body in (bench.experiment(), bench.pod()):
            one = await bench.cluster.create(body)
            kind, name = one["kind"], one["metadata"]["name"]
            await bench.delete(kind, name)
            for write in (bench.cluster.put, bench.cluster.put_status):
                with pytest.raises(NotFound):
                    await write(one)
            with pytest.raises(NotFound):
                await bench.delete(kind, name)
            with pytest.raises(NotFound):
                await bench.delete(kind, name, uid=one["metadata"]["uid"], grace_seconds=0)

    tell(story)


def test_a_pods_spec_is_for_good(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.pod())
        changes: list[dict[str, Any]] = [
            {"terminationGracePeriodSeconds": 5},
            {"nodeName": "elsewhere"},
            {"containers": [{**one["spec"]["containers"][0], "command": ["other"]}]},
        ]
        for change in changes:
            with pytest.raises(Invalid):
                await bench.cluster.put(with_spec(one, **change))
        image = [{**one["spec"]["containers"][0], "image": "other"}]
        two = await bench.cluster.put(with_spec(one, containers=image))
        assert two["spec"]["containers"][0]["image"] == "other"
        three = await bench.cluster.put(with_meta(two, labels={"a": "c"}))
        assert three["metadata"]["labels"] == {"a": "c"}

    tell(story)


def test_what_goes_in_is_copied(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        body = bench.experiment()
        one = await bench.cluster.create(body)
        body["spec"]["objectives"][0]["metric"] = "changed afterwards"
        status: dict[str, Any] = {"phase": "Running", "counts": {"Running": 1}}
        await bench.cluster.put_status({**one, "status": status})
        status["counts"]["Running"] = 9
        found = await bench.get("Experiment", "exp")
        assert found["spec"]["objectives"][0]["metric"] == "loss"
        assert found["status"]["counts"] == {"Running": 1}

    tell(story)


def test_what_came_out_stays_as_it_was(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.cluster.create(bench.config_map())
        read = await bench.get("ConfigMap", "map")
        await bench.cluster.put({**one, "data": {"v": "2"}})
        assert (one["data"], read["data"]) == ({"v": "1"}, {"v": "1"})

    tell(story)


# Listing.


def test_lists_select_by_labels_and_namespace(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one, two = [await bench.cluster.create(bench.experiment(name)) for name in ("one", "two")]
        for index in range(3):
            await bench.cluster.create(bench.trial(one, index))
        await bench.cluster.create(bench.trial(two))
        await bench.cluster.create(bench.pod("stranger"))
        managed, of_one = {"app.kubernetes.io/managed-by": "trialkeeper"}, {"trialkeeper.dev/experiment": "one"}
        all_of_them = ["one-0", "one-1", "one-2", "two-0"]
        assert await bench.names("Trial") == all_of_them
        assert await bench.names("Trial", managed) == all_of_them
        assert await bench.names("Trial", managed | of_one) == all_of_them[:3]
        assert await bench.names("Trial", managed | {"trialkeeper.dev/experiment": "x"}) == []
        assert await bench.names("Pod", of_one) == []
        assert [o async for o in bench.cluster.list("Trial", "elsewhere")] == []
        everywhere = [o async for o in bench.cluster.list("Trial", labels=of_one)]
        assert {o["kind"] for o in everywhere} == {"Trial"}
        assert "one-0" in [o["metadata"]["name"] for o in everywhere]

    tell(story)


def test_a_list_survives_what_its_reader_does(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        for n in range(5):
            await bench.cluster.create(bench.config_map(f"m{n}"))
        async for found in bench.cluster.list("ConfigMap", bench.namespace):
            await bench.delete("ConfigMap", found["metadata"]["name"])
        assert await bench.names("ConfigMap") == []

    tell(story)


# Deleting.


def test_a_pod_that_no_node_has_goes_at_once(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        await bench.cluster.create(bench.pod())
        await bench.delete("Pod", "p", grace_seconds=60)
        assert await bench.gone("Pod", "p")

    tell(story)


def test_a_running_pod_gets_its_grace(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.running_pod(grace=25)
        await bench.delete("Pod", "p", uid=one["metadata"]["uid"])
        meta = (await bench.get("Pod", "p"))["metadata"]
        assert meta["deletionGracePeriodSeconds"] == 25
        left = seconds(meta["deletionTimestamp"]) - seconds(meta["creationTimestamp"])
        assert 24 <= left <= 25 + 20
        assert (meta["uid"], meta["resourceVersion"] != version(one)) == (one["metadata"]["uid"], True)
        with pytest.raises(AlreadyExists):
            await bench.cluster.create(bench.pod())

    tell(story)


# What a running pod with 30 s of its own has left after these requests, one after the other; None: nothing asked for.
GRACES: list[tuple[list[int | None], int]] = [
    ([None], 30),
    ([60], 60),
    ([60, None], 60),
    ([60, 20], 20),
    ([60, 20, 40], 20),
    ([5, 60], 5),
    ([-3], 1),
    ([20, -3], 1),
]


@pytest.mark.parametrize(("asked", "granted"), GRACES)
def test_grace_only_becomes_shorter(tell: Tell, asked: list[int | None], granted: int) -> None:
    async def story(bench: Bench) -> None:
        await bench.running_pod()
        ends = []
        for grace in asked:
            await bench.delete("Pod", "p", grace_seconds=grace)
            ends.append(seconds((await bench.get("Pod", "p"))["metadata"]["deletionTimestamp"]))
        assert (await bench.get("Pod", "p"))["metadata"]["deletionGracePeriodSeconds"] == granted
        assert ends == sorted(ends, reverse=True)
        known = version(await bench.get("Pod", "p"))
        for same in (None, granted, granted + 1):
            await bench.delete("Pod", "p", grace_seconds=same)
            assert version(await bench.get("Pod", "p")) == known

    tell(story)


@pytest.mark.parametrize("before", [[], [None], [10]])
def test_grace_zero_removes_a_pod_at_once(tell: Tell, before: list[int | None]) -> None:
    async def story(bench: Bench) -> None:
        await bench.running_pod()
        for grace in before:
            await bench.delete("Pod", "p", grace_seconds=grace)
        await bench.delete("Pod", "p", grace_seconds=0)
        assert await bench.gone("Pod", "p")
        await bench.cluster.create(bench.pod())

    tell(story)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_stays_until_it_is_deleted_and_goes_at_once_then(tell: Tell, phase: str) -> None:
    async def story(bench: Bench) -> None:
        one = await bench.running_pod()
        await bench.cluster.put_status({**one, "status": {"phase": phase}})
        assert (await bench.get("Pod", "p"))["status"]["phase"] == phase
        await bench.delete("Pod", "p")
        assert await bench.gone("Pod", "p")

    tell(story)


def test_a_pod_that_ends_while_it_is_deleted_waits_for_its_node(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        await bench.running_pod()
        await bench.delete("Pod", "p")
        await bench.cluster.put_status({**await bench.get("Pod", "p"), "status": {"phase": "Failed"}})
        await bench.delete("Pod", "p")
        found = await bench.get("Pod", "p")
        assert (found["status"]["phase"], found["metadata"]["deletionGracePeriodSeconds"]) == ("Failed", 30)

    tell(story)


def test_a_pod_that_is_being_deleted_keeps_its_end_through_every_write(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        await bench.running_pod()
        await bench.delete("Pod", "p")
        one = await bench.get("Pod", "p")
        await bench.cluster.put_status({**one, "status": {"phase": "Running"}})
        ours = without_meta(await bench.get("Pod", "p"), "deletionTimestamp", "deletionGracePeriodSeconds")
        two = await bench.cluster.put(with_meta(ours, labels={"x": "y"}))
        for field in ("deletionTimestamp", "deletionGracePeriodSeconds"):
            assert two["metadata"][field] == one["metadata"][field]

    tell(story)


def test_a_pod_is_bound_once(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        with pytest.raises(NotFound):
            await bench.bind(bench.namespace, "p", "node")
        one = await bench.running_pod()
        assert one["spec"]["nodeName"] == "node"
        with pytest.raises(Conflict):
            await bench.bind(bench.namespace, "p", "node")
        await bench.delete("Pod", "p")
        with pytest.raises(Conflict):
            await bench.bind(bench.namespace, "p", "other")

    tell(story)


def test_a_pod_that_has_changed_since_it_was_read_is_not_deleted(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        read = await bench.running_pod()
        running = {"phase": "Running"}
        changed = await bench.cluster.put_status({**read, "status": {**(read.get("status") or {}), **running}})
        meta = read["metadata"]
        with pytest.raises(Conflict):
            await bench.delete("Pod", "p", uid=meta["uid"], version=meta["resourceVersion"])
        assert "deletionTimestamp" not in (await bench.get("Pod", "p"))["metadata"]
        await bench.delete("Pod", "p", uid=meta["uid"], version=changed["metadata"]["resourceVersion"], grace_seconds=0)
        assert await bench.gone("Pod", "p")

    tell(story)


def test_other_kinds_have_no_grace(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        await bench.cluster.create(bench.experiment())
        await bench.cluster.create(bench.config_map())
        for kind, name in (("Experiment", "exp"), ("ConfigMap", "map")):
            await bench.delete(kind, name, grace_seconds=30)
            assert await bench.gone(kind, name)

    tell(story)


# Collecting.


def test_children_go_with_their_owner(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        owner = await bench.cluster.create(bench.experiment())
        trial = await bench.cluster.create(bench.trial(owner))
        await bench.running_pod("bound", owner=trial)
        await bench.cluster.create(bench.pod("waiting", owner=trial))
        await bench.cluster.create(bench.pod("stranger"))
        await bench.delete("Experiment", "exp")
        await bench.until(lambda: bench.gone("Trial", "exp-0"))
        await bench.until(lambda: bench.gone("Pod", "waiting"))

        async def ends() -> bool:
            return "deletionTimestamp" in (await bench.get("Pod", "bound"))["metadata"]

        await bench.until(ends)
        assert (await bench.get("Pod", "bound"))["metadata"]["deletionGracePeriodSeconds"] == 30
        assert await bench.names("Pod") == ["bound", "stranger"]

    tell(story)


def late_child(bench: Bench, owner: Object) -> Object:
    return bench.config_map("child", ownerReferences=[reference(owner)])


def same_name_other_uid(bench: Bench, owner: Object) -> Object:
    return bench.config_map("child", ownerReferences=[{**reference(owner), "uid": "another"}])


@pytest.mark.parametrize("child", [late_child, same_name_other_uid])
def test_a_child_that_comes_without_its_owner_goes_too(tell: Tell, child: Callable[[Bench, Object], Object]) -> None:
    async def story(bench: Bench) -> None:
        owner = await bench.cluster.create(bench.config_map("owner"))
        if child is late_child:
            await bench.delete("ConfigMap", "owner")
        await bench.cluster.create(child(bench, owner))
        await bench.cluster.create(bench.config_map("stranger"))
        await bench.until(lambda: bench.gone("ConfigMap", "child"))
        assert not await bench.gone("ConfigMap", "stranger")

    tell(story)


def test_a_child_of_two_goes_with_the_second(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        owners = [await bench.cluster.create(bench.config_map(name)) for name in ("one", "two")]
        references = [reference(owner, controller=False) for owner in owners]
        await bench.cluster.create(bench.config_map("child", ownerReferences=references))
        await bench.cluster.create(bench.config_map("only", ownerReferences=references[:1]))
        await bench.cluster.create(bench.config_map("stranger"))
        await bench.delete("ConfigMap", "one")
        await bench.until(lambda: bench.gone("ConfigMap", "only"))
        assert not await bench.gone("ConfigMap", "child")
        await bench.delete("ConfigMap", "two")
        await bench.until(lambda: bench.gone("ConfigMap", "child"))

    tell(story)


def test_a_child_that_was_disowned_stays_and_an_adopted_one_goes(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        owner = await bench.cluster.create(bench.config_map("owner"))
        await bench.cluster.create(bench.config_map("disowned", ownerReferences=[reference(owner)]))
        await bench.cluster.put(bench.config_map("disowned"))
        await bench.cluster.create(bench.config_map("adopted"))
        await bench.cluster.put(bench.config_map("adopted", ownerReferences=[reference(owner)]))
        await bench.delete("ConfigMap", "owner")
        await bench.until(lambda: bench.gone("ConfigMap", "adopted"))
        assert not await bench.gone("ConfigMap", "disowned")

    tell(story)


def test_a_child_that_is_given_to_somebody_who_is_gone_goes_too(tell: Tell) -> None:
    async def story(bench: Bench) -> None:
        owner = await bench.cluster.create(bench.config_map("owner"))
        await bench.delete("ConfigMap", "owner")
        for name in ("child", "stranger"):
            await bench.cluster.create(bench.config_map(name))
        await bench.cluster.put(bench.config_map("child", ownerReferences=[reference(owner)]))
        await bench.until(lambda: bench.gone("ConfigMap", "child"))
        assert not await bench.gone("ConfigMap", "stranger")

    tell(story)
