"""Partitions in one place.

Hours without a device dimension: 8,760 a year, where Dagster stays quick up to 100,000.
"""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg

FIRST_HOUR = datetime(2026, 1, 1, tzinfo=UTC)
KEY_FORMAT = "%Y-%m-%d-%H:%M"

# The hour that has begun is a partition too: it may be rolled up again until it is over.
HOURS = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR, timezone="UTC", fmt=KEY_FORMAT, end_offset=1)


def hour_key(hour: datetime) -> str:
    """The partition of an hour."""
    return hour.astimezone(UTC).strftime(KEY_FORMAT)
