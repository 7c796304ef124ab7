"""Questions over series and time, answered from rollups where they can stand for the samples, and from those elsewhere.

Counts, sums, extremes, means and spreads are those of the samples at the moment of the question, late ones included.
A percentile over whole hours is within 1 % of each of the two values it lies between, unless it is asked for exactly
or the samples are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from primespark.core.values import check_time
from primespark.errors import InvalidInputError
from primespark.store.analytics import aggregates
from primespark.store.analytics.aggregates import Aggregation, Reading
from primespark.store.analytics.buckets import Granularity, too_many_points
from primespark.store.analytics.fill import Fill, Point, filled
from primespark.store.analytics.plan import HOUR, Plan, plan
from primespark.store.analytics.selection import Filter, Selection, select_series

MAX_POINTS = 50_000
# Of so few samples a percentile is exact without being asked to: reading them takes some milliseconds.
FEW_SAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Query:
    """A question.

    Attributes:
        metrics: Names; several are told apart in the answer's groups.
        aggregations: What is made of each bucket's values, one value each in the order given.
        start: First moment.
        end: First moment after.
        granularity: How time is cut; None: not at all, the range is one bucket.
        group_by: Fields whose values are told apart.
        filters: What must hold of a series.
        percentile: For that aggregation, 0 to 100.
        is_exact: Whether the percentile must be that of the samples.
        fill: What stands for buckets without samples.
    """

    metrics: Sequence[str]
    aggregations: Sequence[Aggregation]
    start: datetime
    end: datetime
    granularity: Granularity | None = None
    group_by: Sequence[str] = ()
    filters: Sequence[Filter] = ()
    percentile: float | None = None
    is_exact: bool = False
    fill: Fill = Fill.NONE


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one group, in order of time."""

    group: dict[str, str | None]
    points: list[Point] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found, and from where it was read."""

    series: list[Series]
    plan: Plan
    stale_hours: int
    is_exact: bool


def run(connection: Connection, query: Query, *, max_points: int = MAX_POINTS) -> Answer:
    """Answer a question, as of one moment; the connection has begun no transaction yet.

    Raises:
        InvalidInputError: It says what is wrong with the question.
    """
    _check(query)
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    selection = select_series(connection, query.metrics, query.filters, query.group_by)
    starts = _starts(query, max_points)
    whole = plan(query.start, query.end, starts)
    even = query.granularity.width if query.granularity and query.granularity.is_even else None
    stale = aggregates.stale_hours(connection, selection, whole)
    reading = Reading(selection, whole, starts if even is None else None, even, stale, max_points + 1)
    found: dict[tuple[int, datetime], list[float | None]] = {}
    width = len(query.aggregations)
    others = [aggregation for aggregation in query.aggregations if aggregation is not Aggregation.PERCENTILE]
    if others:
        for group, moment, *values in aggregates.moments(connection, reading, others):
            found[group, moment] = values
    is_exact = True
    if len(others) < width:
        at = query.aggregations.index(Aggregation.PERCENTILE)
        rows, is_exact = _percentiles(connection, query, reading)
        for group, moment, value in rows:
            found.setdefault((group, moment), [None] * (width - 1)).insert(at, value)
    if len(found) > max_points:
        raise too_many_points(max_points)
    return Answer(_series(query, selection, starts, found, max_points), whole, len(stale), is_exact)


def _check(query: Query) -> None:
    check_time(query.start)
    check_time(query.end)
    if query.end <= query.start:
        raise InvalidInputError("time_range ends before it begins", remedy="give [start, end)", code="bad_time_range")
    if not query.aggregations or len(set(query.aggregations)) != len(query.aggregations):
        raise InvalidInputError(
            "no aggregation, or one twice", remedy=f"some of {', '.join(Aggregation)}", code="unknown_aggregation"
        )
    asks_percentile = Aggregation.PERCENTILE in query.aggregations
    if asks_percentile != (query.percentile is not None) or not 0 <= (query.percentile or 0) <= 100:
        raise InvalidInputError(
            "percentile is a number from 0 to 100 for that aggregation, and for no other",
            remedy='give "aggregation": "percentile" and "percentile": 95',
            code="bad_percentile",
        )


def _starts(query: Query, max_points: int) -> list[datetime] | None:
    """Where buckets begin; None where nobody needs to know, since they are so short that none is read from a rollup."""
    if query.granularity is None:
        return [query.start]
    width = query.granularity.width
    if query.fill is Fill.NONE and query.granularity.is_even and width is not None and width < HOUR:
        return None
    return query.granularity.starts(query.start, query.end, max_points)


def _percentiles(connection: Connection, query: Query, reading: Reading) -> tuple[list[aggregates.Row], bool]:
    """The percentiles, and whether they are those of the samples."""
    given = query.percentile or 0.0
    if given in (0, 100):
        # These are known of every hour and day.
        extreme = Aggregation.MIN if given == 0 else Aggregation.MAX
        return aggregates.moments(connection, reading, [extreme]), True
    rolled = sorted(reading.plan.days + reading.plan.hours)
    if query.is_exact or not rolled or _count(connection, query, reading) <= FEW_SAMPLES:
        from_samples = replace(reading, plan=Plan(raw=[(query.start, query.end)]), stale=[])
        return aggregates.exact_percentile(connection, from_samples, given), True
    by_hours = replace(reading, plan=Plan(hours=rolled, raw=reading.plan.raw))
    return aggregates.histogram_percentile(connection, by_hours, given), False


def _count(connection: Connection, query: Query, reading: Reading) -> int:
    in_one_bucket = replace(reading, starts=[query.start], width=None)
    return sum(int(row[2]) for row in aggregates.moments(connection, in_one_bucket, [Aggregation.COUNT]))


def _series(
    query: Query,
    selection: Selection,
    starts: Sequence[datetime] | None,
    found: dict[tuple[int, datetime], list[float | None]],
    max_points: int,
) -> list[Series]:
    points: dict[int, list[Point]] = {}
    for (group, moment), values in sorted(found.items(), key=lambda item: item[0]):
        points.setdefault(group, []).append((moment, values))
    if query.fill is not Fill.NONE and starts is not None:
        if len(points) * len(starts) > max_points:
            raise too_many_points(max_points)
        points = {group: filled(some, starts, query.fill, len(query.aggregations)) for group, some in points.items()}
    return sorted((Series(selection.groups[group], some) for group, some in points.items()), key=group_key)


def group_key(series: Series) -> list[list[Any]]:
    """By what series are in order: field by field, what is absent last."""
    return [[value is None, value or ""] for value in series.group.values()]
