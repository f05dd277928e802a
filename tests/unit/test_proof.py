"""What the proof computes from recorded times: the work that an end has cost, and what it may cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proof import allowed, unsaved


def trial(
    prefix: Path, *, reported: dict[int, list[tuple[int, float]]], saved: list[tuple[int, int, float, float]]
) -> None:
    """Rows (iteration, time) by attempt, and checkpoints (attempt, iteration, reported, committed)."""
    for name in ("results", "manifests", "attempts"):
        (prefix / name).mkdir()
    for attempt, rows in reported.items():
        lines = [json.dumps({"training_iteration": i, "timestamp": t, "attempt": attempt}) + "\n" for i, t in rows]
        (prefix / "results" / f"a{attempt:06d}.jsonl").write_text("".join(lines))
    for attempt, iteration, at, created in saved:
        body = {"attempt": attempt, "iteration": iteration, "reported": at, "created": created}
        (prefix / "manifests" / f"a{attempt:06d}-i{iteration:012d}.json").write_text(json.dumps(body))


def begins(prefix: Path, attempt: int, base: tuple[int, int] | None) -> None:
    key = None if base is None else f"manifests/a{base[0]:06d}-i{base[1]:012d}.json"
    (prefix / "attempts" / f"{attempt:06d}.json").write_text(json.dumps({"base": key}))


FIRST = [(1, 10.0), (2, 12.0), (3, 14.0), (4, 17.0), (5, 19.0)]
SAVES = [(1, 1, 10.0, 10.5), (1, 3, 14.0, 15.5)]


@pytest.mark.parametrize(
    ("base", "lost"),
    [((1, 3), (2, 5.0)), ((1, 1), (4, 9.0)), (None, (5, 9.0)), ((1, 5), (0, 0.0))],
    ids=["the newest", "an older one", "none", "the last iteration"],
)
def test_what_an_attempt_had_got_beyond_its_successors_checkpoint(
    base: tuple[int, int] | None, lost: tuple[int, float], tmp_path: Path
) -> None:
    trial(tmp_path, reported={1: FIRST, 2: [(4, 30.0)]}, saved=SAVES)
    begins(tmp_path, 1, None)
    begins(tmp_path, 2, base)
    assert unsaved(tmp_path, 1) == lost


def test_an_attempt_that_never_reported_has_nothing_to_lose(tmp_path: Path) -> None:
    trial(tmp_path, reported={1: [], 2: FIRST}, saved=SAVES)
    begins(tmp_path, 1, None)
    begins(tmp_path, 2, None)
    assert unsaved(tmp_path, 1) == (0, 0.0)


def test_a_hard_kill_may_cost_one_interval_one_upload_and_one_step(tmp_path: Path) -> None:
    trial(tmp_path, reported={1: FIRST}, saved=SAVES)
    assert allowed(tmp_path) == 4.0 + 1.5 + 3.0
