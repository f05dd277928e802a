"""Retention and sweep on a real MinIO: kills at random instants, and keys that open pins and nothing more."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from minio.credentials.providers import AssumeRoleProvider

from minio_server import KEYS, Minio
from stores import environment_of
from trainers import PREAMBLE, SAVING, BucketPlace
from trialkeeper import contract, manifest, resuming, retention, saving
from trialkeeper.store import AlreadyThere, Denied, Store
from trialkeeper.store.opening import open_at, open_store, open_tree
from trialkeeper.sweep import Sweep
from trialkeeper_operator.serve.credentials import policy

TRIAL, HEIR = "default/a-1/00000", "default/b-2/00000"
LATER = time.time() + 400 * 86_400
TRAINING = (
    PREAMBLE
    + SAVING.replace('(folder / "i")', "(folder / 'frozen').write_bytes(b'f' * 3_000_000)\n    (folder / \"i\")")
    + "for i in range(start, 400):\n    print(i, flush=True)\n"
    + "    trialkeeper.report({'loss': abs(i - 7)}, checkpoint=save)\n"
)


def test_after_kills_at_random_instants_orphans_are_swept_to_zero_and_nothing_else(
    server: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "objectives": [{"metric": "loss"}],
        "checkpoint": {"frequency": 1, "onBusy": "Wait", "numToKeep": 1, "atEnd": True},
    }
    place = BucketPlace(tmp_path, settings, url=server.url, keys=dict(KEYS))
    prefix = "default/killed-1/00000"
    (tmp_path / "t.py").write_text(TRAINING)
    chance, began = random.Random(7), [0]
    for attempt in range(1, 13):
        env = place.env(attempt) | {"TRIALKEEPER_PREFIX": prefix}
        # A group of its own: the upload process is killed at the same instant, as a lost node kills it.
        process = subprocess.Popen(
            [sys.executable, "t.py"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        began.append(int(process.stdout.readline()))
        for _ in range(chance.randint(2, 8)):
            process.stdout.readline()
        time.sleep(chance.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL
    assert began == sorted(began), "no attempt begins before the one that went before it"
    assert began[-1] > 12
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    env_of = environment_of(server.url, tmp_path, TRIALKEEPER_PREFIX=prefix)
    store, tree = open_store(env_of), open_tree(env_of)
    bodies = [manifest.decode(store.get(key)) for key in store.list("manifests/")]
    referred = frozenset[str]().union(*map(retention.objects, bodies))
    swept = Sweep(tree, now=LATER).run(f"{prefix}/")
    assert set(store.list("data/")) == referred
    assert not swept.trouble
    assert 7 in [body["iteration"] - 1 for body in bodies], "the best is kept"
    for body in bodies:
        store.fetch(body["data"], body["files"])
    last = replace(env_of, attempt=12)
    base = json.loads(store.get(contract.attempt_key(12)))["base"]
    rule = retention.Policy(1, "loss", "min")
    while retention.prune(store, last, rule, base).deleted:
        pass  # what the last attempt had no time for
    assert len(store.list("manifests/")) <= 2 + 1 + 1 + 1, "the newest two, the base, the best, and a zombie's"


# Keys that a pod has.


def commit(store: Store, env: Any, iteration: int, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "w").write_text(str(iteration))
    saving.commit(
        store, env, folder, kind="directory", why="periodic", results=None, reported=1.0,
        progress=manifest.Progress(iteration, None, 1.0, {}, ()), metrics={"loss": float(iteration)},
    )  # fmt: skip


def test_an_heirs_keys_pin_at_the_donor_and_do_nothing_more_there(
    server: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def become(access: str, secret: str, token: str = "") -> None:
        for name, value in zip([*KEYS, "AWS_SESSION_TOKEN"], (access, secret, token), strict=True):
            monkeypatch.setenv(name, value)

    become(*KEYS.values())
    donor_env = environment_of(server.url, tmp_path / "donor", TRIALKEEPER_PREFIX=TRIAL)
    donor = open_store(donor_env)
    resuming.claim(donor, donor_env, resuming.begin(donor, donor_env, asked=True).record)
    for iteration in (1, 2, 3):
        commit(donor, donor_env, iteration, tmp_path / str(iteration))
    lent = AssumeRoleProvider(
        sts_endpoint=server.endpoint,
        access_key=KEYS["AWS_ACCESS_KEY_ID"],
        secret_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        duration_seconds=900,
        policy=policy(server.bucket, "default/b-2", ["default/a-1"]),
        region="us-east-1",
    ).retrieve()
    its_own = lent.access_key, lent.secret_key, lent.session_token or ""
    become(*its_own)
    base = contract.inherited_key(TRIAL, 0, 0)
    env = environment_of(server.url, tmp_path / "heir", TRIALKEEPER_PREFIX=HEIR, TRIALKEEPER_BASE=base)
    heir, there = open_store(env), open_at(env, TRIAL)
    monkeypatch.setattr(
        "trialkeeper.store.s3._honest", {}
    )  # each pod tries it, and may try it under its own prefix only
    begun = resuming.begin(heir, env, asked=True)
    resuming.claim(heir, env, begun.record)
    pin = contract.pin_key(HEIR, 1, 1, 3)
    assert donor.list("pins/") == [pin]
    become(*KEYS.values())
    # What the donor does not need any more stays for as long as the heir does.
    for iteration in (4, 5, 6):
        commit(donor, donor_env, iteration, tmp_path / str(iteration))
    done = retention.prune(donor, donor_env, retention.Policy(0), None)
    assert done.trouble == ""
    assert [contract.parse_manifest_key(key) for key in donor.list("manifests/")] == [(1, 3), (1, 5), (1, 6)]
    become(*its_own)
    for key in ("pins/default.c-3.00000.a000001-a000001-i000000000005.json", "manifests/x", "data/x", "pins/x"):
        with pytest.raises((Denied, AlreadyThere)) as refused:
            there.put_new(key, b"")
        assert refused.type is Denied, key
        with pytest.raises(Denied):
            there.delete(key)
    with pytest.raises(Denied):
        there.delete(contract.manifest_key(1, 3))
    for iteration in (4, 5):
        commit(heir, env, iteration, tmp_path / f"heir-{iteration}")
    assert retention.prune(heir, env, retention.Policy(), begun.record["base"]).trouble == ""
    assert donor.list("pins/") == []
    for key in (contract.attempt_key(1), contract.manifest_key(1, 6)):
        assert donor.get(key), "and nothing else is gone"
