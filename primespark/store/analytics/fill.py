"""What stands for buckets without samples."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

Values = list[float | None]
Point = tuple[datetime, Values]


class Fill(StrEnum):
    """How an empty bucket is answered."""

    NONE = "none"
    NULL = "null"
    PREVIOUS = "previous"
    LINEAR = "linear"
    ZERO = "zero"


def filled(points: Sequence[Point], starts: Sequence[datetime], fill: Fill, width: int) -> list[Point]:
    """A point for each of `starts`: those of `points`, which are in order, and between them what `fill` says.

    `previous` is null before the first point, `linear` before the first and after the last.
    """
    known = dict(points)
    if fill is Fill.NONE:
        return list(points)
    times = [moment for moment, _ in points]
    empty: Values = [0.0 if fill is Fill.ZERO else None] * width
    answer: list[Point] = []
    for moment in starts:
        values = known.get(moment)
        if values is None:
            values = empty
            after = bisect_left(times, moment)
            if fill is Fill.PREVIOUS and after > 0:
                values = points[after - 1][1]
            elif fill is Fill.LINEAR and 0 < after < len(points):
                values = _between(points[after - 1], points[after], moment)
        answer.append((moment, list(values)))
    return answer


def _between(before: Point, after: Point, moment: datetime) -> Values:
    share = (moment - before[0]) / (after[0] - before[0])
    pairs = zip(before[1], after[1], strict=True)
    return [None if low is None or high is None else low + (high - low) * share for low, high in pairs]
