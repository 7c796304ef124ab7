"""An answer in pages: series in the order of their groups, points in order of time, and a cursor between them."""

from __future__ import annotations

import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from primespark.errors import InvalidInputError
from primespark.store.analytics.queries import group_key
from primespark.store.analytics.series import Series

MAX_CURSOR_CHARACTERS = 4096
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
    chosen: list[Series] = []
    left = limit
    last: Position | None = None
    for one in series:
        key = group_key(one)
        if after is not None and key < after[0]:
            continue
        rest = one.reversed() if newest_first else one
        if after is not None and key == after[0]:
            rest = rest.part(_behind(rest.times, after[1], newest_first=newest_first), len(rest.times))
        if left is not None and len(rest.times) > left:
            if left:
                chosen.append(rest.part(0, left))
                last = key, rest.times[left - 1]
            return chosen, _write(last) if last else cursor
        if rest.times:
            chosen.append(rest)
            last = key, rest.times[-1]
            left = None if left is None else left - len(rest.times)
    return chosen, None


def _behind(times: Sequence[int], moment: int, *, newest_first: bool) -> int:
    """How many of `times`, which are in order, are not behind a moment."""
    return bisect_right(times, -moment, key=lambda time: -time) if newest_first else bisect_right(times, moment)


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
