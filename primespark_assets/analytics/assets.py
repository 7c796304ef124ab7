"""Rollups: assets over the samples of the store."""

# Without postponed annotations: Dagster looks at the type of `context` itself.

import warnings
from datetime import UTC, datetime, timedelta

import dagster as dg

from primespark_assets.partitions import FIRST_HOUR, HOURS
from resources import StoreResource

# `backfill_policy` is beta; what is used of it is covered by a test.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy`", category=dg.BetaWarning)

# By then all have sent what they measured, but for those without a link.
_LATE = timedelta(days=1)
_BEFORE_ALL = datetime(1970, 1, 1, tzinfo=UTC)


@dg.asset(
    key_prefix="analytics",
    group_name="analytics",
    deps=[["edge", "telemetry"], ["edge", "metrics"]],
    kinds={"postgres"},
    partitions_def=HOURS,
    # One run for any range: what an hour costs is a statement, what a run costs is two seconds of processor time.
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
)
def hourly_rollup(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
    """Count, sum, spread, extremes, first and last of each series and hour, computed again where samples are new."""
    from primespark.store import rollups

    window = context.partition_time_window
    # Samples of a clock that was never set are older than the first partition, and nobody else would take them.
    start = _BEFORE_ALL if window.start <= FIRST_HOUR else window.start
    with store.transaction() as connection:
        rows = rollups.refresh_hours(connection, start, window.end)
    context.log.info("renewed %d rows of [%s, %s)", rows, window.start, window.end)
    return dg.MaterializeResult(
        metadata={
            "renewed_rows": rows,
            "window_start": dg.MetadataValue.timestamp(window.start),
            "window_end": dg.MetadataValue.timestamp(window.end),
        }
    )


@dg.asset(key_prefix="analytics", group_name="analytics", deps=[hourly_rollup], kinds={"postgres"}, code_version="1")
def raw_samples(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
    """Samples that are kept themselves: what is older than its class allows is rolled up, then dropped.

    Parts whose time is over are packed.
    """
    from primespark.core.clock import utc_now
    from primespark.core.settings import load_settings
    from primespark.store import packing, retention, rollups
    from primespark.store.schema import RETENTION_CLASSES

    metadata: dict[str, dg.MetadataValue] = {}
    for name in RETENTION_CLASSES:
        days = getattr(load_settings().cloud.retention, name).raw_days
        if days is None:
            continue
        with store.transaction() as connection:
            kept_from = retention.begin_later(connection, name, utc_now() - timedelta(days=days))
        with store.transaction() as connection:
            rollups.refresh_hours(connection, _BEFORE_ALL, kept_from)
        with store.transaction() as connection:
            dropped = retention.drop_parts(connection, name)
        context.log.info("class %s begins at %s; dropped %s", name, kept_from, ", ".join(dropped) or "nothing")
        metadata[f"{name}_from"] = dg.MetadataValue.timestamp(kept_from)
        metadata[f"{name}_dropped"] = dg.MetadataValue.json(dropped)
    with store.autocommit() as connection:
        packed = packing.pack(connection, utc_now() - _LATE)
    context.log.info("packed %s", ", ".join(packed) or "nothing")
    metadata["packed"] = dg.MetadataValue.json(packed)
    return dg.MaterializeResult(metadata=metadata)
