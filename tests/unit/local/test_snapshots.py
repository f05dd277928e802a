"""`trialkeeper snapshot show` from outside: files, runs, and whatever somebody puts into a ConfigMap."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from builders import experiment, trial
from trialkeeper_operator.local import snapshots
from trialkeeper_operator.state.snapshot import config_map, encode


def stored(**changes: Any) -> dict[str, Any]:
    of = experiment()
    of["status"] = {
        "phase": "Running",
        "trials": 2,
        "counts": {"Running": 1, "Succeeded": 1},
        "best": {"trial": "exp-1", "parameters": {"lr": 0.02}, "value": 0.25},
        "disruptions": 3,
        **changes.pop("status", {}),
    }
    loss = {"loss": {"last": 0.25, "min": 0.25, "max": 1.0}}
    done = {"phase": "Succeeded", "reason": "Completed", "attempt": 2, "closed": 2, "iteration": 9, "metrics": loss}
    trials = [
        trial(phase="Running", attempt=3, closed=2, iteration=4, disruptions=3),
        trial("exp-1", index=1, **{**done, **changes}),
    ]
    return config_map(of, encode(of, trials))


def shown(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(snapshots.snapshot, ["show", *arguments], input=text)


@pytest.mark.parametrize("dump", [yaml.safe_dump, json.dumps])
def test_what_kubectl_printed_is_shown(dump: Any, tmp_path: Path) -> None:
    file = tmp_path / "cm.yaml"
    file.write_text(dump(stored()))
    done = shown("--file", str(file))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "experiment  exp in default, uid exp-uid"
    assert "best        exp-1: loss 0.25 with lr=0.02" in lines
    head = next(line for line in lines if line.startswith("trial "))
    assert head.split()[-1] == "parameters"
    assert [line.split()[:4] for line in lines[lines.index(head) + 1 :]] == [
        ["exp-0", "Running", "3", "4"],
        ["exp-1", "Succeeded", "2", "9"],
    ]
    assert "\x1b" not in done.stdout


def test_stdin_is_read_and_json_is_whole() -> None:
    done = shown("--file", "-", "--format", "json", text=yaml.safe_dump(stored()))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["experiment"]["uid"] == "exp-uid"
    assert [t["spec"]["index"] for t in found["trials"]] == [0, 1]
    assert found["trials"][1]["status"]["metrics"]["loss"]["min"] == 0.25


def test_of_several_the_named_one_is_shown() -> None:
    both = yaml.safe_dump({"kind": "List", "items": [{"kind": "ConfigMap", "metadata": {"name": "x"}}, stored()]})
    assert shown("exp", "--file", "-", text=both).exit_code == 0
    assert shown("exp-snapshot", "--file", "-", text=both).exit_code == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no ConfigMap"),
        ("a: [", "line 1"),
        ("kind: Secret\nmetadata: {name: exp-snapshot}", "there is no ConfigMap"),
        ("kind: ConfigMap\nmetadata: {name: exp-snapshot}", "binaryData has no"),
        ("kind: ConfigMap\nmetadata: {name: exp-snapshot}\nbinaryData: {snapshot.json.gz: AAAA}", "cannot be unpacked"),
        ("kind: ConfigMap\nmetadata: {annotations: [1]}\nbinaryData: []", "binaryData has no"),
    ],
)
def test_what_is_no_snapshot_is_one_sentence(text: str, words: str) -> None:
    done = shown("--file", "-", text=text)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    done = shown("--file", str(tmp_path / "none"))
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "No such file" in done.stderr


def test_nothing_in_a_snapshot_reaches_the_terminal_as_a_command() -> None:
    evil = stored(reason="\x1b[31mred\x07", status={"phase": "\x1b]0;title\x07"})
    done = shown("--file", "-", text=yaml.safe_dump(evil))
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout


def test_a_row_that_no_operator_writes_is_refused() -> None:
    done = shown("--file", "-", text=yaml.safe_dump(stored(phase="Flying")))
    assert done.exit_code == 2
    assert "status.phase" in done.stderr


def test_a_cluster_is_asked_for_what_no_run_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, namespace: str) -> dict[str, Any]:
        asked.append((name, namespace))
        return stored()

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    done = shown("exp", "--dir", str(tmp_path))
    assert done.exit_code == 2
    assert "no run here has left exp-snapshot, and " in done.stderr
    monkeypatch.setattr(snapshots, "fetch", fetch)
    assert shown("exp", "--dir", str(tmp_path), "-n", "team").exit_code == 0
    assert asked == [("exp-snapshot", "team")]


def test_a_run_on_this_machine_is_shown_as_it_is_now(tmp_path: Path) -> None:
    from trialkeeper_operator.cluster.journal import attach

    memory, journal = attach(tmp_path / "exp" / "journal.jsonl", now=lambda: 0.0)

    async def fill() -> None:
        of = experiment()
        del of["metadata"]["resourceVersion"]
        made = await memory.create(of)
        body = trial()
        del body["metadata"]["resourceVersion"]
        body["metadata"]["ownerReferences"][0]["uid"] = made["metadata"]["uid"]
        await memory.create(body)

    import asyncio

    asyncio.run(fill())
    journal.close()
    done = shown("exp", "--dir", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert "exp-0" in done.stdout


def test_neither_a_name_nor_a_file_is_a_wrong_usage() -> None:
    assert shown().exit_code == 2


def test_help_loads_no_model() -> None:
    code = "import sys; from trialkeeper_operator.local import snapshots; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("kubectl", "words"),
    [
        ("echo 'error: no such thing' >&2; exit 1", "kubectl says: error: no such thing"),
        ("echo nonsense", "did not answer with an object"),
        (None, "there is no kubectl"),
    ],
)
def test_what_kubectl_says_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kubectl: str | None, words: str
) -> None:
    if kubectl is not None:
        program = tmp_path / "kubectl"
        program.write_text(f"#!/bin/sh\n{kubectl}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if kubectl else str(tmp_path))
    done = shown("exp", "--dir", str(tmp_path / "none"), "-n", "team")
    assert (done.exit_code, words in done.stderr) == (2, True), done.stderr


def test_kubectl_is_asked_for_the_snapshot_of_the_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cm.json").write_text(json.dumps(stored()))
    program = tmp_path / "kubectl"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {tmp_path}/cm.json\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert shown("exp", "-n", "team").exit_code == 0
    assert (tmp_path / "asked").read_text().split()[-2:] == ["--", "exp-snapshot"]
