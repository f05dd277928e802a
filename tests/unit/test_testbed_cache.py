"""The testbed's cache forgets what was not used for long, while others do the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed import cache


def test_what_was_used_last_is_kept_and_what_somebody_else_takes_away_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "home", lambda: tmp_path)
    for age in range(5):
        folder = tmp_path / f"image-{age}"
        folder.mkdir()
        os.utime(folder, (1000.0 - age, 1000.0 - age))
    (tmp_path / "image-4.half").mkdir()
    (tmp_path / "image-gone").symlink_to(tmp_path / "nowhere")  # as one that goes while this looks
    cache.forget("image-*", keep=3)
    left = {folder.name for folder in tmp_path.glob("image-*")}
    assert left - {"image-gone"} == {"image-0", "image-1", "image-2", "image-4.half"}
