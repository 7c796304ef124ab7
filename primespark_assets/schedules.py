"""Schedules: what starts by the clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg

from primespark_assets.jobs import hourly_rollup_job, retention_job, sync_batches
from primespark_assets.partitions import FIRST_HOUR, hour_key
from resources import StoreResource

_HOUR = timedelta(hours=1)
_MAX_HOURS_PER_TICK = 500


def stretches(hours: Iterable[datetime]) -> list[tuple[datetime, datetime]]:
    """First and last hour of each unbroken row of hours, in order."""
    rows: list[tuple[datetime, datetime]] = []
    for hour in sorted(set(hours)):
        if rows and hour - rows[-1][1] <= _HOUR:
            rows[-1] = (rows[-1][0], hour)
        else:
            rows.append((hour, hour))
    return rows


@dg.schedule(
    job=hourly_rollup_job,
    cron_schedule="5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def hourly_rollup_schedule(
    context: dg.ScheduleEvaluationContext, store: StoreResource
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Close every past hour that has samples no rollup has seen, however late they came, or that is open still."""
    from primespark.store import rollups

    now = context.scheduled_execution_time.astimezone(UTC)
    with store.transaction() as connection:
        waiting = rollups.hours_to_close(connection, _MAX_HOURS_PER_TICK)
    # Older hours belong to the first partition, see the asset; what is not over yet waits for the next tick.
    hours = [max(hour.astimezone(UTC), FIRST_HOUR) for hour in waiting if hour + _HOUR <= now]
    if not hours:
        yield dg.SkipReason("no past hour has new samples")
    for first, last in stretches(hours):
        yield dg.RunRequest(
            run_key=f"{hour_key(now)}/{hour_key(first)}/{hour_key(last)}",
            tags={
                "dagster/asset_partition_range_start": hour_key(first),
                "dagster/asset_partition_range_end": hour_key(last),
            },
        )


sync_batches_schedule = dg.ScheduleDefinition(
    name="sync_batches_schedule",
    job=sync_batches,
    cron_schedule="*/5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)

retention_schedule = dg.ScheduleDefinition(
    name="retention_schedule",
    job=retention_job,
    cron_schedule="35 2 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
