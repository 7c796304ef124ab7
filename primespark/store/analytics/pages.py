"""An answer in pages: series in the order of their groups, points in order of time, and a cursor between them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from primespark.core.values import EARLIEST
from primespark.errors import InvalidInputError
from primespark.store.analytics.queries import Series, group_key

MAX_CURSOR_CHARACTERS = 4096
_MICROSECOND = timedelta(microseconds=1)
# A group's values, each with whether it is absent, and the microsecond of a point.
Position = tuple[list[Any], int]


def page(
    series: Sequence[Series], limit: int | None, cursor: str | None, *, newest_first: bool = False
) -> tuple[list[Series], str | None]:
    """At most `limit` points behind `cursor`, and the cursor behind them; None at the end.

    A cursor names a place by its group and time: what changes elsewhere meanwhile moves nothing.

    Raises:
        InvalidInputError: Code `bad_cursor`.
    """
    after = _read(cursor) if cursor is not None else None
    sign = -1 if newest_first else 1
    chosen: list[Series] = []
    left = limit
    last: Position | None = None
    for one in series:
        key = group_key(one)
        points = one.points[::sign]
        if after is not None:
            if key < after[0]:
                continue
            if key == after[0]:
                points = [point for point in points if sign * _number(point[0]) > sign * after[1]]
        if left is not None and len(points) > left:
            if left:
                chosen.append(Series(one.group, points[:left]))
                last = key, _number(points[left - 1][0])
            return chosen, _write(last) if last else cursor
        if points:
            chosen.append(Series(one.group, points))
            last = key, _number(points[-1][0])
            left = None if left is None else left - len(points)
    return chosen, None


def _number(moment: datetime) -> int:
    return (moment - EARLIEST) // _MICROSECOND


def _write(position: Position) -> str:
    return base64.urlsafe_b64encode(json.dumps(position, separators=(",", ":")).encode()).decode()


def _read(cursor: str) -> Position:
    try:
        key, number = json.loads(base64.b64decode(cursor[:MAX_CURSOR_CHARACTERS], altchars="-_", validate=True))
        parts = [[is_absent, value] for is_absent, value in key]
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise _bad_cursor() from None
    if type(number) is not int or not all(type(part[0]) is bool and isinstance(part[1], str) for part in parts):
        raise _bad_cursor()
    return parts, number


def _bad_cursor() -> InvalidInputError:
    return InvalidInputError("not a cursor", remedy="give `next_cursor` as it was answered", code="bad_cursor")
