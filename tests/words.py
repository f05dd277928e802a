"""The words for people, as tests read them: code blocks of a page, or of one of its sections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted([README, *(ROOT / "docs").rglob("*.md")])


def section(page: Path, heading: str) -> str:
    """The text below a heading of the second level, up to the next one."""
    _, _, rest = page.read_text().partition(f"\n## {heading}\n")
    assert rest, f"{page.name} has no section {heading}"
    return rest.partition("\n## ")[0]


def blocks(text: str, kind: str) -> Iterator[str]:
    """The contents of all code blocks of a kind."""
    yield from re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> Iterator[str]:
    """The lines of all shell blocks."""
    for block in blocks(text, "sh"):
        yield from block.strip().splitlines()
