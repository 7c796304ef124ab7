"""What the store holds, computed again with numpy from the stored rows: the demo believes no counter of its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from sqlalchemy import Connection, text

WINDOW_S = 60
_CPU = "cpu_percent"
_RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class WindowCheck:
    """Stored window results against a recomputation."""

    stored: int
    checked: int
    equal: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """Acknowledged facts against stored ones."""

    delivered: int
    duplicates: int
    lost: int


def check_delivery(connection: Connection, acknowledged: dict[tuple[str, str], int]) -> Delivery:
    """Compare what devices were told is stored with what is.

    Args:
        connection: The store.
        acknowledged: Highest acknowledged seq by (device, stream); seq counts from 1 without gaps.
    """
    delivered = duplicates = lost = 0
    for (device_id, stream), last in acknowledged.items():
        rows = connection.execute(
            text("SELECT seq FROM sync.fact WHERE device_id = :device AND stream = :stream AND seq <= :last"),
            {"device": device_id, "stream": stream, "last": last},
        )
        stored = [row.seq for row in rows]
        distinct = set(stored)
        delivered += len(stored)
        duplicates += len(stored) - len(distinct)
        lost += last - len(distinct & set(range(1, last + 1)))
    return Delivery(delivered, duplicates + _doubled_samples(connection), lost)


def check_windows(connection: Connection, rule_id: str) -> WindowCheck:
    """Recompute the mean of every stored window from the stored samples, and expect each window that is closed.

    A window is closed for certain when a later window of the same device is stored.
    """
    stored = {
        (row.group_key, row.window_start): (row.value, row.records)
        for row in connection.execute(
            text(
                "SELECT group_key, window_start, value, count AS records FROM metrics.window_result"
                " WHERE rule_id = :rule"
            ),
            {"rule": rule_id},
        )
    }
    expected = _means_by_window(connection)
    closed_until: dict[str, datetime] = {}
    for device, start in stored:
        closed_until[device] = max(closed_until.get(device, start), start)
    due = {key for key in expected if key[0] in closed_until and key[1] <= closed_until[key[0]]}
    equal = due == set(stored) and all(
        stored[key][1] == expected[key][1]
        and np.isclose(stored[key][0], expected[key][0], rtol=_RELATIVE_TOLERANCE, atol=0.0)
        for key in due & set(stored)
    )
    return WindowCheck(len(stored), len(due & set(stored)), bool(equal))


def check_rollups(connection: Connection, start: datetime, end: datetime) -> tuple[int, bool]:
    """Rows of the hourly rollup in `[start, end)`, and whether count, sum and extremes are those of the samples."""
    rows = connection.execute(
        text("SELECT series_id, bucket, n, sum, min, max FROM metrics.rollup_1h WHERE bucket >= :s AND bucket < :e"),
        {"s": start, "e": end},
    ).all()
    equal = bool(rows)
    for row in rows:
        values = np.array(
            connection.execute(
                text(
                    "SELECT value FROM metrics.sample WHERE series_id = :series AND time >= :bucket"
                    " AND time < :bucket + interval '1 hour' AND value IS NOT NULL"
                ),
                {"series": row.series_id, "bucket": row.bucket},
            )
            .scalars()
            .all()
        )
        # Samples may have arrived since the refresh; what it saw is a lower bound that must be met by the extremes.
        equal &= len(values) >= row.n > 0 and values.min() <= row.min <= row.max <= values.max()
    return len(rows), equal


def promoted_version(connection: Connection, labels: int) -> int:
    """The newest version promoted from a training on so many labels; 0 without one."""
    version = connection.execute(
        text(
            "SELECT (output->>'version')::int FROM control.pipeline_stage WHERE stage = 'deployment'"
            " AND (output->>'labels')::int = :labels AND (output->>'promoted')::bool ORDER BY finished_at DESC LIMIT 1"
        ),
        {"labels": labels},
    ).scalar()
    return int(version or 0)


def registered_at(connection: Connection, version: int) -> datetime:
    """When a version was registered."""
    moment: datetime = connection.execute(
        text(
            "SELECT (output->>'registered_at')::timestamptz FROM control.pipeline_stage WHERE stage = 'deployment'"
            " AND (output->>'version')::int = :version"
        ),
        {"version": version},
    ).scalar_one()
    return moment


def _means_by_window(connection: Connection) -> dict[tuple[str, datetime], tuple[float, int]]:
    rows = connection.execute(
        text(
            "SELECT s.device_id, date_bin(make_interval(secs => :size), m.time, 'epoch') AS start, m.value"
            " FROM metrics.sample m JOIN metrics.series s USING (series_id) WHERE s.metric = :metric"
        ),
        {"size": WINDOW_S, "metric": _CPU},
    )
    values: dict[tuple[str, datetime], list[float]] = {}
    for row in rows:
        values.setdefault((row.device_id, row.start), []).append(row.value)
    return {key: (float(np.mean(group)), len(group)) for key, group in values.items()}


def _doubled_samples(connection: Connection) -> int:
    """Samples of one metric beyond one per telemetry fact."""
    return int(
        connection.execute(
            text(
                "SELECT count(*) - (SELECT count(*) FROM sync.fact WHERE value ? 'cpu_percent')"
                " FROM metrics.sample JOIN metrics.series USING (series_id) WHERE metric = :metric"
            ),
            {"metric": _CPU},
        ).scalar_one()
    )
