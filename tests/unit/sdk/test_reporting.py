"""`report`: what it takes, what it writes, when it saves, when it stops."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers import SAVING, Place
from trialkeeper import due, metrics, stop
from trialkeeper.checkpoint import Checkpoint
from trialkeeper.due import Policy, auto_interval


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Scalar:
    def item(self) -> float:
        return 2.5


@pytest.mark.parametrize(
    ("given", "flat"),
    [
        ({"loss": 1}, {"loss": 1}),
        ({"val": {"loss": 0.5, "acc": {"top-1": 1.0}}}, {"val/loss": 0.5, "val/acc/top-1": 1.0}),
        ({"val/loss.top-1": 0.25}, {"val/loss.top-1": 0.25}),
        ({"a": np.float32(0.5), "b": np.int64(3), "c": np.array(1.5)}, {"a": 0.5, "b": 3, "c": 1.5}),
        ({"a": Scalar()}, {"a": 2.5}),
        ({"a": True}, {"a": 1}),
        ({}, {}),
    ],
)
def test_metrics_are_flattened_to_numbers(given: dict[str, Any], flat: dict[str, Any]) -> None:
    assert metrics.flatten(given) == flat
    assert all(type(v) in (int, float) for v in metrics.flatten(given).values())


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"loss": "low"}, TypeError, "metric loss is str 'low': only numbers can be reported"),
        ({"a": {"b": None}}, TypeError, "metric a/b is NoneType 'None': only numbers can be reported"),
        ({"a": np.zeros(3)}, TypeError, "metric a: .* report one number"),
        ({"timestamp": 1}, ValueError, "metric timestamp: this name is set automatically"),
        ({"n": 10**400}, TypeError, "metric n is a whole number too large"),
        ([1], TypeError, "report\\(\\) takes a dict of metrics, not list"),
    ],
)
def test_what_is_no_metric_is_refused_with_its_name(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        metrics.flatten(given)


def test_each_line_has_the_automatic_metrics_and_time_adds_up(place: Place) -> None:
    place.run("for i in range(3): trialkeeper.report({'loss': 1.0, 'nan': float('nan')}, step=10 * i)")
    rows = place.rows()
    assert [r["training_iteration"] for r in rows] == [1, 2, 3]
    assert [r["step"] for r in rows] == [0, 10, 20]
    assert {(r["trial_id"], r["attempt"], r["nan"]) for r in rows} == {("exp-0", 1, "NaN")}
    assert all({*metrics.AUTOMATIC} <= r.keys() for r in rows)
    assert rows[-1]["time_total_s"] == pytest.approx(sum(r["time_this_iter_s"] for r in rows), abs=1e-5)


def test_a_step_may_not_go_back(place: Place) -> None:
    left = place.run("trialkeeper.report({'loss': 1}, step=5); trialkeeper.report({'loss': 1}, step=4)")
    assert "ValueError: step went back from 5 to 4" in left.err


@pytest.mark.parametrize(
    ("policy", "iterations", "seconds", "cost", "expected"),
    [
        (Policy(frequency=3), 2, 1e9, 0.1, False),
        (Policy(frequency=3), 3, 0.0, 0.1, True),
        (Policy(frequency=0), 99, 1e9, None, False),
        (Policy(interval=10), 99, 9.9, 0.1, False),
        (Policy(interval=10), 1, 10.0, 0.1, True),
        (Policy(frequency=5, interval=10), 1, 10.0, 0.1, True),
        (Policy(frequency=0, interval=0.0), 9, 1e9, 0.1, False),
        (Policy(), 1, 0.0, None, True),
        (Policy(), 99, 26.0, 0.05, False),
        (Policy(), 1, 27.0, 0.05, True),
    ],
)
def test_when_a_save_is_due(
    policy: Policy, iterations: int, seconds: float, cost: float | None, expected: bool
) -> None:
    assert due.due(policy, iterations=iterations, seconds=seconds, cost=cost, mtbf=7200) is expected


def test_auto_never_spends_more_than_two_percent() -> None:
    assert auto_interval(0.5, 7200) == pytest.approx(84.85, abs=0.01)
    assert auto_interval(0.5, 100) == pytest.approx(25.0)
    assert auto_interval(0.5, 7200, upload=60) == auto_interval(0.5, 7200)
    assert auto_interval(0.5, 7200, upload=100) == pytest.approx(110.0)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"frequency": 2}, [2, 4, 5]),
        ({"frequency": 2, "atEnd": False}, [2, 4]),
        ({"frequency": 0}, [5]),
        ({"frequency": 0, "atEnd": False}, []),
        ({}, [1, 5]),
    ],
)
def test_a_save_function_is_called_when_due_and_at_the_end(
    policy: dict[str, Any], expected: list[int], place: Place
) -> None:
    place.settings["checkpoint"] = policy
    place.run(SAVING + "for i in range(5): trialkeeper.report({'loss': 1.0}, checkpoint=save)")
    assert [int(m[-12:]) for m in place.manifests()] == expected


def test_a_checkpoint_object_is_always_taken(place: Place) -> None:
    place.settings["checkpoint"] = {"frequency": 0, "atEnd": False}
    left = place.run(
        "import pathlib\npathlib.Path('mine').mkdir(); pathlib.Path('mine/w').write_text('x')\n"
        "trialkeeper.report({'loss': 1}, checkpoint=trialkeeper.Checkpoint.from_directory('mine'))\n"
        "trialkeeper.report({'loss': 1}, checkpoint=trialkeeper.Checkpoint.from_dict({'epoch': 2}))\n"
        "print(pathlib.Path('mine/w').exists(), trialkeeper.get_checkpoint().to_dict())"
    )
    assert left.out == "True {'epoch': 2}\n"
    assert len(place.manifests()) == 2


@pytest.mark.parametrize(
    ("save", "words"),
    [
        ("pass", "ValueError: checkpoint: the folder is empty"),
        ("(folder / 'l').symlink_to('/etc/passwd')", "ValueError: checkpoint: l is a link"),
        ("raise OSError('my disk')", "OSError: my disk"),
    ],
)
def test_a_save_function_that_fails_is_the_trainers_own_error(save: str, words: str, place: Place) -> None:
    left = place.run(f"def save(folder): {save}\ntrialkeeper.report({{'loss': 1}}, checkpoint=save)")
    assert words in left.err
    assert place.manifests() == []


RULES: list[tuple[dict[str, Any], dict[str, float], list[float], int, float, str | None]] = [
    ({"maxIterations": 5}, {}, [], 4, 0.0, None),
    ({"maxIterations": 5}, {}, [], 5, 0.0, "MaxIterations"),
    ({"metrics": {"loss": {"below": 0.1}}}, {"loss": 0.2}, [], 1, 0.0, None),
    ({"metrics": {"loss": {"below": 0.1}}}, {"loss": 0.1}, [], 1, 0.0, "MetricReached"),
    ({"metrics": {"acc": {"above": 0.9}}}, {"loss": 0.1}, [], 1, 0.0, None),
    ({"metrics": {"acc": {"above": 0.9}}}, {"acc": 0.95}, [], 1, 0.0, "MetricReached"),
    ({"timeoutSeconds": 10}, {}, [], 1, 9.0, None),
    ({"timeoutSeconds": 10}, {}, [], 1, 10.5, "Timeout"),
    ({"plateau": {"results": 3, "grace": 5}}, {}, [1.0, 1.0, 1.0], 4, 0.0, None),
    ({"plateau": {"results": 3, "grace": 5}}, {}, [1.0, 1.0, 1.0], 5, 0.0, "Plateau"),
    ({"plateau": {"results": 3, "grace": 5}}, {}, [1.0, 2.0, 1.0], 9, 0.0, None),
    ({}, {}, [1.0], 10**6, 1e9, None),
]


@pytest.mark.parametrize(("rules", "values", "window", "iteration", "seconds", "expected"), RULES)
def test_a_stop_rule_holds_or_does_not(
    rules: dict[str, Any],
    values: dict[str, float],
    window: list[float],
    iteration: int,
    seconds: float,
    expected: str | None,
) -> None:
    parsed = stop.parse({"stop": rules, "objectives": [{"metric": "loss"}]})
    verdict = stop.judge(parsed, values, window, iteration=iteration, seconds=seconds)
    assert (verdict[0] if verdict else None) == expected


def test_a_metric_that_a_rule_names_and_nobody_reports_is_told_once(place: Place) -> None:
    place.settings |= {
        "objectives": [{"metric": "accuracy"}],
        "stop": {"metrics": {"val_acc": {"above": 0.9}}, "plateau": {"metric": "val_loss"}},
    }
    left = place.run("for i in range(3): trialkeeper.report({'loss': 1.0})")
    assert sorted(line for line in left.err.splitlines() if "not among" in line) == [
        "trialkeeper: stop.metrics names 'val_acc', which is not among the reported metrics",
        "trialkeeper: stop.plateau names 'val_loss', which is not among the reported metrics",
        "trialkeeper: the objective is 'accuracy', which is not among the reported metrics",
    ]


def test_a_stop_rule_ends_the_trainer_complete_and_saved(place: Place) -> None:
    place.settings |= {"stop": {"maxIterations": 3}, "checkpoint": {"frequency": 0}}
    left = place.run(SAVING + "for i in range(9): trialkeeper.report({'loss': 1.0}, checkpoint=save)\nprint('no')")
    assert (left.code, left.out, left.end) == (0, "", ("complete", "MaxIterations"))
    assert place.manifests() == ["a000001-i000000000003"]


def test_a_plateau_is_seen_across_a_resume(place: Place) -> None:
    place.settings["stop"] = {"plateau": {"results": 6, "grace": 0}}
    script = SAVING + "for i in range(start, 99):\n    trialkeeper.report({'loss': 1.0}, checkpoint=save)\n"
    place.run(script + "    if i == 3: trialkeeper.flush(); os._exit(9)\n")
    place.run(script, 2)
    assert [r["training_iteration"] for r in place.rows(2)] == [5, 6]


def test_a_plateau_does_not_stumble_over_what_is_no_number(place: Place) -> None:
    place.settings |= {"stop": {"plateau": {"results": 3, "grace": 0}}, "onNonFinite": "Continue"}
    left = place.run("for x in (1, float('nan'), 1, float('inf'), 1, 1): trialkeeper.report({'loss': x})")
    assert left.end == ("complete", "Plateau")
    assert len(place.rows()) == 5


def test_reports_of_several_threads_are_counted_one_by_one(place: Place) -> None:
    left = place.run(
        SAVING + "i = 0\nimport threading\ndef work():\n    for _ in range(25):\n"
        "        trialkeeper.report({'loss': 1.0}, checkpoint=save)\n"
        "ts = [threading.Thread(target=work) for _ in range(4)]\n[t.start() for t in ts]; [t.join() for t in ts]"
    )
    assert left.end == ("complete", "")
    assert [r["training_iteration"] for r in place.rows()] == list(range(1, 101))


def test_the_first_iteration_takes_its_time_also_if_nobody_asked_for_a_checkpoint(place: Place) -> None:
    place.run(
        "import time\ntrialkeeper.get_params()\nend = time.monotonic() + 0.2\n"
        "while time.monotonic() < end: pass\ntrialkeeper.report({'loss': 1})"
    )
    assert 0.2 <= place.rows()[0]["time_this_iter_s"] < 10


def test_metrics_may_be_named_as_in_the_signature_and_a_step_must_be_whole(place: Place) -> None:
    left = place.run(
        "trialkeeper.report(metrics={'loss': 1}, checkpoint=None, step=2); trialkeeper.report({}, step=2.5)"
    )
    assert "TypeError: step is float 2.5: it must be a whole number" in left.err
    assert len(place.rows()) == 1


def test_the_interval_between_saves_is_told_from_the_second_on(place: Place) -> None:
    script = SAVING + "for i in range({}): trialkeeper.report({{'loss': 1.0}}, checkpoint=save)"
    one, two = place.run(script.format(1)), place.run(script.format(3), 2)
    assert one.last is not None
    assert two.last is not None
    assert one.last.saveInterval == 0.0 < two.last.saveInterval


def test_only_the_last_reports_function_is_called_at_the_end(place: Place) -> None:
    """An older one may have caught an older state."""
    place.settings["checkpoint"] = {"frequency": 0}
    place.run(SAVING + "i = 0\ntrialkeeper.report({'loss': 1}, checkpoint=save); trialkeeper.report({'loss': 1})")
    assert place.manifests() == []


def test_a_schedule_counts_what_failed_and_tells_the_interval_of_what_did_not() -> None:
    saves = due.Schedule(Policy(frequency=2, milestones=frozenset({13})), 3600.0)
    saves.begin(10, 0.0)
    assert saves.why(11, 1.0) is None
    assert saves.why(12, 2.0) == "periodic"
    saves.tried(12, 2.0, 3.0)
    assert saves.why(13, 4.0) == "milestone"
    assert saves.saved_iteration == 10
    assert saves.why(13, 4.0, stopped=True) == "final"
    saves.handed(14)
    assert (saves.handed_iteration, saves.saved_iteration) == (14, 10)
    saves.lost(14)
    assert saves.handed_iteration == 10
    assert (saves.saved(14, 5.0, 1.0), saves.saved(16, 9.0, 2.0), saves.saved_iteration) == (0.0, 4.0, 16)
    assert saves.upload == 1.5


def test_a_folder_below_scratch_is_moved_and_any_other_is_copied(place: Place) -> None:
    left = place.run(
        "import pathlib\nmine = [trialkeeper.get_context().scratch / 'm', pathlib.Path('m')]\n"
        "for m in mine:\n    m.mkdir(); (m / 'w').write_text('x')\n"
        "    trialkeeper.report({'loss': 1}, checkpoint=trialkeeper.Checkpoint.from_directory(m))\n"
        "print(*(m.exists() for m in mine))"
    )
    assert left.out == "False True\n"
    assert len(place.manifests()) == 2


def test_a_checkpoint_is_reported_once(place: Place) -> None:
    left = place.run(
        "c = trialkeeper.Checkpoint.from_dict({'a': 1})\n"
        "trialkeeper.report({'loss': 1}, checkpoint=c); trialkeeper.report({'loss': 1}, checkpoint=c)"
    )
    assert "ValueError: this Checkpoint has been reported already" in left.err


def test_non_finite_objectives_may_go_on(place: Place) -> None:
    place.settings["onNonFinite"] = "Continue"
    left = place.run("trialkeeper.report({'loss': float('nan')}); trialkeeper.report({'loss': 0.5})")
    assert left.end == ("complete", "")
    assert left.last is not None
    assert left.last.metrics["loss"].max == 0.5


def test_ten_thousand_metrics_fit_and_the_objective_is_told(place: Place) -> None:
    left = place.run("trialkeeper.report({**{f'm/{i}': i for i in range(10_000)}, 'loss': 0.5})")
    assert left.last is not None
    assert left.last.metrics["loss"].last == 0.5
    assert len(place.rows()[0]) > 10_000


def test_a_store_that_cannot_be_written_does_not_stop_the_training(place: Place) -> None:
    (place.root / "store").write_text("a file where the folder should be")
    left = place.run(
        SAVING.replace("trialkeeper.get_checkpoint()", "None")
        + "for i in range(3):\n    trialkeeper.report({'loss': 1.0}, checkpoint=save)\n"
    )
    assert left.end == ("complete", "")
    assert left.err.count("the store cannot be written") == 1


@pytest.mark.parametrize("broken", ["attempts", "results", "manifests", "data"])
def test_a_store_that_can_be_written_again_has_no_hole(broken: str, place: Place) -> None:
    """As after a full disk: every result before a checkpoint is there, and the attempt is claimed before it."""
    left = place.run(
        f"import pathlib\nbad = pathlib.Path({str(place.store)!r}) / {broken!r}\n"
        "bad.parent.mkdir(parents=True); bad.write_text('')\n"
        "def save(folder): (folder / 'w').write_text('x')\n"
        "for i in range(6):\n"
        "    if i == 3: bad.unlink()\n"
        "    trialkeeper.report({'loss': 1.0}, checkpoint=save)"
    )
    assert left.end == ("complete", ""), left.err
    assert left.err.count("the store cannot be written") == 1
    assert [r["training_iteration"] for r in place.rows()] == [1, 2, 3, 4, 5, 6]
    saved = [int(m[-12:]) for m in place.manifests()]
    assert saved[-1] == 6
    assert len(list((place.store / "attempts").iterdir())) == 1
    assert len(list((place.store / "data").iterdir())) == len(saved), "what was never committed is left behind"


def test_live_reports_have_the_newest_values(place: Place) -> None:
    left = place.run(SAVING + "i = 0\ntrialkeeper.report({'loss': 0.5}, checkpoint=save)\n")
    assert left.report is not None
    assert (left.report.end, left.report.iteration, left.report.metrics["loss"].last) == ("complete", 1, 0.5)
    assert left.report.checkpoint is not None


AWAITED = """
import threading, time
def kill():
    file = os.environ["TRIALKEEPER_REPORT"].removeprefix("file://")
    told = {}
    while told.get("iteration") != 2 or not told.get("checkpoint"):
        time.sleep(0.01)
        told = json.load(open(file)) if os.path.exists(file) else {}
    print("told:", told["checkpoint"]["iteration"], told["iteration"], flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=kill, daemon=True).start()
