"""Questions over series and time, answered from rollups where they can stand for the samples, and from those elsewhere.

Counts, sums, extremes, means and spreads are those of the samples at the moment of the question, late ones included.
A percentile over whole hours is within 1 % of each of the two values it lies between, unless it is asked for exactly
or the samples are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from primespark.core.values import check_time
from primespark.errors import InvalidInputError
from primespark.store.analytics import aggregates
from primespark.store.analytics.aggregates import Aggregation, Reading
from primespark.store.analytics.buckets import Granularity, too_many_points
from primespark.store.analytics.fill import Fill, filled
from primespark.store.analytics.plan import Plan, plan, plan_even
from primespark.store.analytics.selection import Filter, Selection, select_series
from primespark.store.analytics.series import Series, to_microseconds

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
class Answer:
    """What was found, and from where it was read."""

    series: list[Series]
    plan: Plan
    stale_hours: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """A question, and what must be known to read the answer.

    Attributes:
        query: The question.
        selection: The series it is about.
        starts: When each bucket begins; None where nobody needs to know.
        plan: What is to be read.
        max_points: Most points of the answer.
    """

    query: Query
    selection: Selection
    starts: list[datetime] | None
    plan: Plan
    max_points: int


def run(connection: Connection, query: Query, *, max_points: int = MAX_POINTS) -> Answer:
    """Answer a question, as of one moment; the connection has begun no transaction yet.

    Raises:
        InvalidInputError: It says what is wrong with the question.
    """
    return work_out(connection, prepare(connection, query, max_points=max_points))


def prepare(
    connection: Connection, query: Query, *, max_points: int = MAX_POINTS, with_version: bool = False
) -> Prepared:
    """Find out what a question is about; begins the transaction in which it is to be answered.

    Raises:
        InvalidInputError: It says what is wrong with the question.
    """
    _check(query)
    versions_of = (query.start, query.end) if with_version else None
    selection = select_series(connection, query.metrics, query.filters, query.group_by, versions_of)
    return Prepared(query, selection, *_buckets(query, max_points), max_points)


def work_out(connection: Connection, prepared: Prepared) -> Answer:
    """Read the answer.

    Raises:
        InvalidInputError: It has too many points.
    """
    query = prepared.query
    even = query.granularity.width if query.granularity and query.granularity.is_even else None
    stale = aggregates.stale_hours(connection, prepared.selection, prepared.plan)
    reading = Reading(
        prepared.selection, prepared.plan, prepared.starts if even is None else None, even, stale,
        prepared.max_points + 1,
    )  # fmt: skip
    _check_age(reading.plan, prepared.selection)
    found, is_exact = _found(connection, query, reading)
    if sum(len(series.times) for series in found) > prepared.max_points:
        raise too_many_points(prepared.max_points)
    return Answer(_in_order(prepared, found), prepared.plan, len(stale), is_exact)


def _found(connection: Connection, query: Query, reading: Reading) -> tuple[list[Series], bool]:
    """Each group's points, and whether percentiles are those of the samples."""
    others = [aggregation for aggregation in query.aggregations if aggregation is not Aggregation.PERCENTILE]
    found = aggregates.moments(connection, reading, others) if others else []
    if len(others) == len(query.aggregations):
        return found, True
    percentiles, is_exact = _percentiles(connection, query, reading)
    if not others:
        return percentiles, is_exact
    at = query.aggregations.index(Aggregation.PERCENTILE)
    # Both are of the same samples, so they have the same groups and buckets.
    for series, of_percentile in zip(found, percentiles, strict=True):
        series.columns[at:at] = of_percentile.columns
    return found, is_exact


def _check_age(plan: Plan, selection: Selection) -> None:
    """Refuse to read samples that may be gone."""
    if any(begin < selection.raw_from for begin, _ in plan.raw):
        raise InvalidInputError(
            f"samples from before {selection.raw_from.isoformat()} are kept as hours",
            remedy="begin and end at full hours, by hours or longer, without `exact`",
            code="samples_gone",
        )


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


def _buckets(query: Query, max_points: int) -> tuple[list[datetime] | None, Plan]:
    """Where buckets begin, None where nobody needs to know, and what is to be read."""
    granularity = query.granularity
    if query.fill is Fill.NONE and granularity and granularity.is_even and granularity.width:
        even = plan_even(query.start, query.end, granularity.width)
        if even is not None:
            return None, even
    starts = granularity.starts(query.start, query.end, max_points) if granularity else [query.start]
    return starts, plan(query.start, query.end, starts)


def _percentiles(connection: Connection, query: Query, reading: Reading) -> tuple[list[Series], bool]:
    """The percentiles, and whether they are those of the samples."""
    given = query.percentile or 0.0
    if given in (0, 100):
        # These are known of every hour and day.
        extreme = Aggregation.MIN if given == 0 else Aggregation.MAX
        return aggregates.moments(connection, reading, [extreme]), True
    rolled = sorted(reading.plan.days + reading.plan.hours)
    are_there = query.start >= reading.selection.raw_from
    if query.is_exact or not rolled or (are_there and _count(connection, query, reading) <= FEW_SAMPLES):
        from_samples = replace(reading, plan=Plan(raw=[(query.start, query.end)]), stale=[])
        _check_age(from_samples.plan, reading.selection)
        return aggregates.exact_percentile(connection, from_samples, given), True
    by_hours = replace(reading, plan=Plan(hours=rolled, raw=reading.plan.raw))
    return aggregates.histogram_percentile(connection, by_hours, given), False


def _count(connection: Connection, query: Query, reading: Reading) -> int:
    in_one_bucket = replace(reading, starts=[query.start], width=None)
    counts = aggregates.moments(connection, in_one_bucket, [Aggregation.COUNT])
    return int(sum(series.columns[0][0] for series in counts))


def _in_order(prepared: Prepared, found: list[Series]) -> list[Series]:
    """The series as they are answered, filled, by their groups."""
    fill = prepared.query.fill
    if fill is not Fill.NONE and prepared.starts is not None:
        if len(found) * len(prepared.starts) > prepared.max_points:
            raise too_many_points(prepared.max_points)
        moments = [to_microseconds(moment) for moment in prepared.starts]
        found = [filled(series, moments, fill) for series in found]
    return sorted(found, key=group_key)


def group_key(series: Series) -> list[list[Any]]:
    """By what series are in order: field by field, what is absent last."""
    return [[value is None, value or ""] for value in series.group.values()]
