"""Buckets of time against a look at the local calendar, moment by moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.errors import InvalidInputError
from primespark.store.analytics.buckets import Granularity, Unit, of_seconds, of_unit, zone_named

# Half hours, clocks changed at midnight, a day left out (Apia, 2011-12-30), half an hour of summer time (Lord Howe).
ZONES = ["Europe/Berlin", "Asia/Kolkata", "America/Sao_Paulo", "Pacific/Apia", "Australia/Lord_Howe", "Asia/Beirut"]
MANY = 1_000_000
STEP = timedelta(minutes=15)
moments = st.one_of(
    st.integers(0, 32 * 366 * 86_400).map(
        lambda seconds: datetime(1999, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    ),
    # Near changes of the clock, and the day that was left out.
    st.sampled_from([(2011, 12, 29), (2026, 3, 28), (2026, 10, 24), (2018, 11, 3)]).map(
        lambda day: datetime(*day, tzinfo=UTC)
    ),
)


@given(moments, st.sampled_from(ZONES), st.sampled_from([Unit.DAY, Unit.WEEK, Unit.MONTH]), st.integers(1, 60 * 24))
def test_local_days_weeks_and_months(start: datetime, name: str, unit: Unit, length: int) -> None:
    zone = ZoneInfo(name)
    start = start.replace(minute=start.minute // 15 * 15, second=0, microsecond=0)
    end = start + length * STEP
    found = of_unit(unit, zone).starts(start, end, MANY)

    def key(moment: datetime) -> object:
        local = moment.astimezone(zone).date()
        return {
            Unit.DAY: local, Unit.WEEK: local.isocalendar()[:2], Unit.MONTH: (local.year, local.month),
        }[unit]  # fmt: skip

    assert found[0] <= start
    assert key(found[0]) == key(start)
    # A quarter of an hour is short enough: no clock was ever changed by a part of one in these years.
    begun = [at for at in (start + number * STEP for number in range(1, length)) if key(at) != key(at - STEP)]
    assert found[1:] == begun
    assert key(found[0] - timedelta(seconds=1)) != key(start)


@given(moments, st.integers(1, 10**6), st.integers(1, 500), st.integers(0, 10**6))
def test_even_buckets_are_those_of_postgresqls_date_bin(start: datetime, width_s: int, count: int, rest: int) -> None:
    width = timedelta(seconds=width_s)
    end = start + count * width + timedelta(seconds=rest % width_s)
    found = of_seconds(width_s).starts(start, end, MANY)
    assert all(after - before == width for before, after in pairwise(found))
    assert (found[0] - datetime(2000, 1, 3, tzinfo=UTC)) % width == timedelta(0)
    assert found[0] <= start < found[0] + width
    assert found[-1] < end <= found[-1] + width


@given(moments, st.sampled_from(ZONES), st.sampled_from([900, 3600, 5400, 25_200]))
def test_shorter_buckets_begin_anew_at_each_local_midnight(start: datetime, name: str, width_s: int) -> None:
    zone, width = ZoneInfo(name), timedelta(seconds=width_s)
    end = start + timedelta(days=3)
    found = of_seconds(width_s, zone).starts(start, end, MANY)
    midnights = of_unit(Unit.DAY, zone).starts(start, end, MANY)
    assert set(midnights[1:]) <= set(found)
    for before, after in pairwise(found):
        assert after - before == width or (after - before < width and after in midnights)
    assert found[0] <= start < found[1]


def test_a_day_on_which_clocks_are_changed_has_23_or_25_hours() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    for month, day, hours in ((3, 29, 23), (10, 25, 25)):
        start = datetime(2026, month, day, tzinfo=berlin).astimezone(UTC)
        first, second = of_unit(Unit.DAY, berlin).starts(start, start + timedelta(hours=hours, seconds=1), MANY)
        assert second - first == timedelta(hours=hours)
        assert len(of_unit(Unit.HOUR, berlin).starts(first, second, MANY)) == hours


def test_several_local_days_are_counted_from_one_monday() -> None:
    zone = ZoneInfo("America/New_York")
    found = of_seconds(7 * 86_400, zone).starts(
        datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC), MANY
    )
    assert found == of_unit(Unit.WEEK, zone).starts(
        datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC), MANY
    )


def test_what_is_no_granularity_is_refused() -> None:
    for every_s in (0, -1, 0.0001, 1e12, float("nan"), float("inf")):
        with pytest.raises(InvalidInputError, match="buckets of"):
            of_seconds(every_s)
    with pytest.raises(InvalidInputError, match="no number of days"):
        of_seconds(100_000, ZoneInfo("Europe/Berlin"))
    for name in ("", "Europe/Atlantis", "../../etc/passwd", "x" * 1000):
        with pytest.raises(InvalidInputError, match="no time zone"):
            zone_named(name)
    assert zone_named("UTC") is None
    with pytest.raises(InvalidInputError, match="more than 10 points"):
        Granularity(timedelta(seconds=1)).starts(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC), 10)
