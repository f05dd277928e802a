"""Times of API objects, to the microsecond."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trialkeeper_operator.api.times import seconds, stamp

MOMENTS = {
    "2026-11-24T08:37:46.123456Z": 1795509466.123456,
    "1970-01-01T00:00:00.000000Z": 0.0,
    "2000-02-29T23:59:59.999999Z": 951868799.999999,
}


@pytest.mark.parametrize("text", MOMENTS)
def test_a_moment_is_written_and_read_alike(text: str) -> None:
    assert stamp(MOMENTS[text]) == text
    assert seconds(text) == MOMENTS[text]


@given(st.integers(min_value=0, max_value=4_000_000_000_000_000))
def test_no_microsecond_is_lost(microseconds: int) -> None:
    moment = microseconds / 1e6
    assert seconds(stamp(moment)) == moment


@pytest.mark.parametrize("text", ["2026-11-24T08:37:46Z", "2026-11-24T10:37:46+02:00"])
def test_what_others_write_is_read(text: str) -> None:
    assert seconds(text) == 1795509466.0


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-24T08:37:46", "2026-13-01T00:00:00Z"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        seconds(text)
