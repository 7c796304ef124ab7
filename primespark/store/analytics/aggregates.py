"""The eight aggregations, each of parts that merge: counts, sums, extremes, spreads about the mean, and histograms.

The SQL here is put together of constants; everything that comes from outside is bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, text

from primespark.store.analytics.buckets import ORIGIN
from primespark.store.analytics.plan import DAY, HOUR, Plan, Span, floor
from primespark.store.analytics.selection import CHOSEN, Selection
from primespark.store.analytics.series import Series


class Aggregation(StrEnum):
    """What is made of the values of a bucket."""

    SUM = "sum"
    AVG = "avg"
    MIN = "min"
    MAX = "max"
    COUNT = "count"
    PERCENTILE = "percentile"
    STDDEV = "stddev"
    VARIANCE = "variance"


# Of one value there is no spread.
_VALUES = {
    Aggregation.SUM: "sum",
    Aggregation.AVG: "metrics.ratio(sum, n)",
    Aggregation.MIN: "min",
    Aggregation.MAX: "max",
    Aggregation.COUNT: "CAST(n AS float8)",
    Aggregation.STDDEV: "CASE WHEN n > 1 THEN sqrt(metrics.ratio(m2, n - 1)) END",
    Aggregation.VARIANCE: "CASE WHEN n > 1 THEN metrics.ratio(m2, n - 1) END",
}
_OF_SPREAD = {Aggregation.STDDEV, Aggregation.VARIANCE}


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer's series, range and buckets, and what of it must be read from the samples.

    Attributes:
        selection: The series.
        plan: What is read from where.
        starts: When each bucket begins; None for even ones.
        width: Of even buckets; None: see `starts`.
        stale: Hours of series, that the plan takes from rollups, with samples no rollup has seen.
        limit: Most points.
    """

    selection: Selection
    plan: Plan
    starts: Sequence[datetime] | None
    width: timedelta | None
    stale: Sequence[tuple[int, datetime]]
    limit: int

    def bucket(self, moment: str) -> str:
        """SQL for when the bucket of a moment begins."""
        if self.starts is None:
            return f"date_bin(CAST(:width AS interval), {moment}, CAST(:origin AS timestamptz))"
        return f"(CAST(:starts AS timestamptz[]))[width_bucket({moment}, CAST(:starts AS timestamptz[]))]"

    def parameters(self) -> dict[str, Any]:
        """What the SQL of a reading binds."""
        stale_days = sorted({(series, floor(hour, DAY)) for series, hour in self.stale if _is_in(hour, self.plan.days)})
        bound: dict[str, Any] = self.selection.parameters() | {
            "starts": self.starts, "width": self.width, "origin": ORIGIN, "limit": self.limit,
            "stale_series": [series for series, _ in self.stale], "stale_hours": [hour for _, hour in self.stale],
            "stale_day_series": [series for series, _ in stale_days], "stale_days": [day for _, day in stale_days],
        }  # fmt: skip
        for name, spans in (("days", self.plan.days), ("hours", self.plan.hours), ("raw", self.plan.raw)):
            bound |= {f"{name}_from": [begin for begin, _ in spans], f"{name}_to": [finish for _, finish in spans]}
        if self.plan.raw:
            bound |= {"raw_first": min(self.plan.raw)[0], "raw_last": max(finish for _, finish in self.plan.raw)}
        if self.stale:
            hours = [hour for _, hour in self.stale]
            bound |= {"stale_first": min(hours), "stale_last": max(hours) + HOUR}
        return bound


def stale_hours(connection: Connection, selection: Selection, plan: Plan) -> list[tuple[int, datetime]]:
    """Hours of the chosen series that no rollup has wholly seen, of those the plan takes from rollups."""
    spans = plan.days + plan.hours
    if not spans:
        return []
    rows = connection.execute(
        text(
            "SELECT DISTINCT series_id, bucket FROM metrics.dirty"
            " WHERE bucket >= :start AND bucket < :end AND series_id = ANY(:series)"
        ),
        {
            "start": min(spans)[0], "end": max(finish for _, finish in spans),
            "series": [series for series, _ in selection.series],
        },
    )  # fmt: skip
    return sorted((row.series_id, row.bucket) for row in rows if _is_in(row.bucket, spans))


