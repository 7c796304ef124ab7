"""Hours as unbroken stretches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from primespark_assets.schedules import stretches

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_a_gap_begins_another_stretch() -> None:
    hours = [START, START + HOUR, START + 5 * HOUR]
    assert stretches(reversed(hours)) == [(START, START + HOUR), (START + 5 * HOUR, START + 5 * HOUR)]
    assert stretches([]) == []


@given(st.lists(st.integers(0, 300)))
def test_stretches_hold_the_given_hours_and_no_other(numbers: list[int]) -> None:
    covered = [
        hour
        for first, last in stretches(START + number * HOUR for number in numbers)
        for hour in range((first - START) // HOUR, (last - START) // HOUR + 1)
    ]
    assert covered == sorted(set(numbers))
