"""What there is of each metric and device over a time, at a glance.

Figures are read as those of any question are. Gaps are found by the hours that have samples, which the rollups know
without the samples themselves; then only the samples on both sides of a gap are read. Where samples are no longer kept,
the hour of a sample stands for its time.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, select, text, tuple_

from primespark.core.values import EARLIEST, check_text, check_time
from primespark.errors import InvalidInputError
from primespark.store.analytics import queries
from primespark.store.analytics.aggregates import Aggregation
from primespark.store.analytics.pages import MAX_CURSOR_CHARACTERS
from primespark.store.analytics.plan import HOUR, floor, plan
from primespark.store.analytics.queries import Prepared, Query
from primespark.store.analytics.selection import CHOSEN, MAX_SERIES, METRIC, Selection, begin
from primespark.store.analytics.series import to_datetime
from primespark.store.schema import retention, series

# A gap is longer than so many times the mean time between two samples.
GAP_INTERVALS = 3
_FIGURES = (Aggregation.COUNT, Aggregation.MIN, Aggregation.MAX, Aggregation.AVG, Aggregation.PERCENTILE)
# An hour in a rollup has samples or had some; one that was marked may have only what stands for a missing value.
_GAPS = text(f"""{CHOSEN},
ends AS MATERIALIZED (
    SELECT * FROM unnest(
        CAST(:known AS int[]), CAST(:firsts AS timestamptz[]), CAST(:lasts AS timestamptz[]), CAST(:least AS interval[])
    ) AS e(g, first, last, least)
),
hours AS (
    SELECT c.g, r.bucket FROM chosen c JOIN metrics.rollup_1h r USING (series_id)
        WHERE r.bucket >= :first_hour AND r.bucket <= :last
    UNION
    SELECT c.g, d.bucket FROM chosen c JOIN metrics.dirty d USING (series_id)
        WHERE d.bucket >= :first_hour AND d.bucket <= :last AND EXISTS (
            SELECT FROM metrics.sample m WHERE m.series_id = d.series_id AND m.value IS NOT NULL
                AND m.time >= d.bucket AND m.time < d.bucket + interval '1 hour'
        )
),
pairs AS (
    SELECT h.g, h.bucket, lead(h.bucket) OVER (PARTITION BY h.g ORDER BY h.bucket) AS following, e.least
        FROM hours h JOIN ends e USING (g) WHERE h.bucket > e.first - interval '1 hour' AND h.bucket <= e.last
),
gaps AS (
    SELECT p.g, p.least, after.time - before.time AS length FROM pairs p
        CROSS JOIN LATERAL (
            SELECT coalesce(max(m.time), p.bucket + interval '1 hour') AS time
                FROM chosen c JOIN metrics.sample m USING (series_id)
                WHERE c.g = p.g AND m.value IS NOT NULL
                AND m.time >= p.bucket AND m.time < p.bucket + interval '1 hour'
        ) AS before
        CROSS JOIN LATERAL (
            SELECT coalesce(min(m.time), p.following) AS time FROM chosen c JOIN metrics.sample m USING (series_id)
                WHERE c.g = p.g AND m.value IS NOT NULL
                AND m.time >= p.following AND m.time < p.following + interval '1 hour'
        ) AS after
        WHERE p.following - p.bucket > interval '1 hour' AND p.following + interval '1 hour' - p.bucket > p.least
)
SELECT g, count(*) AS n, max(length) AS longest, sum(length) AS total FROM gaps WHERE length > least GROUP BY g""")


@dataclass(frozen=True, slots=True)
class Gaps:
    """Times between two neighbouring samples with a whole hour, of UTC, and three mean intervals without any."""

    count: int = 0
    longest: timedelta = timedelta(0)
    total: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """All samples of a metric and device in a range.

    Attributes:
        count: How many.
        last_value: The newest one's; of several at one moment the one that came last.
        percentile_95: Within 1 %, see `queries`.
        rate_per_s: Samples in a second between the first and the last; None where those are one moment.
    """

    metric: str
    device_id: str
    count: int
    first: datetime
    last: datetime
    last_value: float
    minimum: float
    maximum: float
    average: float
    percentile_95: float
    rate_per_s: float | None
    gaps: Gaps


@dataclass(frozen=True, slots=True)
class Summary:
    """A page of summaries.

    Attributes:
        items: By metric and device.
        next_cursor: For the page behind; None at the end.
        by_hours_before: Before this, times are those of hours; None: nowhere in the range.
    """

    items: list[MetricSummary]
    next_cursor: str | None
    by_hours_before: datetime | None


@dataclass(frozen=True, slots=True)
class _Ends:
    first: datetime
    last: datetime
    last_value: float


def summarise(
    connection: Connection,
    start: datetime,
    end: datetime,
    *,
    metric: str | None = None,
    device_id: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Summary:
    """What has samples in `[start, end)` of the next `limit` metrics and devices, by name.

    All as of one moment; the connection has begun no transaction yet.

    Raises:
        InvalidInputError: A range, a name or a cursor that is none.
    """
    check_time(start)
    check_time(end)
    if end <= start:
        raise InvalidInputError("the range ends before it begins", remedy="give [start, end)", code="bad_time_range")
    check_text(*(given for given in (metric, device_id) if given is not None))
    after = _read(cursor) if cursor is not None else None
    begin(connection)
    pairs = _pairs(connection, metric, device_id, after, limit + 1)
    selection = _selection(connection, pairs[:limit])
    found = _summaries(connection, selection, start, end) if selection.series else []
    following = _write(pairs[limit - 1]) if len(pairs) > limit else None
    return Summary(found, following, selection.raw_from if selection.raw_from > start else None)


def _pairs(
    connection: Connection, metric: str | None, device_id: str | None, after: tuple[str, str] | None, limit: int
) -> list[tuple[str, str]]:
    pair = (series.c.metric, series.c.device_id)
    statement = select(*pair).distinct().order_by(*pair).limit(limit)
    if metric is not None:
        statement = statement.where(series.c.metric == metric)
    if device_id is not None:
        statement = statement.where(series.c.device_id == device_id)
    if after is not None:
        statement = statement.where(tuple_(*pair) > after)
    return [(row.metric, row.device_id) for row in connection.execute(statement)]


def _selection(connection: Connection, pairs: list[tuple[str, str]]) -> Selection:
    numbers = {pair: number for number, pair in enumerate(pairs)}
    statement = select(series.c.series_id, series.c.metric, series.c.device_id, retention.c.raw_from).where(
        tuple_(series.c.metric, series.c.device_id).in_(pairs), retention.c["class"] == series.c["class"]
    )
    rows = connection.execute(statement.limit(MAX_SERIES + 1)).all()
    if len(rows) > MAX_SERIES:
        raise InvalidInputError(f"more than {MAX_SERIES} series", remedy="lower the limit", code="too_many_series")
    groups: list[dict[str, str | None]] = [{METRIC: metric, "device_id": device_id} for metric, device_id in pairs]
    chosen = [(row.series_id, numbers[row.metric, row.device_id]) for row in rows]
    return Selection(groups, chosen, max((row.raw_from for row in rows), default=EARLIEST))


def _summaries(connection: Connection, selection: Selection, start: datetime, end: datetime) -> list[MetricSummary]:
    query = Query([], _FIGURES, start, end, percentile=95)
    prepared = Prepared(query, selection, [start], plan(start, end, [start]), len(selection.groups))
    answer = queries.work_out(connection, prepared)
    numbers = {(group[METRIC], group["device_id"]): number for number, group in enumerate(selection.groups)}
    ends = _ends(connection, selection, start, end)
    figures = {
        numbers[one.group[METRIC], one.group["device_id"]]: [column[0] for column in one.columns]
        for one in answer.series
    }
    intervals = {number: int(values[0]) - 1 for number, values in figures.items()}
    gaps = _gaps(connection, selection, start, ends, intervals)
    return [
        MetricSummary(
            metric=selection.groups[number][METRIC] or "", device_id=selection.groups[number]["device_id"] or "",
            count=int(count), first=ends[number].first, last=ends[number].last, last_value=ends[number].last_value,
            minimum=minimum, maximum=maximum, average=average, percentile_95=percentile_95,
            rate_per_s=_rate_per_s(intervals[number], ends[number]), gaps=gaps.get(number, Gaps()),
        )
        for number, (count, minimum, maximum, average, percentile_95) in sorted(figures.items())
    ]  # fmt: skip


def _ends(connection: Connection, selection: Selection, start: datetime, end: datetime) -> dict[int, _Ends]:
    """The first and last sample of each group, from the first and last entry of the indexes for each series."""
    samples = "SELECT m.time, m.seq, m.value FROM metrics.sample m WHERE m.series_id = c.series_id AND m.time >= :start"
    hours = (
        "SELECT r.bucket, 0, r.last FROM metrics.rollup_1h r JOIN metrics.series s USING (series_id)"
        " JOIN metrics.retention t USING (class) WHERE r.series_id = c.series_id AND r.bucket >= :start"
        " AND r.bucket < t.raw_from AND r.bucket"
    )
    ends = [
        f"(({samples} AND m.time < :end AND m.value IS NOT NULL ORDER BY m.time {order}, m.seq {order} LIMIT 1)"
        f" UNION ALL ({hours} < :end ORDER BY r.bucket {order} LIMIT 1) ORDER BY time {order} LIMIT 1)"
        for order in ("ASC", "DESC")
    ]
    statement = text(
        f"{CHOSEN} SELECT c.g, extract(epoch FROM min(first.time)) * 1000000 AS first,"
        " extract(epoch FROM max(last.time)) * 1000000 AS last,"
        " (array_agg(last.value ORDER BY last.time DESC, last.seq DESC, c.series_id DESC))[1] AS last_value"
        f" FROM chosen c CROSS JOIN LATERAL {ends[0]} AS first CROSS JOIN LATERAL {ends[1]} AS last GROUP BY c.g"
    )
    rows = connection.execute(statement, selection.parameters() | {"start": start, "end": end})
    return {row.g: _Ends(to_datetime(int(row.first)), to_datetime(int(row.last)), row.last_value) for row in rows}


def _gaps(
    connection: Connection, selection: Selection, start: datetime, ends: dict[int, _Ends], intervals: dict[int, int]
) -> dict[int, Gaps]:
    """Of each group: between which hours none has a sample, and when the samples were that these follow and precede."""
    known = {number: ends[number] for number, count in intervals.items() if count}
    bound = {
        "known": [*known], "firsts": [one.first for one in known.values()],
        "lasts": [one.last for one in known.values()],
        "least": [GAP_INTERVALS * (one.last - one.first) // intervals[number] for number, one in known.items()],
        "first_hour": floor(start, HOUR), "last": max((one.last for one in known.values()), default=start),
    }  # fmt: skip
    rows = connection.execute(_GAPS, selection.parameters() | bound)
    return {row.g: Gaps(row.n, row.longest, row.total) for row in rows}


def _rate_per_s(intervals: int, ends: _Ends) -> float | None:
    span_s = (ends.last - ends.first).total_seconds()
    return intervals / span_s if span_s else None


def _write(pair: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(pair, separators=(",", ":")).encode()).decode()


def _read(cursor: str) -> tuple[str, str]:
    try:
        metric, device_id = json.loads(base64.b64decode(cursor[:MAX_CURSOR_CHARACTERS], altchars="-_", validate=True))
        check_text(metric, device_id)
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise InvalidInputError(
            "not a cursor", remedy="give `next_cursor` as it was answered", code="bad_cursor"
        ) from None
    return metric, device_id