for i in range(4):
    trialkeeper.report({"loss": 1.0}, checkpoint=save)
"""


def test_what_is_committed_while_the_drill_is_awaited_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIALKEEPER_HOLD", "2")
    left = place.run(SAVING + AWAITED)
    assert "told: 1 2\n" in left.out, left.err
    assert (left.end, place.manifests()) == (("preempted", ""), [f"a000001-i{i:012d}" for i in (1, 2)])


def test_parameters_come_over_defaults_as_keys_and_attributes(place: Place) -> None:
    place.params = {"lr": 0.5, "layers": 3, "name": "adam", "amp": True}
    left = place.run(
        "p = trialkeeper.get_params(lr=1e-3, epochs=9)\nprint(p.lr, p['layers'], p.name, p.amp, p.epochs)\n"
        "try: p.nothing\nexcept AttributeError as e: print(e)"
    )
    assert left.out == ("0.5 3 adam True 9\nno parameter 'nothing' here, there are: amp, epochs, layers, lr, name\n")


def test_a_parameter_that_the_trainer_does_not_know_is_told_once(place: Place) -> None:
    place.params = {"learning_rate": 0.5, "l2": 0.1, "momntum": 0.2, "depth": 3}
    left = place.run("for _ in range(2): p = trialkeeper.get_params(lr=1e-3, l2=0.0, momentum=0.9)\nprint(*p)")
    assert left.out == "lr l2 momentum learning_rate momntum depth\n"
    ours = "is not among those of get_params(lr, l2, momentum)"
    assert [line for line in left.err.splitlines() if "get_params" in line] == [
        f"trialkeeper: parameter learning_rate {ours}: did you mean lr?",
        f"trialkeeper: parameter momntum {ours}: did you mean momentum?",
        f"trialkeeper: parameter depth {ours}",
    ]


def test_parameters_without_defaults_are_nobodys_mistake(place: Place) -> None:
    place.params = {"learning_rate": 0.5}
    assert "get_params" not in place.run("trialkeeper.get_params()").err


ODD = {
    "n": 1, "f": 0.5, "inf": float("inf"), "none": None, "b": b"\x00\xff", "t": (1, (2, "x")), "l": [True, "a"],
    "nested": {1: "int key", ("a", 2): "tuple key"}, "array": np.arange(6).reshape(2, 3), "scalar": np.float32(0.25),
    "__trialkeeper__": "tag",
}  # fmt: skip


def test_a_dictionary_survives_without_pickle() -> None:
    found = Checkpoint.from_dict(ODD).to_dict()
    assert found.keys() == ODD.keys()
    for key, value in ODD.items():
        same = np.array_equal(found[key], value) if isinstance(value, np.ndarray) else found[key] == value
        assert same, key
        assert type(found[key]) is type(value), key


def test_a_dictionary_that_is_never_reported_leaves_nothing_and_many_scalars_are_one_file() -> None:
    values = [np.float64(i) for i in range(100)] + [np.bool_(True), np.datetime64("2026-11-24")]
    made = Checkpoint.from_dict({"losses": values})
    path = made.path
    assert [p.name for p in path.iterdir()] == ["dict.json"]
    found = made.to_dict()["losses"]
    assert found == values
    assert [type(v) for v in found] == [type(v) for v in values]
    del made
    gc.collect()
    assert not path.exists()


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), lambda: 1])
def test_what_needs_pickle_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\['model'\]\[1\] is .*, which needs pickle"):
        Checkpoint.from_dict({"model": [0, value]})


def test_pickle_needs_both_sides_to_ask_for_it() -> None:
    checkpoint = Checkpoint.from_dict({"set": {1, 2}}, format="pickle")
    with pytest.raises(ValueError, match="allow_pickle=True"):
        checkpoint.to_dict()
    assert checkpoint.to_dict(allow_pickle=True) == {"set": {1, 2}}


def test_a_message_never_exceeds_its_limit_and_survives() -> None:
    from trialkeeper.contract import MESSAGE_LIMIT, Message, MetricSummary

    metrics_ = {f"metric/{i}": MetricSummary(i, i, i) for i in range(500)}
    message = Message(attempt=3, text="é" * 2000, metrics=metrics_, iteration=7)
    encoded = message.encode()
    assert len(encoded) <= MESSAGE_LIMIT
    found = Message.decode(encoded)
    assert found is not None
    assert (found.attempt, found.iteration) == (3, 7)
    complete = '{"v":1,"end":"complete",'
    for garbage in (
        "",
        "[]",
        "{",
        '{"v":1}',
        complete + '"attempt":-1}',
        complete + '"iteration":1e9}',
        complete + '"time":1e300}',
        complete + '"firstReport":1e12}',
        complete + '"saveInterval":-1}',
        complete + '"checkpoint":{"attempt":1,"iteration":1,"key":"k","time":-1}}',
        complete + '"metrics":{"a":{"last":NaN,"min":0,"max":0}}}',
        json.dumps([[]] * 2000),
    ):
        assert Message.decode(garbage) is None
