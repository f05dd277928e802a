"""The process kubelet with real processes: what it says about them, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trialkeeper import contract
from trialkeeper.contract import Message
from trialkeeper_operator.cluster.memory import Memory
from trialkeeper_operator.local import process
from trialkeeper_operator.local.gpus import Gpus
from trialkeeper_operator.local.kubelet import Kubelet
from trialkeeper_operator.local.place import Place
from trialkeeper_operator.reconcile.ports import Event, NotFound, Object

# Says that it is there, by a live report; then it is this script's turn.
READY = 'printf %s "$REPORT" > "${TRIALKEEPER_REPORT#file://}"\n'
FOREVER = "sleep 600 & wait\n"  # a shell that waits hears its traps


def run(scene: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await scene

    asyncio.run(limited())


@dataclass
class House:
    """A Memory and its kubelet, a folder, and the reports that came."""

    root: Path
    shell: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    gpus: tuple[str, ...] = ()
    memory: Memory = field(default_factory=lambda: Memory(now=time.time))
    reports: asyncio.Queue[tuple[str, Message]] = field(default_factory=asyncio.Queue)
    flushed: int = 0

    def __post_init__(self) -> None:
        self.place = Place(self.root, self.root / "run", self.shell)
        self.kubelet = Kubelet(
            self.memory,
            self.place,
            now=time.time,
            flush=self._flush,
            on_report=lambda _, trial, message: self.reports.put_nowait((trial, message)),
            gpus=Gpus(self.gpus),
        )

    def _flush(self) -> None:
        self.flushed += 1

    async def create(self, script: str | list[str], name: str = "exp-0-a1", **spec: Any) -> Object:
        container: dict[str, Any] = {
            "name": "t",
            "image": "i",
            # A pod's `$$` is one dollar sign.
            "command": ["sh", "-c", script.replace("$$", "$$$$")] if isinstance(script, str) else script,
            "env": [
                {"name": contract.ENV_POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                {"name": "REPORT", "value": Message(attempt=1, iteration=3, time=1.0).encode()},
                *spec.pop("env", []),
            ],
            **spec.pop("container", {}),
        }
        spec.setdefault("terminationGracePeriodSeconds", 30)
        labels = {"trialkeeper.dev/trial": name.rpartition("-a")[0]}
        return await self.memory.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "labels": labels},
                "spec": {"restartPolicy": "Never", "containers": [container], **spec},
            }
        )

    async def until(self, wanted: Callable[[Event], bool], name: str = "exp-0-a1") -> Object:
        async for event in self.memory.events():
            if event.object["metadata"]["name"] == name and wanted(event):
                return event.object
        raise AssertionError

    async def ended(self, name: str = "exp-0-a1") -> Object:
        return await self.until(lambda e: e.object["status"]["phase"] in ("Succeeded", "Failed"), name)

    async def gone(self, name: str = "exp-0-a1") -> Object:
        """The last state of a pod that is removed from now on."""
        return await self.until(lambda e: e.type == "DELETED", name)

    async def ready(self) -> None:
        await self.reports.get()

    def log(self, name: str = "exp-0-a1") -> str:
        return self.place.log(name).read_text()

    def pid(self, name: str) -> int:
        return int((self.root / name).read_text())


@asynccontextmanager
async def living(house: House) -> AsyncIterator[House]:
    """The house while its kubelet runs."""
    task = asyncio.ensure_future(house.kubelet.run())
    try:
        yield house
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def dead(pid: int) -> None:
    """Until a process that is nobody's child here has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)


def terminated(pod: Object) -> dict[str, Any]:
    found: dict[str, Any] = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return found


def conditions(pod: Object) -> list[str]:
    return [c["reason"] for c in pod["status"].get("conditions") or ()]


