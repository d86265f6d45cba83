"""Counts and durations for people."""

from __future__ import annotations

import pytest

from slm.formatting import format_duration, percent_done, short_count


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (10_240, "10.2k"), (999_600, "1M"), (8.6e6, "8.6M"), (1.5e12, "1.5T")],
)
def test_short_count(value: float, text: str) -> None:
    assert short_count(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (0.29, "29%"), (0.999_999, "99%"), (1.0, "100%")]
)
def test_progress_is_rounded_down(share: float, text: str) -> None:
    assert percent_done(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (200, "3 min 20 s"), (3599.6, "1 h"), (7500, "2 h 5 min"),
        (86_390, "1 d"), (3 * 86_400 + 3.9 * 3600, "3 d 4 h"),
    ],
)  # fmt: skip
def test_durations_have_two_units_and_never_60_of_one(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
