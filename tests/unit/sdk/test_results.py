"""Results as people read them: which rows count, whose they are, which trial is best, what is told of checkpoints."""

from __future__ import annotations

import json
import math
import os
import sys
import tracemalloc
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trialkeeper
from fake_s3 import Fake, fake_s3
from minio_server import KEYS
from shelf import Shelf
from trainers import SAVING, BucketPlace, Place
from trialkeeper import contract
from trialkeeper.results import output, rows
from trialkeeper.results.known import BadPlace, NotThere
from trialkeeper.results.reading import Results, Trial
from trialkeeper.store import Denied

UNTIL = "for i in range(start, 9):\n    trialkeeper.report({'loss': 1.0 / (i + 1)}, checkpoint=save)\n"
KILLED_AT = (
    UNTIL + "    if trialkeeper.get_context().attempt == 1 and i == 4: trialkeeper.flush(); os.kill(os.getpid(), 9)\n"
)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "store")


def only(shelf: Shelf) -> Trial:
    (trial,) = trialkeeper.open_results(str(shelf.folder)).trials
    return trial


def told(trial: Trial) -> list[tuple[int, int]]:
    """(iteration, attempt) of each row."""
    return [(row["training_iteration"], row["attempt"]) for row in trial.history()]


# Which rows count.


def test_the_history_is_continuous_over_attempts(shelf: Shelf) -> None:
    shelf.begin()
    shelf.rows(1, range(1, 8))
    shelf.begin(2, shelf.save(1, 5))
    shelf.rows(2, range(6, 9))
    shelf.begin(3, shelf.save(2, 7))
    shelf.rows(3, range(8, 11))
    shelf.rows(1, range(8, 30))  # a zombie, that has not heard of it
    trial = only(shelf)
    assert told(trial) == [*((i, 1) for i in range(1, 6)), (6, 2), (7, 2), (8, 3), (9, 3), (10, 3)]
    raw = [(row["attempt"], row["training_iteration"]) for row in trial.history(raw=True)]
    assert raw == [*((1, i) for i in range(1, 30)), (2, 6), (2, 7), (2, 8), (3, 8), (3, 9), (3, 10)]


def test_a_pod_that_came_again_repeats_iterations_in_one_file(shelf: Shelf) -> None:
    shelf.begin()
    shelf.rows(1, range(1, 8))
    shelf.rows(1, range(4, 6), second=1)
    shelf.rows(1, range(5, 10), third=1)
    found = only(shelf).history()
    assert [row["training_iteration"] for row in found] == [*range(1, 10)]
    assert [row["training_iteration"] for row in found if "second" in row] == [4]
    assert [row["training_iteration"] for row in found if "third" in row] == [*range(5, 10)]


def test_what_is_no_row_is_passed_over(shelf: Shelf) -> None:
    shelf.begin()
    shelf.rows(1, range(1, 3))
    shelf.text(1, '{"training_iteration":3,"lo\n')
    shelf.text(
        1, '\n[]\nnull\n{"training_iteration":"4"}\n{"training_iteration":-1}\n\xff\n{"training_iteration":true}\n'
    )
    shelf.text(1, '{"training_iteration":1,"torn in the midd\n')
    shelf.rows(1, range(3, 5))
    shelf.text(1, '{"training_iteration":5,"attempt":1}')
    assert told(only(shelf)) == [(i, 1) for i in range(1, 5)]


def test_rows_of_another_make_are_read_too(shelf: Shelf) -> None:
    shelf.begin()
    shelf.text(1, '{ "attempt": 1, "loss": 0.5, "training_iteration": 1 }\n')
    assert only(shelf).history() == [{"attempt": 1, "loss": 0.5, "training_iteration": 1}]


