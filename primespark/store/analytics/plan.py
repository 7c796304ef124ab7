"""What to read for an answer: rollups for whole hours and days, samples for the rest.

An hour or day of a rollup can stand for its samples where no bucket begins within it. What is left are the ragged ends
of the range, hours cut by a bucket that begins at the half hour, and, found while reading, hours with samples that no
rollup has seen.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Span = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Plan:
    """Spans `[from, to)` that together are the range, each to be read from one place.

    Attributes:
        days: From the daily rollup.
        hours: From the hourly rollup.
        raw: From the samples.
    """

    days: list[Span] = field(default_factory=list)
    hours: list[Span] = field(default_factory=list)
    raw: list[Span] = field(default_factory=list)


def plan(start: datetime, end: datetime, starts: Sequence[datetime]) -> Plan:
    """Read as little as possible for buckets that begin at `starts`, in order."""
    cuts = starts[bisect_right(starts, start) :]
    if len(cuts) > (end - start) / HOUR:
        # Every hour is cut, or as good as every.
        return Plan(raw=[(start, end)])
    return _plan(start, end, cuts, with_days=len(cuts) <= (end - start) / DAY)


def plan_even(start: datetime, end: datetime, width: timedelta) -> Plan | None:
    """`plan` for buckets of one width counted from a midnight; None where it takes a look at each of them."""
    if width < HOUR:
        return Plan(raw=[(start, end)])
    if width % DAY and DAY % width:
        return None
    return None if width % HOUR else _plan(start, end, [], with_days=not width % DAY)


def _plan(start: datetime, end: datetime, cuts: Sequence[datetime], *, with_days: bool) -> Plan:
    hours = _whole(start, end, cuts, HOUR)
    raw = _without(start, end, hours)
    if not with_days:
        return Plan(hours=hours, raw=raw)
    days = [span for start, end in hours for span in _whole(start, end, _between(cuts, start, end), DAY)]
    return Plan(days, [span for hour in hours for span in _without(*hour, days)], raw)


def floor(moment: datetime, width: timedelta) -> datetime:
    """The beginning of the hour or day, in UTC, that a moment is in."""
    return _EPOCH + (moment - _EPOCH) // width * width


def _whole(start: datetime, end: datetime, cuts: Iterable[datetime], width: timedelta) -> list[Span]:
    """The parts of `[start, end)` that are whole hours or days in which no bucket begins, but at their beginning."""
    first, last = -(-(start - _EPOCH) // width), (end - _EPOCH) // width
    if last <= first:
        return []
    cut = sorted({(moment - _EPOCH) // width for moment in cuts if (moment - _EPOCH) % width})
    edges = [first, *(edge for number in cut if first <= number < last for edge in (number, number + 1)), last]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(_EPOCH + begin * width, _EPOCH + finish * width) for begin, finish in pairs if begin < finish]


def _without(start: datetime, end: datetime, spans: Sequence[Span]) -> list[Span]:
    """The parts of `[start, end)` that are in none of `spans`, which are in order."""
    inside = [span for span in spans if span[0] >= start and span[1] <= end]
    edges = [start, *(edge for span in inside for edge in span), end]
    return [(begin, finish) for begin, finish in zip(edges[::2], edges[1::2], strict=True) if begin < finish]


def _between(cuts: Sequence[datetime], start: datetime, end: datetime) -> Sequence[datetime]:
    return cuts[bisect_left(cuts, start) : bisect_left(cuts, end)]
