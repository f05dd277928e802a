"""The class API and `main`: resumed, stepped, saved and cleaned up as it says, and exit codes as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trainers import Place
from words import ROOT, blocks, section

COUNTER = """
class Counter(trialkeeper.Trainable):
    def setup(self, config):
        self.n = 0
        print("setup", dict(config), config is self.config)

    def step(self):
        self.n += 1
        return {"loss": 1 / self.n, "seen": self.iteration, "done": self.n == 4}

    def save_checkpoint(self, folder):
        return {"n": self.n, "pair": (1, b"2")}

    def load_checkpoint(self, state):
        assert state["pair"] == (1, b"2")
        self.n = state["n"]
        print("loaded", self.n, self.iteration)

    def cleanup(self):
        del self.n
        print("cleaned")
"""
RUN = "\ntrialkeeper.main(Counter, lr=1)\nprint('after')\n"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.settings["checkpoint"]["onBusy"] = "Wait"  # so that which saves are kept depends on no speed
    return place


def numbers(manifests: list[str]) -> list[int]:
    return [int(m.rpartition("i")[2]) for m in manifests]


def manifest(place: Place, number: int) -> dict[str, object]:
    found: dict[str, object] = json.loads((place.store / "manifests" / f"{place.manifests()[number]}.json").read_text())
    return found


def test_a_class_is_stepped_until_it_is_done(place: Place) -> None:
    left = place.run(COUNTER + RUN)
    assert (left.code, left.end) == (0, ("complete", "")), left.err
    assert left.out.split("\n") == ["setup {'lr': 1} True", "cleaned", "after", ""]
    assert [(r["seen"], r["loss"], r["done"]) for r in place.rows()] == [
        (0, 1, 0), (1, 0.5, 0), (2, 1 / 3, 0), (3, 0.25, 1)
    ]  # fmt: skip
    assert numbers(place.manifests()) == [1, 2, 3, 4]


def test_the_trials_parameters_go_over_the_defaults(place: Place) -> None:
    place.params = {"lr": 0.5, "depth": 2}
    assert "setup {'lr': 0.5, 'depth': 2} True" in place.run(COUNTER + RUN).out


def test_it_goes_on_where_it_was_killed_and_counts_on(place: Place) -> None:
    place.settings["checkpoint"] |= {"frequency": 2}
    dying = "\nimport os\nclass Dying(Counter):\n    def step(self):\n        if self.n == 3: os.kill(os.getpid(), 9)\n"
    dying += "        return super().step()\ntrialkeeper.main(Dying)"
    assert place.run(COUNTER + dying).code == -9
    left = place.run(COUNTER + RUN, 2)
    assert left.out.split("\n")[1:3] == ["loaded 2 2", "cleaned"]
    assert [(r["training_iteration"], r["seen"]) for r in place.rows(2)] == [(3, 2), (4, 3)]


def test_once_done_it_is_done_also_if_the_kill_came_before_the_end(place: Place) -> None:
    place.run(COUNTER.replace('print("cleaned")', "sys.stdout.flush(); os.kill(os.getpid(), 9)") + RUN)
    left = place.run(COUNTER + RUN, 2)
    assert (left.code, left.end, left.out) == (0, ("complete", ""), "after\n"), left.err
    assert place.rows(2) == []


@pytest.mark.parametrize(("at_end", "saved"), [(True, [3, 4]), (False, [3])])
def test_the_last_state_is_saved_before_it_is_cleaned_up(place: Place, at_end: bool, saved: list[int]) -> None:
    place.settings["checkpoint"] |= {"frequency": 3, "atEnd": at_end}
    left = place.run(COUNTER + RUN)
    assert numbers(place.manifests()) == saved
    assert left.err == ""


def test_a_stop_rule_saves_cleans_up_and_leaves_with_zero(place: Place) -> None:
    place.settings["checkpoint"] |= {"frequency": 100}
    place.settings["stop"] = {"maxIterations": 3}
    left = place.run(COUNTER + RUN)
    assert (left.code, left.end) == (0, ("complete", "MaxIterations")), left.err
    assert left.out.endswith("cleaned\n")  # and not "after": it left
    assert numbers(place.manifests()) == [3]
    assert manifest(place, -1)["reason"] == "final"


def test_a_preemption_saves_cleans_up_and_leaves_with_143(place: Place) -> None:
    place.settings["checkpoint"] |= {"frequency": 100}
    asked = COUNTER.replace("self.n += 1", "self.n += 1\n        if self.n == 2: os.kill(os.getpid(), signal.SIGTERM)")
    left = place.run(asked + RUN)
    assert (left.code, left.end[0]) == (143, "preempted"), left.err
    assert left.out.endswith("cleaned\n")
    assert numbers(place.manifests()) == [2]
    assert "loaded 2 2" in place.run(COUNTER + RUN, 2).out


def test_an_error_is_the_trainers_and_saves_nothing(place: Place) -> None:
    place.settings["checkpoint"] |= {"frequency": 100}
    left = place.run(COUNTER.replace("self.n += 1", "self.n += 1\n        if self.n == 3: raise OSError('x')") + RUN)
    assert (left.code, left.end) == (1, ("error", "Exception")), left.err
    assert left.out.endswith("cleaned\n")
    assert place.manifests() == []


def test_an_error_of_cleanup_hides_no_ending(place: Place) -> None:
    place.settings["checkpoint"] |= {"frequency": 100}
    place.settings["stop"] = {"maxIterations": 3}
    left = place.run(COUNTER.replace('print("cleaned")', "1 / 0") + RUN)
    assert (left.code, left.end) == (0, ("complete", "MaxIterations"))
    assert "Counter.cleanup() failed: ZeroDivisionError" in left.err
    place.settings["stop"] = {}
    left = place.run(COUNTER.replace('print("cleaned")', "1 / 0") + RUN, 2)
    assert (left.code, left.end) == (1, ("error", "Exception"))
    assert numbers(place.manifests()) == [3, 4]


def test_leaving_by_oneself_saves_nothing_half_done(place: Place) -> None:
    place.settings["checkpoint"] |= {"frequency": 100}
    left = place.run(COUNTER.replace("self.n += 1", "self.n += 1\n        if self.n == 3: sys.exit()") + RUN)
    assert (left.code, left.err) == (0, "")
    assert place.manifests() == []


def test_files_are_handed_back_as_a_folder(place: Place) -> None:
    files = COUNTER.replace(
        'return {"n": self.n, "pair": (1, b"2")}', '(folder / "n").write_text(str(self.n)); return folder'
    )
    files = re.sub(r"        assert.*\n", "", files).replace('state["n"]', 'int((state / "n").read_text())')
    place.settings["stop"] = {"maxIterations": 2}
    assert place.run(files + RUN).code == 0
    place.settings["stop"] = {}
    left = place.run(files + RUN, 2)
    assert "loaded 2 2" in left.out, left.err


@pytest.mark.parametrize(
    ("saving", "words"),
    [
        ("(folder / 'n').write_text('1'); return {}", "wrote files and returned a dictionary"),
        ("(folder / 'dict.json').write_text('1')", "wrote dict.json, which is where a returned dictionary goes"),
        ("(folder / 'n').write_text('1'); return 7", "returned '7': the state is a dictionary, or files in its folder"),
        ("return {'f': print}", "checkpoint['f'] is builtin_function_or_method, which needs pickle"),
        ("pass", "the folder is empty"),
    ],
)
def test_what_is_no_state_is_said(place: Place, saving: str, words: str) -> None:
    left = place.run(COUNTER.replace('return {"n": self.n, "pair": (1, b"2")}', saving) + RUN)
    assert left.code == 1
    assert words in left.err
    assert place.manifests() == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("7", "not int"),
        ("dict", "dict is neither"),
        ("trialkeeper.Trainable", "Trainable has no step()"),
        ("type('T', (trialkeeper.Trainable,), {'step': lambda self: None})", "T.step() must return a dict of metrics"),
    ],
)
def test_what_cannot_be_run_is_said(place: Place, target: str, words: str) -> None:
    left = place.run(f"trialkeeper.main({target})")
    assert left.code == 1
    assert words in left.err


@pytest.mark.parametrize(
    ("function", "losses"),
    [
        ("def f(config): trialkeeper.report({'loss': config.lr})", [3]),
        ("def f(): trialkeeper.report({'loss': trialkeeper.get_params(lr=4).lr})", [4]),
        ("def f(config): return {'loss': config['lr']}", [3]),
        ("def f(config):\n    trialkeeper.report({'loss': 1})\n    return {'loss': 2}", [1]),
        ("class F:\n    def __call__(self, config): return {'loss': 5}\nf = F()", [5]),
        ("def f(*, other=1): return {'loss': other}", [1]),
    ],
)
def test_a_function_takes_the_config_or_nothing(place: Place, function: str, losses: list[float]) -> None:
    left = place.run(f"{function}\ntrialkeeper.main(f, lr=3)")
    assert left.code == 0, left.err
    assert [row["loss"] for row in place.rows()] == losses


def test_the_docs_class_is_a_trainable_that_resumes(place: Place) -> None:
    (code,) = blocks(section(ROOT / "docs" / "frameworks.md", "The class API"), "python")
    place.settings["stop"] = {"maxIterations": 7}
    assert place.run(code).end == ("complete", "MaxIterations")
    place.settings["stop"] = {}
    left = place.run(code, 2)
    assert left.end == ("complete", ""), left.err
    assert [row["training_iteration"] for row in place.rows(2)] == list(range(8, 21))
    assert place.rows(2)[-1]["loss"] == pytest.approx(9 * 0.64**20)


def test_should_checkpoint_saves_now(place: Place) -> None:
    place.settings["checkpoint"] |= {"frequency": 100}
    forced = COUNTER.replace('"done": self.n == 4', '"done": self.n == 4, "should_checkpoint": self.n == 2')
    place.run(forced + RUN)
    assert numbers(place.manifests()) == [2, 4]


def test_no_framework_is_imported_with_what_saves_it(place: Place) -> None:
    left = place.run(
        "import trialkeeper.integrations\ntrialkeeper.main\nframeworks = {'torch', 'lightning', 'transformers', "
        "'sklearn', 'xgboost', 'skops', 'numpy'}\nprint(sorted(frameworks & set(sys.modules)))"
    )
    assert left.out == "[]\n"