def test_what_is_not_finite_is_a_number_again(shelf: Shelf) -> None:
    shelf.begin()
    shelf.rows(1, range(1, 2), a="NaN", b="Infinity", c="-Infinity")
    (row,) = only(shelf).history()
    assert math.isnan(row["a"])
    assert (row["b"], row["c"], row["trial_id"]) == (math.inf, -math.inf, "exp-0")


def test_an_unreadable_record_costs_no_row(shelf: Shelf) -> None:
    shelf.begin()
    shelf.rows(1, range(1, 8))
    (shelf.folder / "attempts" / "000002.json").write_text("{")
    shelf.rows(2, range(6, 9))
    assert told(only(shelf)) == [*((i, 1) for i in range(1, 6)), (6, 2), (7, 2), (8, 2)]


def test_an_attempt_without_a_record_is_the_newest_if_nobody_came_after_it(shelf: Shelf) -> None:
    shelf.begin()
    shelf.rows(1, range(1, 4))
    shelf.rows(2, range(1, 3))
    assert told(only(shelf)) == [(1, 2), (2, 2)]


def test_one_that_started_over_has_its_own_history_alone(shelf: Shelf) -> None:
    shelf.begin()
    shelf.rows(1, range(1, 9))
    shelf.begin(2)
    shelf.rows(2, range(1, 3))
    assert told(only(shelf)) == [(1, 2), (2, 2)]


def test_an_inherited_base_goes_on_into_the_donors_prefix(tmp_path: Path) -> None:
    first = Shelf(tmp_path / "store", "default/exp-00000001/00000")
    second = Shelf(tmp_path / "store", "default/exp-00000002/00000")
    third = Shelf(tmp_path / "store", "default/exp-00000003/00000")
    first.begin()
    first.rows(1, range(1, 5))
    first.begin(2, first.save(1, 3))
    first.rows(2, range(4, 8))
    first.save(2, 6)
    first.begin(3, None)  # whatever the donor does after it was left
    second.begin(1, contract.inherited_key(first.prefix, 2, 6))
    second.rows(1, range(7, 10))
    second.save(1, 8)
    third.begin(1, contract.inherited_key(second.prefix, 1, 8))
    third.rows(1, range(9, 11))
    trial = only(third)
    losses = [row["loss"] for row in trial.history()]
    assert losses == [1.001, 1.002, 1.003, 2.004, 2.005, 2.006, 1.007, 1.008, 1.009, 1.01]
    assert [(c.iteration, c.prefix.rpartition("exp-")[2][:8]) for c in trial.checkpoints] == [
        (8, "00000002"),
        (6, "00000001"),
        (3, "00000001"),
    ]
    assert trial.checkpoints[2].to_directory(tmp_path / "out").joinpath("w").read_bytes() == b"1-3"
    import shutil

    shutil.rmtree(first.folder)
    assert [row["training_iteration"] for row in only(third).history()] == [7, 8, 9, 10]


def test_a_circle_of_donors_ends(tmp_path: Path) -> None:
    one = Shelf(tmp_path / "store", "default/exp-00000001/00000")
    two = Shelf(tmp_path / "store", "default/exp-00000002/00000")
    one.begin(1, contract.inherited_key(two.prefix, 1, 5))
    two.begin(1, contract.inherited_key(one.prefix, 1, 5))
    one.rows(1, range(6, 8))
    assert told(only(one)) == [(6, 1), (7, 1)]


