"""The command `trialkeeper sweep`, on a folder and on a bucket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fake_s3 import fake_s3
from manifests import body, entry
from minio_server import KEYS
from stores import environment_of
from trialkeeper import contract, manifest
from trialkeeper.store.opening import open_tree
from trialkeeper_operator.local.sweeping import seconds, sweep

TRIAL = "default/digits-1/00000"


def fill(url: str, folder: Path) -> None:
    """Three checkpoints, an orphan, and results."""
    store = open_tree(environment_of(url, folder)).at(TRIAL)
    store.put_new(contract.attempt_key(1), json.dumps({"base": None}).encode())
    store.put_new("results/a000001.jsonl/000001", b"{}\n")
    for n in (1, 2, 3):
        data = contract.data_key(1, n, "aa")
        store.put_new(f"{data}/w", b"w" * 1024)
        said = body(iteration=n, metrics={"loss": float(n)}, data=data, files=[entry(key=f"{data}/w")])
        store.put_new(contract.manifest_key(1, n), manifest.encode(said))
    store.put_new("data/a000001-i000000000004-bb/w", b"orphan")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(sweep, arguments)


def test_a_runs_folder_is_swept(tmp_path: Path) -> None:
    fill((tmp_path / "run" / "store").as_uri(), tmp_path)
    run = str(tmp_path / "run")
    young = call(run)
    assert (young.exit_code, young.stdout) == (0, "removed: 0 objects, 0 B, 0 checkpoints; 3.0 KiB stay\n")
    for arguments, word in ((["--dry-run"], "would be removed"), ([], "removed"), ([], "")):
        done = call(run, "--older-than", "0", *arguments)
        assert done.exit_code == 0
        lines = done.stdout.splitlines()
        if word:
            assert lines[0] == f"{TRIAL}/data/a000001-i000000000004-bb/w: of no checkpoint, 6 B"
            assert lines[1] == f"{word}: 1 objects, 6 B, 0 checkpoints; 3.0 KiB stay"
    assert lines == ["removed: 0 objects, 0 B, 0 checkpoints; 3.0 KiB stay"]
    assert not list((tmp_path / "run" / "store" / TRIAL / "data").glob("*-bb"))


def test_a_budget_and_an_experiment_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with fake_s3() as server:
        fill(server.url, tmp_path)
        done = call(server.url, "--budget", "2Ki", "--score", "loss", "--order", "Min")
        assert (done.exit_code, done.stderr) == (
            0,
            "default/digits-1 is 1.0 KiB beyond its budget: the rest of it is needed\n",
        )
        done = call(server.url, "--budget", "2Ki", "--score", "loss", "--order", "Max")
        assert done.exit_code == 0
        assert f"{TRIAL}/manifests/a000001-i000000000001.json: beyond the budget, 1.0 KiB" in done.stdout
        done = call(server.url, "--delete", "default/digits-1")
        assert done.exit_code == 0
        assert server.objects == {}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere is no folder"),
        ([".", "--budget", "50GB"], "'50GB' is not a size"),
        ([".", "--older-than", "a day"], "--older-than 'a day' is not a time"),
        ([".", "--delete", "../x"], "is no experiment's folder"),
        (["s3://bucket?endpoint=x"], "is not http://host:port"),
        (["http://b"], "is neither a file:// nor an s3:// URL"),
    ],
)
def test_what_cannot_be_swept_is_said(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr


def test_a_bucket_that_is_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    done = call("s3://bucket?endpoint=http://127.0.0.1:9")
    assert done.exit_code == 1
    assert "there are no keys for the bucket" in done.stderr


def test_times_are_read_as_people_write_them() -> None:
    assert [seconds(text) for text in ("0", "90s", "1.5h", "2d")] == [0, 90, 5400, 172800]