ENDINGS = {
    "a clean end": ("exit 0", "Succeeded", 0, "Completed", ""),
    "an exit code": ("exit 3", "Failed", 3, "Error", ""),
    "SIGKILL": ("kill -9 $$", "Failed", 137, "Error", ""),
    "SIGTERM": ("kill -15 $$", "Failed", 143, "Error", ""),
    "SIGSEGV": ("kill -11 $$", "Failed", 139, "Error", ""),
    "last words": ("echo gone > $TRIALKEEPER_TERMINATION_LOG; exit 1", "Failed", 1, "Error", "gone\n"),
    "the log, since there are no words": ("echo boom >&2; exit 1", "Failed", 1, "Error", "boom\n"),
    "no log after a clean end": ("echo fine", "Succeeded", 0, "Completed", ""),
    "words that are too long": (
        "head -c 9000 /dev/zero | tr '\\0' x > $TRIALKEEPER_TERMINATION_LOG",
        "Succeeded",
        0,
        "Completed",
        "x" * 4096,
    ),
    "a pipe in the place of words": (
        "rm $TRIALKEEPER_TERMINATION_LOG; mkfifo $TRIALKEEPER_TERMINATION_LOG",
        "Succeeded",
        0,
        "Completed",
        "",
    ),
    "its folder removed": ("rm -r $(dirname $TRIALKEEPER_SCRATCH)", "Succeeded", 0, "Completed", ""),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_how_a_process_ended_is_said_as_kubernetes_says_it(case: str, tmp_path: Path) -> None:
    script, phase, code, reason, message = ENDINGS[case]

    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create(script, container={"terminationMessagePolicy": "FallbackToLogsOnError"})
            pod = await house.ended()
            state = terminated(pod)
            assert (pod["status"]["phase"], state["exitCode"], state["reason"]) == (phase, code, reason)
            assert state.get("message", "") == message
            assert state["startedAt"] <= state["finishedAt"]
            assert pod["spec"]["nodeName"] == "local"
            assert house.flushed == 1
        await house.kubelet.sweep()

    run(scene())
    assert list((tmp_path / "run" / "pods").iterdir()) == [], "its folder is cleared away"


def test_only_the_end_of_a_long_log_stands_in_for_last_words(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            script = "i=0; while [ $i -lt 900 ]; do echo $i; i=$((i+1)); done; exit 1"
            await house.create(script, container={"terminationMessagePolicy": "FallbackToLogsOnError"})
            message = terminated(await house.ended())["message"]
            assert message.endswith("898\n899\n")
            assert len(message.splitlines()) <= 80

    run(scene())


START_ERRORS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no such command": (["no-such-command"], {}, "no-such-command: no such command"),
    "no such file": (["./no-such-file"], {}, "./no-such-file could not be started: No such file"),
    "not executable": (["./plain.txt"], {}, "./plain.txt could not be started: Permission denied"),
    "no command": ([], {}, "container t has no command"),
    "no such folder": ("exit 0", {"container": {"workingDir": "/no/such"}}, "workingDir /no/such is no folder"),
    "a zero byte": (["sh", "-c", "\0"], {}, "embedded null byte"),
    "a secret": (
        "exit 0",
        {"env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
        "export TOKEN=... in the shell",
    ),
    "no reference": ("exit 0", {"env": [{"name": "A", "valueFrom": "x"}]}, "env A: valueFrom takes one reference"),
    "too many GPUs": (
        "exit 0",
        {"container": {"resources": {"limits": {"nvidia.com/gpu": 2}}}},
        "asks for 2 GPUs (nvidia.com/gpu) and this machine has 0",
    ),
    "half a GPU": ("exit 0", {"container": {"resources": {"limits": {"nvidia.com/gpu": "0.5"}}}}, "not a whole number"),
}


@pytest.mark.parametrize("case", START_ERRORS)
def test_what_cannot_be_started_ends_with_one_sentence(case: str, tmp_path: Path) -> None:
    script, spec, words = START_ERRORS[case]
    (tmp_path / "plain.txt").touch()

    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create(script, **spec)
            state = terminated(await house.ended())
            assert (state["reason"], state["exitCode"]) == ("StartError", 128)
            assert words in state["message"]
            assert "\n" not in state["message"]
            await house.create("exit 0", "exp-1-a1")
            assert terminated(await house.ended("exp-1-a1"))["exitCode"] == 0, "it stops nobody else"

    run(scene())


def test_a_machine_that_is_full_is_not_the_templates_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(process, "start", refused)

    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create("exit 0")
            status = (await house.ended())["status"]
            assert "containerStatuses" not in status
            assert "no room" in status["message"]

    run(scene())


def test_a_trainer_sees_its_variables_and_nothing_of_an_outer_run(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    shell = {"PATH": os.environ["PATH"], "HOME": "/h", "TRIALKEEPER_ATTEMPT": "7", "TRIALKEEPER_HOLD": "3"}

    async def scene() -> None:
        async with living(House(tmp_path, shell)) as house:
            await house.create(
                ["sh", "-c", "pwd; env; command -v python; echo $(WHO)", "$(WHO)"],
                env=[{"name": "WHO", "value": "me"}, {"name": "PATH", "value": "/opt:/usr/bin:/bin"}],
                container={"workingDir": "src"},
            )
            await house.ended()
            lines = house.log().splitlines()
            assert lines[0] == str(tmp_path / "src")
            assert f"PATH={Path(sys.executable).parent}:/opt:/usr/bin:/bin" in lines
            assert lines[-2:] == [str(Path(sys.executable).parent / "python"), "me"]
            seen = dict(line.split("=", 1) for line in lines if "=" in line)
            assert seen["HOME"] == "/h"
            assert {k for k in seen if k.startswith("TRIALKEEPER_")} == {
                contract.ENV_POD_UID,
                contract.ENV_SCRATCH,
                contract.ENV_TERMINATION_LOG,
                contract.ENV_REPORT,
                contract.ENV_STORE,
            }
            assert seen[contract.ENV_STORE] == (tmp_path / "run" / "store").as_uri()

    run(scene())


def test_the_named_container_is_the_trainer(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.memory.create(
                {
                    "kind": "Pod",
                    "metadata": {
                        "name": "exp-0-a1",
                        "namespace": "default",
                        "annotations": {"trialkeeper.dev/trainer-container": "b"},
                    },
                    "spec": {
                        "containers": [
                            {"name": "a", "command": ["sh", "-c", "exit 1"]},
                            {"name": "b", "command": ["sh", "-c", "exit 2"]},
                        ]
                    },
                }
            )
            status = (await house.ended())["status"]
            assert [c["name"] for c in status["containerStatuses"]] == ["b"]
            assert terminated({"status": status})["exitCode"] == 2

    run(scene())


def test_live_reports_arrive_and_the_last_one_before_the_end_is_said(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create(READY)
            await house.ended()
            trial, message = house.reports.get_nowait()
            assert (trial, message.iteration) == ("exp-0", 3)
            assert house.reports.empty(), "each report is handed on once"

    run(scene())


def test_a_report_that_is_none_is_ignored(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create('head -c 99999 /dev/zero > "${TRIALKEEPER_REPORT#file://}"')
            assert terminated(await house.ended())["exitCode"] == 0
            assert house.reports.empty()

    run(scene())


# What a deletion does: (trap, grace, exit code).
@pytest.mark.parametrize(
    ("trap", "grace", "code"),
    [("trap 'exit 7' TERM", 30, 7), ("trap '' TERM", 1, 137), ("", 30, 143)],
    ids=["saves and leaves", "ignores SIGTERM", "does not care"],
)
def test_a_deleted_pod_gets_its_grace_and_then_is_gone(trap: str, grace: int, code: int, tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create(f"{trap}\n{READY}{FOREVER}")
            await house.ready()
            await house.memory.delete("Pod", "default", "exp-0-a1", grace_seconds=grace)
            last = await house.gone()
            assert terminated(last)["exitCode"] == code

    run(scene())


def test_a_pod_that_is_removed_without_grace_is_killed(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create(f"trap '' TERM; echo $$ > {tmp_path}/pid\n{READY}{FOREVER}")
            await house.ready()
            pid = house.pid("pid")
            await house.memory.delete("Pod", "default", "exp-0-a1", grace_seconds=0)
            await house.kubelet.stop()
            assert not process.alive(pid)

    run(scene())


def test_a_shorter_grace_counts(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create(f"trap 'echo heard' TERM\n{READY}while :; do {FOREVER.strip()}; done")
            await house.ready()
            await house.memory.delete("Pod", "default", "exp-0-a1")
            await house.memory.delete("Pod", "default", "exp-0-a1", grace_seconds=1)
            assert terminated(await house.gone())["exitCode"] == 137
            assert house.log() == "heard\n", "SIGTERM comes once"

    run(scene())


def test_the_deadline_of_a_pod_ends_it(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create(READY + FOREVER, activeDeadlineSeconds=1)
            status = (await house.ended())["status"]
            assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded")

    run(scene())


@pytest.mark.parametrize(
    ("how", "trap", "code", "reason"),
    [
        ("SIGTERM", "trap 'exit 143' TERM", 143, "EvictionByEvictionAPI"),
        ("SIGKILL", "trap 'exit 143' TERM", 137, "DeletionByPodGC"),
    ],
)
def test_a_preempted_pod_has_the_evidence_of_a_cluster(
    how: Any, trap: str, code: int, reason: str, tmp_path: Path
) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            assert not await house.kubelet.preempt("default", "exp-0-a1", how)
            await house.create(f"{trap}\n{READY}{FOREVER}")
            await house.ready()
            assert await house.kubelet.preempt("default", "exp-0-a1", how)
            last = await house.gone()
            assert terminated(last)["exitCode"] == code
            assert conditions(last) == [reason]
            assert not await house.kubelet.preempt("default", "exp-0-a1", how), "it is hit once"

    run(scene())


def test_children_and_daemons_do_not_outlive_their_trainer(tmp_path: Path) -> None:
    daemon = f"{sys.executable} -c 'import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(600)'"
    # The child has nothing of its pod's environment, the daemon has left the group.
    script = f"env -i sleep 600 & echo $! > {tmp_path}/child\n{daemon} > {tmp_path}/daemon &\n"
    script += f"while [ ! -s {tmp_path}/daemon ]; do :; done"

    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create(script)
            assert terminated(await house.ended())["exitCode"] == 0
            await dead(house.pid("child"))
            await dead(house.pid("daemon"))

    run(scene())


def test_the_end_is_noticed_where_processes_have_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)

    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            names = [f"exp-{i}-a1" for i in range(20)]
            for name in names[1:]:
                await house.create(READY + FOREVER, name)
            await house.create("exit 5", names[0])
            assert terminated(await house.ended(names[0]))["exitCode"] == 5, "however many others run"
            await house.kubelet.stop()

    run(scene())


def test_a_runner_that_goes_gives_every_trainer_time_to_save(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create(f"trap 'echo saved; exit 143' TERM\n{READY}{FOREVER}")
            await house.ready()
            await house.kubelet.stop()
            pod = await house.ended()
            assert (pod["status"]["reason"], conditions(pod)) == ("Terminated", ["TerminationByKubelet"])
            assert house.log() == "saved\n"

    run(scene())


def test_a_runner_that_goes_waits_as_long_as_a_pods_grace(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            assert house.kubelet.grace == 0
            await house.create(f"trap '' TERM\n{READY}{FOREVER}", terminationGracePeriodSeconds=1)
            await house.ready()
            assert house.kubelet.grace == 1
            await house.kubelet.stop()
            assert terminated(await house.ended())["exitCode"] == 137

    run(scene())


def test_a_runner_that_goes_leaves_an_earlier_disruption_as_it_is(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create(f"trap '' TERM\n{READY}{FOREVER}", terminationGracePeriodSeconds=1)
            await house.ready()
            assert await house.kubelet.preempt("default", "exp-0-a1", "SIGTERM")
            gone = asyncio.ensure_future(house.gone())
            await house.kubelet.stop()
            assert conditions(await gone) == ["EvictionByEvictionAPI"]

    run(scene())


def test_a_runner_that_is_told_twice_kills_at_once(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path)) as house:
            await house.create(f"trap '' TERM\n{READY}{FOREVER}")
            await house.ready()
            stopping = asyncio.ensure_future(house.kubelet.stop())
            house.kubelet.kill()
            await stopping
            assert terminated(await house.ended())["exitCode"] == 137

    run(scene())


# After a dead runner.


def orphan(house: House, uid: str, script: str, *, marked_by: str = "uid") -> subprocess.Popen[bytes]:
    """A trainer that lives although its runner is gone; its script has run when this returns."""
    env = {**os.environ, contract.ENV_POD_UID: uid} if marked_by == "uid" else dict(os.environ)
    env |= house.place.prepare("exp-0-a1") if marked_by == "scratch" else {}
    left, right = os.pipe()
    command = ["sh", "-c", f"{script}\necho x\n{FOREVER}"]
    child = subprocess.Popen(command, env=env, stdout=right, start_new_session=True)
    os.close(right)
    os.read(left, 1)
    os.close(left)
    return child


@asynccontextmanager
async def living_after(house: House, child: subprocess.Popen[bytes]) -> AsyncIterator[None]:
    """The kubelet's next runner; a real orphan is reaped by init, here its parent has to do it."""
    reaped = asyncio.ensure_future(process.ended(child))
    async with living(house):
        await reaped
        yield


@pytest.mark.parametrize("marked_by", ["uid", "scratch"])
def test_what_a_dead_runner_left_is_ended_and_its_pods_have_lost_their_node(marked_by: str, tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        pod = await house.create("exit 0")
        await house.memory.bind("default", "exp-0-a1", "local")
        folder = house.place.pod("exp-0-a1")
        house.place.prepare("exp-0-a1")
        (folder / "termination").write_text("words")
        trap = f"trap 'echo saved > {tmp_path}/saved; exit 143' TERM"
        child = orphan(house, pod["metadata"]["uid"], trap, marked_by=marked_by)
        async with living_after(house, child):
            ended = await house.ended()
        assert (tmp_path / "saved").exists(), "it had its grace"
        assert conditions(ended) == ["DeletionByPodGC"]
        state = terminated(ended)
        assert (state["exitCode"], state["reason"], state["message"]) == (137, "ContainerStatusUnknown", "words")
        assert not folder.exists()

    run(scene())


def test_a_daemon_of_a_pod_that_nobody_knows_any_more_is_ended_too(tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        async with living_after(house, orphan(house, "gone", "trap '' TERM", marked_by="scratch")):
            pass  # the kubelet has ended it, else this is never reached

    run(scene())


def test_a_pod_that_never_began_is_started_after_the_runners_death(tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        await house.create("exit 4")
        async with living(house):
            assert terminated(await house.ended())["exitCode"] == 4

    run(scene())


def test_a_pod_that_ended_while_it_was_being_deleted_is_removed_by_the_next_runner(tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        pod = await house.create("exit 0")
        await house.memory.bind("default", "exp-0-a1", "local")
        await house.memory.delete("Pod", "default", "exp-0-a1")
        stored = await house.memory.get("Pod", "default", "exp-0-a1")
        assert stored is not None
        await house.memory.put_status({**stored, "status": {"phase": "Failed"}})
        async with living(house):
            assert (await house.gone())["metadata"]["uid"] == pod["metadata"]["uid"]

    run(scene())


# GPUs.

ONE_GPU = {"resources": {"limits": {"nvidia.com/gpu": 1}}}


def test_gpus_are_lent_and_a_pod_waits_until_one_is_free(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path, gpus=("5",))) as house:
            script = f"trap 'exit 0' TERM; echo $CUDA_VISIBLE_DEVICES\n{READY}{FOREVER}"
            await house.create(script, "exp-0-a1", container=ONE_GPU)
            await house.ready()
            await house.create(script, "exp-1-a1", container=ONE_GPU)
            await house.create("exit 0", "exp-2-a1")
            await house.ended("exp-2-a1")
            waiting = await house.memory.get("Pod", "default", "exp-1-a1")
            assert waiting is not None
            assert waiting["status"]["phase"] == "Pending"
            assert "nodeName" not in waiting["spec"]
            await house.memory.delete("Pod", "default", "exp-0-a1")
            assert (await house.reports.get())[0] == "exp-1"
            assert (house.log("exp-0-a1"), house.log("exp-1-a1")) == ("5\n", "5\n")

    run(scene())


def test_a_pod_that_waits_for_a_gpu_can_be_deleted_and_the_runner_stopped(tmp_path: Path) -> None:
    async def scene() -> None:
        async with living(House(tmp_path, gpus=("0",))) as house:
            await house.create(READY + FOREVER, "exp-0-a1", container=ONE_GPU)
            await house.ready()
            for name in ("exp-1-a1", "exp-2-a1"):
                await house.create("exit 0", name, container=ONE_GPU)
            await house.memory.delete("Pod", "default", "exp-1-a1")
            with pytest.raises(NotFound):
                await house.memory.delete("Pod", "default", "exp-1-a1")
            await house.kubelet.stop()
            left = await house.memory.get("Pod", "default", "exp-2-a1")
            assert left is not None
            assert left["status"]["phase"] == "Pending", "the next runner begins it"
            assert not house.place.log("exp-1-a1").exists()

    run(scene())


def test_gpus_come_back_in_their_order() -> None:
    async def scene() -> None:
        gpus = Gpus(["0", "1", "10"])
        async with gpus.lend(1) as first:
            assert first == "0"
            async with gpus.lend(2) as second:
                assert second == "1,10"
        async with gpus.lend(3) as third, gpus.lend(0) as none:
            assert (third, none) == ("0,1,10", None)

    run(scene())