Step = st.one_of(
    st.sampled_from(["report", "report", "report", "save", "resume", "again", "over", "torn"]),
    st.tuples(st.just("zombie"), st.integers(1, 9), st.integers(1, 30)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(Step, max_size=40))
def test_whatever_happens_each_iteration_has_the_row_that_was_written_last_in_its_branch(steps: list[Any]) -> None:
    """The model keeps a list of values; the reader has records, and files with everything that was ever written."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(Path(folder) / "store")
        shelf.begin()
        # The model: (attempt, serial number) of each iteration that can be seen, and where the trainer stands.
        current, stands = 1, 0
        seen: list[tuple[int, int]] = []
        saved: tuple[int, int] | None = None
        for serial, step in enumerate(steps):
            if step == "report":
                seen, stands = [*seen[:stands], (current, serial)], stands + 1
                shelf.rows(current, range(stands, stands + 1), serial=serial)
            elif step == "save" and stands:
                saved = current, stands
            elif step == "torn":
                shelf.text(current, '{"training_iteration":1,"lo\n')
            elif step in ("resume", "over"):
                saved = saved if step == "resume" else None
                current, stands = current + 1, saved[1] if saved else 0
                seen = seen[:stands]
                shelf.begin(current, contract.manifest_key(*saved) if saved else None)
            elif step == "again" and saved is not None and saved[0] == current:
                stands = saved[1]  # the pod is the same: what it had reported is seen until it is reported again
            elif step[0] == "zombie" and current > 1:
                age, ahead = step[1:]
                # It goes on after what it had reported, which is not before what its successor began from.
                number = 1000 + serial * 100 + ahead
                shelf.rows(max(1, current - age), range(number, number + 2), serial=-1)
        found = [(row["attempt"], row["serial"]) for row in only(shelf).history()]
        assert found == seen


def test_a_long_history_needs_no_memory(shelf: Shelf, tmp_path: Path) -> None:
    shelf.begin()
    line = '{{"training_iteration":{},"trial_id":"exp-0","attempt":1,"loss":{}}}\n'
    shelf.text(1, "".join(line.format(i, i / 7) for i in range(1, 60_000)))
    size = (shelf.folder / contract.results_key(1)).stat().st_size
    with trialkeeper.open_results(str(shelf.folder)) as results:
        tracemalloc.start()
        with output.opened(tmp_path / "all.csv") as out:
            output.write_csv(results.trials, out, raw=False)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 60_000
    assert most < size / 10


# What is new.


def test_what_is_new_is_given_once_and_a_resume_repeats(shelf: Shelf) -> None:
    shelf.begin()
    shelf.rows(1, range(1, 4))
    results = trialkeeper.open_results(str(shelf.folder))

    def new() -> list[tuple[int, int]]:
        results.refresh()
        return [(row["training_iteration"], row["attempt"]) for _, row in results.new()]

    assert new() == [(1, 1), (2, 1), (3, 1)]
    assert new() == []
    shelf.text(1, '{"training_iteration":4,')
    assert new() == []
    shelf.text(1, '"attempt":1}\n')
    shelf.rows(1, range(5, 7))
    assert new() == [(4, 1), (5, 1), (6, 1)]
    shelf.begin(2, shelf.save(1, 5))
    shelf.rows(2, range(6, 8))
    shelf.rows(1, range(7, 9))  # a zombie
    assert new() == [(6, 2), (7, 2)]
    shelf.end(2)
    shelf.rows(2, range(8, 9))
    assert new() == [(8, 2)]
    assert new() == []


def test_a_bucket_is_over_when_all_its_trials_are_and_nothing_new_came(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.begin()
    shelf.rows(1, range(1, 3))
    results = trialkeeper.open_results(str(shelf.folder))
    monkeypatch.setattr("trialkeeper.results.reading.QUIET", 0.0)
    assert not results.finished
    shelf.end(1, "preempted")
    results.refresh()
    assert not results.finished
    shelf.begin(2)
    shelf.end(2)
    results.refresh()
    assert results.finished
    monkeypatch.setattr("trialkeeper.results.reading.QUIET", 60.0)
    assert not results.finished


# Whose they are.


def test_places_of_every_kind_are_found(tmp_path: Path) -> None:
    shelves = [Shelf(tmp_path / "store", f"default/exp-12345678/{i:05d}", {"lr": i}) for i in range(3)]
    for shelf in shelves:
        shelf.begin()
        shelf.rows(1, range(1, 3))
    for place in (tmp_path / "store", tmp_path / "store" / "default", tmp_path / "store" / "default" / "exp-12345678"):
        results = trialkeeper.open_results(str(place))
        assert (results.experiment, [t.name for t in results.trials]) == ("exp", ["exp-0", "exp-1", "exp-2"])
        assert [dict(t.parameters) for t in results.trials] == [{"lr": 0}, {"lr": 1}, {"lr": 2}]
    assert trialkeeper.open_results(shelves[1].folder.as_uri()).trials[0].name == "exp-1"
    assert trialkeeper.open_results(str(tmp_path)).trials[2].name == "exp-2", "a run's folder without its journal"
    other = Shelf(tmp_path / "store", "default/exp-99999999/00000")
    other.begin()
    with pytest.raises(NotThere, match=r"2 experiments.*exp-12345678, .*exp-99999999"):
        trialkeeper.open_results(str(tmp_path / "store"))
    os.utime(other.folder / "attempts" / "000001.json", (9e9, 9e9))
    assert trialkeeper.open_results(str(tmp_path)).trials[0].prefix.endswith("exp-99999999/00000"), "the newest"


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        ("nowhere", NotThere, "is no folder"),
        (".", NotThere, "there are no trials in"),
        ("gs://bucket", BadPlace, "is not a place of results"),
        ("", BadPlace, "is not a place of results"),
        ("s3://bucket?endpoint=nonsense", BadPlace, "is not http://host:port"),
        ("exp/A", BadPlace, "neither exp/NAME nor exp/NAMESPACE/NAME"),
    ],
)
def test_a_place_that_cannot_be_read_is_one_sentence(
    where: str, error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        trialkeeper.open_results(where)


def test_without_the_operators_package_a_cluster_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trialkeeper.results.finding.entry_points", lambda **_: ())
    with pytest.raises(ImportError, match=r"pip install 'trialkeeper\[local\]'"):
        trialkeeper.open_results("exp/digits")


def test_a_plain_run_is_read(tmp_path: Path) -> None:
    place = Place(tmp_path)
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRIALKEEPER_")}
    import subprocess

    (tmp_path / "train.py").write_text(
        "import trialkeeper\nfor i in range(3): trialkeeper.report({'loss': 1.0 / (i + 1)})"
    )
    subprocess.run([sys.executable, "train.py"], cwd=place.root, env=env, check=True, capture_output=True)
    results = trialkeeper.open_results(str(tmp_path / "trialkeeper-store" / "train"))
    (trial,) = results.trials
    assert (results.experiment, trial.name, len(trial.history())) == ("train", "train-1", 3)
    assert results.best("loss", "min") is trial


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with fake_s3() as running:
        running.page = 2
        yield running


def test_a_bucket_alone_tells_the_whole_story(server: Fake, tmp_path: Path) -> None:
    place = BucketPlace(tmp_path, url=server.url, keys=dict(KEYS), params={"lr": 0.5})
    place.settings["objectives"] = [{"metric": "loss", "direction": "Maximize", "value": "Best"}]
    place.run(SAVING + KILLED_AT)
    left = place.run(SAVING + KILLED_AT, 2)
    assert left.end == ("complete", ""), left.err
    with trialkeeper.open_results(server.url.replace("trials?", "trials/t?")) as results:
        (trial,) = results.trials
        assert (results.experiment, trial.name, trial.parameters, trial.state) == (
            "exp",
            "exp-0",
            {"lr": 0.5},
            "Succeeded",
        )
        assert [row["training_iteration"] for row in trial.history()] == [*range(1, 10)]
        assert (results.best(), trial.value()) == (trial, 1.0)
        iterations = [c.iteration for c in trial.checkpoints]
        assert (iterations[0], iterations) == (9, sorted({*iterations, 5}, reverse=True))
        assert all(c.whole for c in trial.checkpoints)
        assert [(a.number, a.base and a.base[-7:-5], a.ended and a.ended.end) for a in trial.attempts] == [
            (1, None, None),
            (2, "05", "complete"),
        ]
        assert (trial.checkpoints[0].to_directory(tmp_path / "out") / "i").read_text() == "8"
    del server.objects[max(key for key in server.objects if key.startswith("t/results/a000001"))]
    with trialkeeper.open_results(server.url.replace("trials?", "trials/t?")) as results:
        found = [row["training_iteration"] for row in results.history("exp-0")]
        assert 4 <= len(found) < 9, "a segment that is gone is passed over"
        assert found[-4:] == [6, 7, 8, 9]


def test_a_copy_of_a_bucket_in_a_folder_is_read(server: Fake, tmp_path: Path) -> None:
    place = BucketPlace(tmp_path, url=server.url, keys=dict(KEYS))
    place.run(SAVING + KILLED_AT)
    for key, (data, _) in server.objects.items():
        path = tmp_path / "copy" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (trial,) = trialkeeper.open_results(str(tmp_path / "copy" / "t")).trials
    assert [row["training_iteration"] for row in trial.history()] == [*range(1, 6)]
    assert (trial.checkpoints[0].to_directory(tmp_path / "out") / "i").read_text() == "4"


def test_wrong_keys_are_one_sentence(server: Fake) -> None:
    from fake_s3 import Fault

    server.fault = lambda _: Fault(403, b"<Error><Code>AccessDenied</Code></Error>")
    with pytest.raises(Denied, match="AccessDenied"):
        trialkeeper.open_results(server.url)


def test_keys_are_taken_from_awss_own_files(server: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = BucketPlace(tmp_path, url=server.url, keys=dict(KEYS))
    place.run("trialkeeper.report({'loss': 1.0})")
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    where = server.url.replace("trials?", "trials/t?")
    with pytest.raises(Denied, match="set AWS_ACCESS_KEY_ID"):
        trialkeeper.open_results(where)
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    with trialkeeper.open_results(where) as results:
        assert len(results.trials) == 1


# Which is best.


def stored(tmp_path: Path, losses: list[Any], **objective: Any) -> Results:
    for index, values in enumerate(losses):
        objectives = [{"metric": "loss", "direction": "Minimize", **objective}]
        shelf = Shelf(tmp_path / "store", f"default/exp-12345678/{index:05d}", objectives=objectives)
        shelf.begin()
        for i, value in enumerate(values, 1):
            line = {"training_iteration": i, "attempt": 1, "loss": value, "x": -i}
            shelf.text(1, json.dumps(line) + "\n")
    return trialkeeper.open_results(str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("objective", "best"),
    [
        ({}, "exp-1"),
        ({"value": "Best"}, "exp-0"),
        ({"direction": "Maximize"}, "exp-0"),
        ({"direction": "Maximize", "value": "Best"}, "exp-2"),
    ],
)
def test_the_best_trial_is_the_objectives(objective: dict[str, Any], best: str, tmp_path: Path) -> None:
    results = stored(tmp_path, [[0.5, 0.1, 3.0], [2.0, 1.0], [9.0, 2.0, "NaN"], ["NaN"], []], **objective)
    found = results.best()
    assert found is not None
    assert found.name == best


def test_another_metric_needs_a_mode_and_nan_never_wins(tmp_path: Path) -> None:
    results = stored(tmp_path, [["NaN", "Infinity"], ["-Infinity"]])
    assert results.best() is None
    assert results.trial(0).value() is None
    best = results.best("x", "min")
    assert best is not None
    assert (best.name, best.value("x", "min")) == ("exp-0", -2.0)
    for metric, mode, words in [("x", None, "is no objective"), (None, "least", "it is min or max")]:
        with pytest.raises(ValueError, match=words):
            results.best(metric, mode)
    with pytest.raises(NotThere, match="there is no trial 7, there are: exp-0, exp-1"):
        results.trial(7)


def test_of_which_nobody_knows_the_objective_a_metric_must_be_named(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "store", objectives=[])
    shelf.begin()
    with pytest.raises(ValueError, match="name a metric"):
        trialkeeper.open_results(str(shelf.folder)).best()


def test_a_dataframe_has_a_line_for_each_iteration(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.begin()
    shelf.rows(1, range(1, 3), **{"config/lr": 7})
    results = trialkeeper.open_results(str(shelf.folder))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        results.dataframe()
    fake = types.ModuleType("pandas")
    fake.DataFrame = list  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", fake)
    frame = results.dataframe()
    assert [(row["trial_id"], row["training_iteration"], row["config/lr"]) for row in frame] == [
        ("exp-0", 1, 7),
        ("exp-0", 2, 7),
    ]


# Checkpoints.


def test_checkpoints_are_those_that_an_attempt_could_go_on_from(shelf: Shelf) -> None:
    shelf.begin()
    for i in (2, 4, 6):
        shelf.save(1, i)
    shelf.save(1, 3, accuracy="NaN")
    shelf.begin(2, contract.manifest_key(1, 4))
    shelf.save(2, 5)
    trial = only(shelf)
    assert [(c.attempt, c.iteration) for c in trial.checkpoints] == [(2, 5), (1, 4), (1, 3), (1, 2)]
    newest = trial.checkpoints[0]
    assert (newest.step, newest.bytes, newest.reason, newest.whole) == (None, 3, "periodic", True)
    assert newest.created > 1e9
    assert math.isnan(trial.checkpoints[2].metrics["accuracy"])
    best = trial.best_checkpoint()
    assert best is not None
    assert (best.attempt, best.iteration) == (1, 2)
    with pytest.raises(ValueError, match="holds files"):
        newest.to_dict()


def test_what_is_not_whole_is_shown_and_passed_over(shelf: Shelf) -> None:
    shelf.begin()
    for i in range(1, 6):
        shelf.save(1, i)
    data = sorted((shelf.folder / "data").iterdir())
    (data[4] / "w").unlink()
    (data[3] / "w").write_bytes(b"")
    manifests = sorted((shelf.folder / "manifests").iterdir())
    manifests[2].write_bytes(manifests[1].read_bytes())
    manifests[1].write_text("{")
    trial = only(shelf)
    assert [(c.iteration, c.whole) for c in trial.checkpoints] == [
        (5, False),
        (4, False),
        (3, False),
        (2, False),
        (1, True),
    ]
    newest = trial.newest_checkpoint()
    assert newest is not None
    assert newest.iteration == 1
    with pytest.raises(trialkeeper.CheckpointCorrupt, match="manifest of iteration 2"):
        trial.checkpoints[3].to_directory()


def test_a_dictionary_comes_back(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.run(
        "trialkeeper.report({'loss': 1.0}, checkpoint=trialkeeper.Checkpoint.from_dict({'a': (1, b'x')}))\n"
        "trialkeeper.report({'loss': 1.0}, checkpoint=trialkeeper.Checkpoint.from_dict({'a': {2}}, format='pickle'))"
    )
    pickled, plain = trialkeeper.open_results(str(place.store)).trials[0].checkpoints
    assert plain.to_dict() == {"a": (1, b"x")}
    with pytest.raises(ValueError, match="allow_pickle=True"):
        pickled.to_dict()
    assert pickled.to_dict(allow_pickle=True) == {"a": {2}}


def test_iterations_are_read_without_json_where_that_is_sure() -> None:
    assert rows.iteration(b'{"training_iteration":12,"a":1}\n') == 12
    assert rows.iteration(b'{"training_iteration":12}\n') == 12
    assert rows.iteration(b'{"a":1,"training_iteration":3}\n') == 3
    assert rows.iteration(b'{"training_iteration":12,"a\n') is None
    assert rows.iteration(b'{"training_iteration":1.5}\n') is None
