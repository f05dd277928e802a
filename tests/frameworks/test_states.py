"""What the integrations save and load: all of it, nothing that runs code, and what is missing is said."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.cluster
import sklearn.linear_model
import sklearn.naive_bayes
import sklearn.neural_network
import torch

from trialkeeper.integrations import sklearn as estimators
from trialkeeper.integrations import torch as state


def draws(*generators: Any) -> list[Any]:
    drawn: list[Any] = [random.random(), np.random.rand(), torch.rand(1).item()]
    for generator in generators:
        if isinstance(generator, torch.Generator):
            drawn.append(torch.rand(1, generator=generator).item())
        else:
            drawn.append(generator.random())
    return drawn


def generators() -> dict[str, Any]:
    return {
        "torch": torch.Generator().manual_seed(1),
        "python": random.Random(2),
        "pcg": np.random.default_rng(3),
        "mt": np.random.Generator(np.random.MT19937(3)),
        "philox": np.random.Generator(np.random.Philox(3)),
    }


def test_all_random_numbers_go_on(tmp_path: Path) -> None:
    first = generators()
    draws(*first.values())
    state.save(tmp_path, **first, note=("x", 1, None))
    expected = draws(*first.values())
    again = generators()
    assert state.load(tmp_path, **again) == {"note": ("x", 1, None)}
    assert draws(*again.values()) == expected


def test_a_part_is_read_without_touching_the_rest(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    state.save(tmp_path, model=model, optimizer=torch.optim.Adam(model.parameters()), epoch=3)
    fresh = torch.nn.Linear(2, 2)
    before = random.getstate()
    assert state.read(tmp_path, model=fresh) == {"epoch": 3}
    assert random.getstate() == before
    assert torch.equal(fresh.weight, model.weight)
    with pytest.raises(ValueError, match="the checkpoint has a state of optimizer that load\\(\\) is not given"):
        state.load(tmp_path, model=fresh)
    with pytest.raises(ValueError, match="the checkpoint has no state of scheduler"):
        state.read(tmp_path, scheduler=torch.optim.lr_scheduler.StepLR(torch.optim.SGD(fresh.parameters(), 1), 1))
    with pytest.raises(ValueError, match="epoch is int, which has no state to load into"):
        state.load(tmp_path, model=fresh, optimizer=torch.optim.Adam(fresh.parameters()), epoch=0)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [np.float64(1)]}, "extra\\['a'\\]\\[0\\] is float64"),
        (print, "extra is builtin_function_or_method"),
        ({1: Path()}, "extra\\[1\\] is PosixPath"),
    ],
)
def test_what_only_pickle_could_load_is_refused_when_it_is_saved(tmp_path: Path, value: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        state.save(tmp_path, extra=value)


class Bomb:
    def __reduce__(self) -> Any:
        return os.abort, ()


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    torch.save(Bomb(), tmp_path / "values.pt")
    with pytest.raises(pickle.UnpicklingError):
        state.read(tmp_path)


def test_an_old_torch_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.5.1+cpu")
        with pytest.raises(ImportError, match="CVE-2025-32434"):
            importlib.reload(state)
    importlib.reload(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_after_any_batch(workers: int) -> None:
    def loader() -> state.ResumableLoader:
        return state.ResumableLoader(torch.arange(10), batch_size=4, seed=1, num_workers=workers)

    whole = [(e, b.tolist()) for data in [loader()] for e in data.epochs(3) for b in data]
    assert sorted(i for e, b in whole if e == 1 for i in b) == list(range(10))
    assert [b for e, b in whole if e == 0] != [b for e, b in whole if e == 1]
    seen: list[Any] = []
    saved = loader().state_dict()
    for _ in range(len(whole) + 1):  # a new process after each batch
        data = loader()
        data.load_state_dict(saved)
        for epoch, batch in ((e, b) for e in data.epochs(3) for b in data):
            seen.append((epoch, batch.tolist()))
            saved = data.state_dict()
            break
    assert seen == whole


def test_a_loader_without_epochs_of_its_own_begins_the_next_one_each_time() -> None:
    data = state.ResumableLoader(torch.arange(4), batch_size=2, seed=1)
    first, second = [b.tolist() for b in data], [b.tolist() for b in data]
    assert (data.epoch, data.position) == (1, 2)
    assert first != second
    other = state.ResumableLoader(torch.arange(5), batch_size=2, seed=1)
    with pytest.raises(ValueError, match="the data were saved with size 4, and here it is 5"):
        other.load_state_dict(data.state_dict())


SHARDED = """
import json, os, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from trialkeeper.integrations import torch as state

torch.set_num_threads(1)
world = int(os.environ.get("WORLD_SIZE", "1"))
if world > 1:
    dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
if world > 1:
    fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
rank = dist.get_rank() if world > 1 else 0

def step(number):
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad(); model(x).square().sum().backward(); optimizer.step()

loaded = None
if sys.argv[1] == "save":
    for number in range(3): step(number)
    folder = f"{sys.argv[2]}-{rank}"  # each process into its own, as on several nodes
    os.mkdir(folder)
    state.save_sharded(folder, model=model, optimizer=optimizer, step=3, rank=rank)
else:
    loaded = state.load_sharded(sys.argv[2], model=model, optimizer=optimizer)