def moments(connection: Connection, reading: Reading, aggregations: Sequence[Aggregation]) -> list[Series]:
    """A column of each of `aggregations`, of all but percentiles; NaN where there is no value."""
    with_spread = not _OF_SPREAD.isdisjoint(aggregations)
    parts = _moment_parts(reading, with_spread)
    merged = " UNION ALL ".join(parts)
    if reading.plan == Plan(raw=reading.plan.raw):
        pass  # one row for each group and bucket
    elif with_spread:
        # Chan, Golub, LeVeque 1983: each part's own spread, and that of its mean about the mean of all.
        merged = (
            "SELECT g, b, CAST(sum(n) AS float8) AS n, sum(sum) AS sum, min(min) AS min, max(max) AS max,"
            " sum(m2 + n * metrics.square(metrics.ratio(sum, n) - mean)) AS m2 FROM (SELECT *,"
            " metrics.ratio(sum(sum) OVER same, CAST(sum(n) OVER same AS float8)) AS mean"
            f" FROM ({merged}) AS part WINDOW same AS (PARTITION BY g, b)) AS part GROUP BY g, b"
        )
    else:
        merged = (
            "SELECT g, b, CAST(sum(n) AS float8) AS n, sum(sum) AS sum, min(min) AS min, max(max) AS max"
            f" FROM ({merged}) AS part GROUP BY g, b"
        )
    values = ", ".join(_VALUES[aggregation] for aggregation in aggregations)
    return _run(connection, reading, f"SELECT g, b, {values} FROM ({merged}) AS merged", len(aggregations))


def exact_percentile(connection: Connection, reading: Reading, percentile: float) -> list[Series]:
    """The percentile from the samples, interpolated as `percentile_cont` does."""
    return _run(
        connection,
        reading,
        f"SELECT c.g, {reading.bucket('m.time')} AS b, percentile_cont(:fraction) WITHIN GROUP (ORDER BY m.value)"
        f" FROM chosen c JOIN {_SAMPLES_OF_SPANS} GROUP BY 1, 2",
        fraction=percentile / 100,
    )


def histogram_percentile(connection: Connection, reading: Reading, percentile: float) -> list[Series]:
    """The percentile within 1 % from the histograms of whole hours, and the samples of the rest."""
    parts = [
        f"SELECT c.g, {reading.bucket('r.bucket')} AS b, binned.bin, binned.n FROM chosen c"
        f" JOIN {_spans('hours')} ON true JOIN metrics.rollup_histogram r ON r.series_id = c.series_id"
        " AND r.bucket >= hours.begin AND r.bucket < hours.finish"
        f" CROSS JOIN LATERAL unnest(r.bins, r.counts) AS binned(bin, n) {_fresh(reading)}"
    ]
    parts += [
        f"SELECT c.g, {reading.bucket('m.time')} AS b, metrics.log_bin(m.value) AS bin, count(*) AS n"
        f" FROM chosen c JOIN {samples} GROUP BY 1, 2, 3"
        for samples in _raw_sources(reading)
    ]
    return _run(
        connection,
        reading,
        "SELECT g, b, CASE WHEN abs(high - low) > 1e-290 THEN low + (high - low) * (rank - floor(rank)) ELSE low END"
        " FROM ("
        " SELECT g, b, :fraction * (total - 1) AS rank,"
        " metrics.bin_value(min(bin) FILTER (WHERE upto > floor(:fraction * (total - 1)))) AS low,"
        " metrics.bin_value(min(bin) FILTER (WHERE upto > ceil(:fraction * (total - 1)))) AS high FROM ("
        " SELECT g, b, bin, CAST(sum(n) OVER (PARTITION BY g, b ORDER BY bin) AS float8) AS upto,"
        " CAST(sum(n) OVER (PARTITION BY g, b) AS float8) AS total FROM ("
        f" SELECT g, b, bin, sum(n) AS n FROM ({' UNION ALL '.join(parts)}) AS part GROUP BY g, b, bin) AS binned"
        ") AS ranked GROUP BY g, b, total) AS found",
        fraction=percentile / 100,
    )


# First and last are no conditions of their own: by them parts are left out before the plan is made, not after.
_SAMPLES_OF_SPANS = (
    "unnest(CAST(:raw_from AS timestamptz[]), CAST(:raw_to AS timestamptz[])) AS raw(begin, finish) ON true"
    " JOIN metrics.sample m ON m.series_id = c.series_id AND m.time >= raw.begin AND m.time < raw.finish"
    " AND m.value IS NOT NULL AND m.time >= :raw_first AND m.time < :raw_last"
)
_SAMPLES_OF_STALE_HOURS = (
    "unnest(CAST(:stale_series AS bigint[]), CAST(:stale_hours AS timestamptz[])) AS stale(series_id, hour)"
    " USING (series_id) JOIN metrics.sample m ON m.series_id = c.series_id"
    " AND m.time >= stale.hour AND m.time < stale.hour + interval '1 hour' AND m.value IS NOT NULL"
    " AND m.time >= :stale_first AND m.time < :stale_last"
)


