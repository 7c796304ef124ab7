"""A plan reads each moment of the range once, and no rollup across the beginning of a bucket."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from primespark.store.analytics.buckets import Granularity, Unit, of_seconds, of_unit
from primespark.store.analytics.plan import DAY, HOUR, Plan, plan, plan_even

T0 = datetime(2026, 3, 27, tzinfo=UTC)
zones = st.sampled_from(["Asia/Kolkata", "Europe/Berlin"]).map(ZoneInfo)
granularities = st.one_of(
    st.sampled_from(list(Unit)[1:]).map(of_unit),
    st.builds(
        of_unit, st.sampled_from(list(Unit)[1:]), st.sampled_from(["Asia/Kolkata", "Europe/Berlin"]).map(ZoneInfo)
    ),
    st.sampled_from([600, 5400, 7200, 18_000, 90_000, 3 * 86_400]).map(of_seconds),
)


@given(granularities, st.integers(0, 4 * 86_400), st.integers(1, 20 * 86_400))
def test_every_moment_is_read_once_and_no_bucket_begins_within_a_rollups_row(
    granularity: Granularity, offset: int, length: int
) -> None:
    start = T0 + timedelta(seconds=offset)
    end = start + timedelta(seconds=length)
    starts = granularity.starts(start, end, 10**6)
    even = plan_even(start, end, granularity.width) if granularity.is_even and granularity.width else None
    for found in [plan(start, end, starts), *([] if even is None else [even])]:
        _check(found, start, end, starts)


def _check(found: Plan, start: datetime, end: datetime, starts: Sequence[datetime]) -> None:
    spans = sorted(found.days + found.hours + found.raw)
    assert spans[0][0] == start
    assert spans[-1][1] == end
    assert all(before[1] == after[0] and before[0] < before[1] for before, after in pairwise(spans))
    for width, rolled in ((DAY, found.days), (HOUR, found.hours)):
        for begin, finish in rolled:
            assert not (begin - T0) % width
            assert not (finish - T0) % width
            # The rows of the rollup in this span begin at whole multiples; a bucket begins at none of the others.
            assert all((cut - begin) % width == timedelta(0) for cut in starts if begin <= cut < finish)


def test_thirty_days_by_hour_read_no_sample() -> None:
    start, end = T0, T0 + timedelta(days=30)
    read = Plan(hours=[(start, end)])
    assert plan(start, end, of_unit(Unit.HOUR).starts(start, end, 10**6)) == plan_even(start, end, HOUR) == read


def test_a_year_by_month_reads_days() -> None:
    start, end = datetime(2026, 1, 1, 5, 30, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    found = plan(start, end, of_unit(Unit.MONTH).starts(start, end, 10**6))
    assert found.days == [(datetime(2026, 1, 2, tzinfo=UTC), end)]
    assert found.hours == [(datetime(2026, 1, 1, 6, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))]
    assert found.raw == [(start, datetime(2026, 1, 1, 6, tzinfo=UTC))]


def test_days_of_a_zone_between_the_hours_read_samples_only_where_they_begin() -> None:
    start, end = T0, T0 + timedelta(days=10)
    found = plan(start, end, of_unit(Unit.DAY, ZoneInfo("Asia/Kolkata")).starts(start, end, 10**6))
    assert len(found.raw) == 10
    assert all(finish - begin == HOUR and begin.hour == 18 for begin, finish in found.raw)