for number in range(3, 6): step(number)
whole = sum((p.full_tensor() if hasattr(p, "full_tensor") else p).double().sum() for p in model.parameters())
with open(f"ended-{rank}.json", "w") as out:  # what two processes print may be mixed
    json.dump([whole.item(), loaded], out)
if world > 1:
    dist.destroy_process_group()
"""


def sharded(folder: Path, what: str, processes: int) -> list[tuple[float, dict[str, int] | None]]:
    """Run it; of each process the sum of all weights, and what it loaded."""
    (folder / "sharded.py").write_text(SHARDED)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, "sharded.py", what, "shards"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended = [json.loads((folder / f"ended-{rank}.json").read_text()) for rank in range(processes)]
    return [(total, loaded) for total, loaded in ended]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """(a folder with `shards`, saved by two processes, and the sum that they ended with)."""
    folder = tmp_path_factory.mktemp("sharded")
    (first, _), (second, _) = sharded(folder, "save", 2)
    assert first == second
    (folder / "shards").mkdir()
    for rank in (0, 1):
        shutil.copytree(folder / f"shards-{rank}", folder / "shards", dirs_exist_ok=True)
    return folder, first


@pytest.mark.timeout(1200)
def test_shards_go_back_into_as_many_processes_and_into_one(shards: tuple[Path, float]) -> None:
    folder, ended = shards
    assert sharded(folder, "load", 2) == [(ended, {"step": 3, "rank": rank}) for rank in (0, 1)]
    ((total, loaded),) = sharded(folder, "load", 1)
    assert loaded == {"step": 3, "rank": 0}
    assert total == pytest.approx(ended, rel=1e-6)


@pytest.mark.timeout(1200)
def test_metadata_of_shards_run_nothing_and_lead_nowhere(shards: tuple[Path, float], tmp_path: Path) -> None:
    shutil.copytree(shards[0] / "shards", tmp_path / "s")
    file = tmp_path / "s" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../elsewhere"
    bombs = (pickle.dumps(Bomb()), pickle.dumps(metadata), b"cposix\nsystem\n(S'exit 1'\ntR.")
    for bomb in bombs:
        file.write_bytes(bomb)
        with pytest.raises(pickle.UnpicklingError, match=r"none of DCP's|lead out of it"):
            state.load_sharded(tmp_path / "s", model=torch.nn.Linear(2, 2))


ESTIMATORS = [
    sklearn.linear_model.SGDClassifier(random_state=1, average=True),
    sklearn.linear_model.SGDRegressor(random_state=1),
    sklearn.neural_network.MLPClassifier((8,), random_state=1),
    sklearn.neural_network.MLPClassifier((8,), random_state=1, solver="sgd"),
    sklearn.naive_bayes.GaussianNB(),
    sklearn.naive_bayes.MultinomialNB(),
    sklearn.cluster.MiniBatchKMeans(3, random_state=1, n_init=1),
]


def fit(estimator: Any, pieces: range) -> None:
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(400, 6)))
    y = (x.sum(1) > 4.7).astype(int)
    first: dict[str, Any] = {} if "Regressor" in str(estimator) or "KMeans" in str(estimator) else {"classes": [0, 1]}
    for piece in pieces:
        part = slice(piece * 40, piece * 40 + 40)
        estimator.partial_fit(x[part], y[part], **first)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_an_estimator_goes_on_as_if_nothing_had_been(estimator: Any, pickled: bool, tmp_path: Path) -> None:
    whole, half = sklearn.base.clone(estimator), sklearn.base.clone(estimator)
    fit(whole, range(10))
    fit(half, range(5))
    estimators.save(tmp_path, pickle=pickled, model=half, piece=5, weights=np.arange(3.0))
    if pickled:
        with pytest.raises(ValueError, match=r"model\.pickle is a pickle, and reading it runs code"):
            estimators.load(tmp_path)
    expected = draws()
    loaded = estimators.load(tmp_path, allow_pickle=pickled)
    assert draws()[:2] == expected[:2]
    assert loaded["piece"] == 5
    assert loaded["weights"].tolist() == [0, 1, 2]
    fit(loaded["model"], range(5, 10))
    for name, value in vars(whole).items():
        if name.endswith("_") and isinstance(value, (np.ndarray, list)):
            again = getattr(loaded["model"], name)
            pairs = zip(again, value, strict=True) if isinstance(value, list) else [(again, value)]
            for one, other in pairs:
                np.testing.assert_array_equal(one, other)


class Mine(sklearn.naive_bayes.GaussianNB):  # type: ignore[misc, unused-ignore]
    pass


def test_a_type_that_nobody_trusts_is_named(tmp_path: Path) -> None:
    model = Mine()
    fit(model, range(2))
    estimators.save(tmp_path, model=model)
    with pytest.raises(ValueError, match=r"model\.skops holds .*Mine: pass them as trusted="):
        estimators.load(tmp_path)
    assert estimators.load(tmp_path, trusted=[f"{Mine.__module__}.Mine"])["model"].class_count_.sum() == 80


def test_a_trainer_that_saves_half_is_refused() -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from trialkeeper.integrations.transformers import TrialCallback

    for wrong, words in (({"save_only_model": True}, "saves no optimizer"), ({"save_strategy": "best"}, "would skip")):
        arguments = TrainingArguments(output_dir="x", use_cpu=True, report_to=[], eval_strategy="steps", **wrong)
        with pytest.raises(ValueError, match=words):
            TrialCallback().on_train_begin(arguments, TrainerState(), TrainerControl())
