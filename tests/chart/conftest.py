"""Without helm there is nothing to test here."""

from __future__ import annotations

from pathlib import Path

import pytest

from chart.rendering import HELM


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not HELM:
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip("no helm: set HELM, or put it into PATH"))
