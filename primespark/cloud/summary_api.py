"""`/api/v1/analytics/summary`: what there is of each metric and device."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime

from primespark.cloud.state import Cloud, cloud_of
from primespark.core.clock import to_rfc3339, utc_now
from primespark.core.web import Role, require
from primespark.store.analytics.pages import MAX_CURSOR_CHARACTERS
from primespark.store.analytics.summary import MetricSummary, summarise
from primespark.sync.records import Name

router = APIRouter(prefix="/api/v1/analytics")
_DAY = timedelta(days=1)


@router.get("/summary", dependencies=[Depends(require(Role.VIEWER))])
async def summarise_metrics(
    cloud: Annotated[Cloud, Depends(cloud_of)],
    metric_name: Annotated[Name | None, Query()] = None,
    device_id: Annotated[str | None, Query(max_length=63)] = None,
    start: Annotated[AwareDatetime | None, Query()] = None,
    end: Annotated[AwareDatetime | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=MAX_CURSOR_CHARACTERS)] = None,
) -> dict[str, Any]:
    """Each metric and device with samples in `[start, end)`, the last 24 hours when nothing is said, in pages."""
    until = end or utc_now()
    since = start or until - _DAY
    summary = await cloud.transact(
        lambda connection: summarise(
            connection, since, until, metric=metric_name, device_id=device_id, limit=limit, cursor=cursor
        )
    )
    return {
        "time_range": [to_rfc3339(since), to_rfc3339(until)],
        "times_by_hour_before": summary.by_hours_before and to_rfc3339(summary.by_hours_before),
        "items": [_told(one) for one in summary.items],
        "next_cursor": summary.next_cursor,
    }


def _told(one: MetricSummary) -> dict[str, Any]:
    return {
        "metric_name": one.metric, "device_id": one.device_id, "n": one.count, "first_time": to_rfc3339(one.first),
        "last_time": to_rfc3339(one.last), "last_value": one.last_value, "min": one.minimum, "max": one.maximum,
        "avg": one.average, "p95": one.percentile_95, "rate_per_s": one.rate_per_s,
        "gaps": {
            "n": one.gaps.count, "longest_s": one.gaps.longest.total_seconds(),
            "total_s": one.gaps.total.total_seconds(),
        },
    }  # fmt: skip
