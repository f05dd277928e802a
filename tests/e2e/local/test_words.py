"""The words for people: every command and every file in them works as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from builders import experiment
from trialkeeper_operator.api.validate import check_experiment
from trialkeeper_operator.search.check import problems
from words import PAGES, README, ROOT, blocks, commands, section


def test_every_make_target_that_is_named_exists() -> None:
    known = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {c.split()[1] for page in PAGES for c in commands(page.read_text()) if c.startswith("make ")}
    assert named
    assert named <= known


def test_make_demo_is_the_command_whose_outcome_is_proved() -> None:
    assert "trialkeeper run examples/digits.yaml --preempt 6" in (ROOT / "Makefile").read_text()


def after(diff: str) -> str:
    """The file that a diff leads to."""
    return "".join(line[1:] + "\n" for line in diff.splitlines() if not line.startswith("-"))


def before(diff: str) -> str:
    return "".join(line[1:] + "\n" for line in diff.splitlines() if not line.startswith("+"))


@pytest.mark.timeout(200)
def test_the_readmes_trainer_and_experiment_do_what_the_readme_says(tmp_path: Path) -> None:
    readme = README.read_text().replace(section(README, "In a cluster"), "")
    (diff,) = blocks(readme, "diff")
    assert sum(line.startswith(("+", "-")) and len(line) > 1 for line in diff.splitlines()) <= 20
    (tmp_path / "before.py").write_text(before(diff))
    (tmp_path / "train.py").write_text(after(diff))
    (tmp_path / "my.yaml").write_text(next(blocks(readme, "yaml")))
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRIALKEEPER_")}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    subprocess.run([sys.executable, "before.py"], cwd=tmp_path, check=True, capture_output=True)
    told = [c for c in commands(readme) if not c.startswith("make ")]
    assert len(told) == 8
    for command in told:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        if command.startswith("trialkeeper drill"):
            assert "your trainer resumes: 4 kills, 5 attempts" in done.stdout, done.stdout
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(200)
def test_the_commands_about_results_do_what_the_page_says(tmp_path: Path) -> None:
    readme, page = README.read_text(), ROOT / "docs" / "results.md"
    (tmp_path / "train.py").write_text(after(next(blocks(readme, "diff"))))
    (tmp_path / "my.yaml").write_text(next(blocks(readme, "yaml")))
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRIALKEEPER_")}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    words = page.read_text().replace(section(page, "From a cluster"), "")
    (program,) = blocks(words, "python")
    (tmp_path / "read.py").write_text(program)
    for command in ["trialkeeper run my.yaml", *commands(words), "python read.py"]:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert len((tmp_path / "mine.csv").read_text().splitlines()) == 10 * 20 + 1
    names = {"best", "last", "state", "model"}
    assert all((tmp_path / name / "state.json").is_file() for name in names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_experiment_in_the_words_is_a_good_one(page: Path) -> None:
    for block in blocks(page.read_text(), "yaml"):
        document = yaml.safe_load(block.replace("1e-", "1.0e-"))
        if document.get("kind", "Experiment") != "Experiment" or not {"kind", "spec", "metadata"} & set(document):
            assert page.name in ("install.md", "results.md"), "other kinds, and the chart's values, belong there"
            continue
        spec = document.get("spec", {})
        pod = spec.get("template", {}).get("spec", {})
        pod.setdefault("containers", experiment()["spec"]["template"]["spec"]["containers"])
        whole = document if "kind" in document else experiment(**spec)
        whole["metadata"] |= document.get("metadata", {})
        assert problems(check_experiment(whole)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_page_on_saving_has_trainers_that_save(tmp_path: Path) -> None:
    inline, trainer, flush = (textwrap.dedent(b) for b in blocks((ROOT / "docs/saving.md").read_text(), "python"))
    (tmp_path / "train.py").write_text(trainer + "loss, save = 0.5, None\n" + inline + flush)
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRIALKEEPER_")} | {"TRIALKEEPER_RESUME": "1"}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "train.py"],
            cwd=tmp_path,
            env=env | {"TRIALKEEPER_RESUME": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "are not in the store" not in done.stdout
    assert [*(tmp_path / "trialkeeper-store").rglob("manifests/a000001-*.json")]
