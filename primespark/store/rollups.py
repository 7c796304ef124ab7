"""Rollups of hours, always computed from the samples themselves so that late data heals them, and of days from them."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, text

from primespark.core.values import LATEST
from primespark.store.analytics.plan import DAY, HOUR, floor

_LOCK = 7_301_004
_TAKE_MARKS = text(
    "DELETE FROM metrics.dirty WHERE bucket >= :start AND bucket < :end RETURNING series_id, bucket"
)  # fmt: skip
_GIVEN = "unnest(CAST(:series AS bigint[]), CAST(:buckets AS timestamptz[])) AS given(series_id, bucket)"
# Laterally, so that each hour is looked up by the index: of many hours the planner would rather read everything.
_SAMPLES = (
    "metrics.sample WHERE series_id = given.series_id AND value IS NOT NULL"
    " AND time >= given.bucket AND time < given.bucket + interval '1 hour'"
    # By these parts are left out before the plan is made, not after.
    " AND time >= :first AND time < :last"
)
_KEEP = (
    " ON CONFLICT (series_id, bucket) DO UPDATE SET (n, sum, m2, min, max, first, last)"
    " = (excluded.n, excluded.sum, excluded.m2, excluded.min, excluded.max, excluded.first, excluded.last)"
)
_HOURS = text(
    "INSERT INTO metrics.rollup_1h (series_id, bucket, n, sum, m2, min, max, first, last)"
    f" SELECT given.series_id, given.bucket, hour.* FROM {_GIVEN} CROSS JOIN LATERAL ("
    " SELECT count(value), sum(value), regr_sxx(value, value), min(value), max(value),"
    " (array_agg(value ORDER BY time, seq))[1], (array_agg(value ORDER BY time DESC, seq DESC))[1]"
    f" FROM {_SAMPLES} HAVING count(value) > 0) AS hour {_KEEP}"
)
_HISTOGRAMS = text(
    "INSERT INTO metrics.rollup_histogram (series_id, bucket, bins, counts)"
    f" SELECT given.series_id, given.bucket, hour.* FROM {_GIVEN} CROSS JOIN LATERAL ("
    " SELECT array_agg(bin ORDER BY bin), array_agg(n ORDER BY bin) FROM ("
    f" SELECT metrics.log_bin(value) AS bin, count(*) AS n FROM {_SAMPLES} GROUP BY 1) AS binned"
    " HAVING count(*) > 0) AS hour"
    " ON CONFLICT (series_id, bucket) DO UPDATE SET (bins, counts) = (excluded.bins, excluded.counts)"
)
# Each hour's own spread, and that of its mean about the mean of the day (Chan, Golub, LeVeque 1983).
_DAYS = text(
    "INSERT INTO metrics.rollup_1d (series_id, bucket, n, sum, m2, min, max, first, last)"
    " SELECT series_id, day, sum(n), sum(sum), sum(m2 + n * metrics.square(metrics.ratio(sum, n) - mean)), min(min),"
    " max(max),"
    " (array_agg(first ORDER BY bucket))[1], (array_agg(last ORDER BY bucket DESC))[1] FROM ("
    " SELECT hour.*, given.bucket AS day, metrics.ratio(sum(sum) OVER same, CAST(sum(n) OVER same AS float8)) AS mean"
    f" FROM {_GIVEN} JOIN metrics.rollup_1h hour ON hour.series_id = given.series_id"
    " AND hour.bucket >= given.bucket AND hour.bucket < given.bucket + interval '24 hours'"
    " WINDOW same AS (PARTITION BY hour.series_id, given.bucket)) AS hours"
    f" GROUP BY series_id, day {_KEEP}"
)


def refresh_hours(connection: Connection, start: datetime, end: datetime) -> int:
    """Bring the rollups of all hours that begin in `[start, end)` up to date; the number of hours that were renewed.

    An hour's histogram and its day are renewed with it. Only hours of series with new samples are computed again. A
    sample of a transaction that commits meanwhile brings its own mark, so the next refresh takes it.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    window = {"start": start, "end": end}
    connection.execute(text("DELETE FROM metrics.open_hour WHERE bucket >= :start AND bucket < :end"), window)
    return len(_refresh(connection, window))


def refresh_newest(connection: Connection, now: datetime) -> int:
    """Refresh the hour before the present one and all that began since, unless somebody refreshes already.

    They stay open: `hours_to_close` names them until `refresh_hours` has had them.
    """
    if not connection.execute(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": _LOCK}).scalar_one():
        return 0
    renewed = _refresh(connection, {"start": floor(now, HOUR) - HOUR, "end": LATEST})
    connection.execute(
        text(
            "INSERT INTO metrics.open_hour SELECT DISTINCT bucket"
            " FROM unnest(CAST(:buckets AS timestamptz[])) AS bucket ON CONFLICT DO NOTHING"
        ),
        {"buckets": [bucket for _, bucket in renewed]},
    )
    return len(renewed)


def _refresh(connection: Connection, window: dict[str, datetime]) -> list[tuple[int, datetime]]:
    """Under the lock: compute what is marked in the window anew; series and hour of each."""
    marks = sorted({(series, bucket) for series, bucket in connection.execute(_TAKE_MARKS, window)})
    if marks:
        # Statements of their own: they see every sample whose mark the statement before them has taken.
        buckets = [bucket for _, bucket in marks]
        hours = {
            "series": [series for series, _ in marks], "buckets": buckets,
            "first": min(buckets), "last": max(buckets) + HOUR,
        }  # fmt: skip
        connection.execute(_HOURS, hours)
        connection.execute(_HISTOGRAMS, hours)
        days = sorted({(series, floor(bucket, DAY)) for series, bucket in marks})
        connection.execute(_DAYS, {"series": [series for series, _ in days], "buckets": [bucket for _, bucket in days]})
    return marks


def hours_to_close(connection: Connection, limit: int) -> list[datetime]:
    """Up to `limit` hours that have samples no rollup has seen, or were refreshed while they lasted, oldest first."""
    rows = connection.execute(
        text(
            "SELECT bucket FROM metrics.dirty UNION SELECT bucket FROM metrics.open_hour ORDER BY bucket LIMIT :limit"
        ),
        {"limit": limit},
    )
    return list(rows.scalars())