def _moment_parts(reading: Reading, with_spread: bool) -> list[str]:
    parts = []
    if reading.plan.days:
        fresh = (
            " WHERE NOT EXISTS (SELECT FROM unnest(CAST(:stale_day_series AS bigint[]),"
            " CAST(:stale_days AS timestamptz[])) AS stale(series_id, day)"
            " WHERE stale.series_id = r.series_id AND stale.day = r.bucket)"
            if reading.stale
            else ""
        )
        parts.append(_rolled(reading, "rollup_1d", f"{_spans('days')} ON true", "days", with_spread) + fresh)
    if reading.plan.hours:
        parts.append(
            _rolled(reading, "rollup_1h", f"{_spans('hours')} ON true", "hours", with_spread) + _fresh(reading)
        )
    if reading.plan.days and reading.stale:
        # Of a day with a stale hour the other hours.
        days = (
            "(SELECT series_id, day AS begin, day + interval '24 hours' AS finish"
            " FROM unnest(CAST(:stale_day_series AS bigint[]), CAST(:stale_days AS timestamptz[])) AS d(series_id, day)"
            ") AS days USING (series_id)"
        )
        parts.append(_rolled(reading, "rollup_1h", days, "days", with_spread) + _fresh(reading))
    if reading.plan.raw:
        parts.append(_raw_moments(reading, with_spread))
    if reading.stale:
        parts.append(_raw_moments(reading, with_spread, _SAMPLES_OF_STALE_HOURS))
    return parts


def _rolled(reading: Reading, table: str, spans: str, name: str, with_spread: bool) -> str:
    return (
        f"SELECT c.g, {reading.bucket('r.bucket')} AS b, r.n, r.sum, r.min, r.max {', r.m2' if with_spread else ''}"
        f" FROM chosen c JOIN {spans} JOIN metrics.{table} r"
        f" ON r.series_id = c.series_id AND r.bucket >= {name}.begin AND r.bucket < {name}.finish"
    )


def _raw_moments(reading: Reading, with_spread: bool, samples: str = _SAMPLES_OF_SPANS) -> str:
    spread = ", regr_sxx(m.value, m.value) AS m2" if with_spread else ""
    return (
        f"SELECT c.g, {reading.bucket('m.time')} AS b, count(m.value) AS n, sum(m.value) AS sum, min(m.value) AS min,"
        f" max(m.value) AS max {spread} FROM chosen c JOIN {samples} GROUP BY 1, 2"
    )


def _raw_sources(reading: Reading) -> list[str]:
    given = ((reading.plan.raw, _SAMPLES_OF_SPANS), (reading.stale, _SAMPLES_OF_STALE_HOURS))
    return [source for is_there, source in given if is_there]


def _spans(name: str) -> str:
    return f"unnest(CAST(:{name}_from AS timestamptz[]), CAST(:{name}_to AS timestamptz[])) AS {name}(begin, finish)"


def _fresh(reading: Reading) -> str:
    if not reading.stale:
        return ""
    return (
        " WHERE NOT EXISTS (SELECT FROM unnest(CAST(:stale_series AS bigint[]), CAST(:stale_hours AS timestamptz[]))"
        " AS stale(series_id, hour) WHERE stale.series_id = r.series_id AND stale.hour = r.bucket)"
    )


def _run(connection: Connection, reading: Reading, query: str, count: int = 1, **parameters: Any) -> list[Series]:
    """The series of each group with points, in order of their numbers.

    A column travels as the bytes of its numbers: tens of thousands of them are neither written out nor read as text.
    """
    values = [f"value_{number}" for number in range(count)]
    columns = ", ".join(f"string_agg(float8send(coalesce({value}, 'NaN')), '' ORDER BY b)" for value in values)
    statement = text(
        f"{CHOSEN} SELECT g, string_agg(timestamptz_send(b), '' ORDER BY b), {columns} FROM ("
        f"SELECT * FROM ({query}) AS found(g, b, {', '.join(values)}) ORDER BY g, b LIMIT :limit"
        ") AS found GROUP BY g ORDER BY g"
    )
    rows = connection.execute(statement, reading.parameters() | parameters)
    return [Series.of_bytes(reading.selection.groups[group], *packed) for group, *packed in rows]


def _is_in(moment: datetime, spans: Sequence[Span]) -> bool:
    return any(begin <= moment and moment + HOUR <= finish for begin, finish in spans)
