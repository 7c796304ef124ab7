"""Arrays as literals: the driver writes ARRAY[…] of expressions, for which PostgreSQL takes five times as long."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime


def numbers(values: Iterable[float]) -> str:
    """Of finite numbers, which come back exactly as they are; whole ones, too, for an array of integers."""
    return "{" + ",".join(map(str, values)) + "}"


def numbers_or_null(values: Iterable[float | None]) -> str:
    """`numbers`, where some are missing."""
    return "{" + ",".join("NULL" if value is None else str(value) for value in values) + "}"


def moments(times: Iterable[datetime]) -> str:
    """Of aware times, in UTC: PostgreSQL does not know every offset that RFC 3339 does."""
    written: list[str] = []
    before: datetime | None = None
    for time in times:
        # Values that were measured at once share one object.
        if time is before:
            written.append(written[-1])
        else:
            written.append(time.astimezone(UTC).isoformat())
            before = time
    return "{" + ",".join(written) + "}"
