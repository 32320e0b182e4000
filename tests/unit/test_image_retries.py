"""When a failed request is made again, and when not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageservice.retries import RetryPolicy, retry_after

POLICY = RetryPolicy(attempts=4, seconds=0.5, longest=30.0)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_pauses_double_until_there_is_none() -> None:
    pauses = [POLICY.pause(number, [], fraction=lambda: 0.0) for number in (1, 2, 3, 4, 5)]
    assert pauses == [0.5, 1.0, 2.0, None, None]


@given(st.floats(min_value=0, max_value=1))
def test_pauses_are_spread(fraction: float) -> None:
    pause = POLICY.pause(2, [], fraction=lambda: fraction)
    assert pause is not None
    assert 0.5 <= pause <= 1.0


def test_a_host_that_asks_for_time_gets_it_up_to_a_limit() -> None:
    assert POLICY.pause(1, [20.0]) == 20.0
    assert POLICY.pause(1, [100.0, 3.0]) == 3.0  # the other host is asked then
    assert POLICY.pause(1, [31.0]) is None
    assert POLICY.pause(4, [1.0]) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0),
        ("Wed, 31 Dec 2025 23:59:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
    ],
)
def test_the_header_is_seconds_or_a_date(header: str, seconds: float | None) -> None:
    assert retry_after(header, NOW) == seconds


@given(st.text(max_size=80))
def test_any_header_is_survived(text: str) -> None:
    found = retry_after(text)
    assert found is None or found >= 0
