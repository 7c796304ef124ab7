"""Hourly rollups of samples, always computed from the samples themselves, so late data heals them."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, text

_LOCK = 7_301_004
_TAKE_MARKS = text(
    "DELETE FROM metrics.dirty WHERE bucket >= :start AND bucket < :end RETURNING series_id, bucket"
)  # fmt: skip
_RECOMPUTE = text(
    "INSERT INTO metrics.rollup_1h AS known (series_id, bucket, n, sum, m2, min, max, first, last)"
    " SELECT series_id, given.bucket, count(*), sum(value), regr_sxx(value, value), min(value), max(value),"
    " (array_agg(value ORDER BY time, seq))[1], (array_agg(value ORDER BY time DESC, seq DESC))[1]"
    " FROM unnest(CAST(:series AS bigint[]), CAST(:buckets AS timestamptz[])) AS given(series_id, bucket)"
    " JOIN metrics.sample USING (series_id)"
    " WHERE time >= given.bucket AND time < given.bucket + interval '1 hour' GROUP BY series_id, given.bucket"
    " ON CONFLICT (series_id, bucket) DO UPDATE SET (n, sum, m2, min, max, first, last)"
    " = (excluded.n, excluded.sum, excluded.m2, excluded.min, excluded.max, excluded.first, excluded.last)"
)


def refresh_hours(connection: Connection, start: datetime, end: datetime) -> int:
    """Bring the rollup of all hours that begin in `[start, end)` up to date; the number of its rows that were renewed.

    Only hours of series with new samples are computed again. A sample of a transaction that commits meanwhile brings
    its own mark, so the next refresh takes it.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    marks = sorted({tuple(row) for row in connection.execute(_TAKE_MARKS, {"start": start, "end": end})})
    if not marks:
        return 0
    # A statement of its own: it sees every sample whose mark the statement before it has taken.
    renewed = connection.execute(
        _RECOMPUTE, {"series": [series for series, _ in marks], "buckets": [bucket for _, bucket in marks]}
    )
    return renewed.rowcount


def dirty_hours(connection: Connection, limit: int) -> list[datetime]:
    """Up to `limit` hours that have samples no rollup has seen, oldest first."""
    rows = connection.execute(
        text("SELECT DISTINCT bucket FROM metrics.dirty ORDER BY bucket LIMIT :limit"), {"limit": limit}
    )
    return list(rows.scalars())
