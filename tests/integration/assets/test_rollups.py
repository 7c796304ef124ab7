"""The hourly rollup as an asset, and the schedule that keeps it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import numpy as np
import pytest
from sqlalchemy import Engine, text

from primespark.store import samples
from primespark_assets.analytics.assets import hourly_rollup, raw_samples
from primespark_assets.partitions import FIRST_HOUR, hour_key
from primespark_assets.schedules import hourly_rollup_schedule

Resources = dict[str, Any]
HOUR = timedelta(hours=1)
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
GENERATOR = np.random.default_rng(7)


def insert(engine: Engine, moments: list[datetime]) -> list[float]:
    values = [float(value) for value in GENERATOR.normal(50, 10, len(moments))]
    rows = [
        samples.Sample(
            metric="cpu_percent", device_id="edge-1", source="test", labels={}, time=at, seq=seq, value=value
        )
        for seq, (at, value) in enumerate(zip(moments, values, strict=True), start=1)
    ]
    with engine.begin() as connection:
        samples.insert(connection, rows)
    return values


def rollups(engine: Engine) -> dict[datetime, Any]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM metrics.rollup_1h ORDER BY bucket"))
        return {row.bucket.astimezone(UTC): row for row in rows}


def materialize_range(instance: dg.DagsterInstance, resources: Resources, first: str, last: str) -> Any:
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    return dg.materialize([hourly_rollup], instance=instance, resources=resources, tags=tags)


def test_a_range_is_one_run_and_equals_numpy(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine
) -> None:
    moments = [START + timedelta(seconds=30 * index) for index in range(360)]
    values = np.array(insert(store_engine, moments))
    result = materialize_range(instance, resources, hour_key(START), hour_key(START + 2 * HOUR))
    assert result.success
    assert instance.get_materialized_partitions(hourly_rollup.key) == {
        hour_key(START + number * HOUR) for number in range(3)
    }
    for number, (bucket, row) in enumerate(rollups(store_engine).items()):
        part = values[120 * number : 120 * (number + 1)]
        assert bucket == START + number * HOUR
        assert (row.n, row.first, row.last) == (120, part[0], part[-1])
        np.testing.assert_allclose(
            [row.sum, row.min, row.max, row.m2], [part.sum(), part.min(), part.max(), part.var() * 120], rtol=1e-9
        )


def test_it_may_run_again_and_heals_with_late_samples(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine
) -> None:
    insert(store_engine, [START])
    for _ in range(2):
        assert materialize_range(instance, resources, hour_key(START), hour_key(START)).success
        assert rollups(store_engine)[START].n == 1
    insert(store_engine, [START + timedelta(minutes=5)])
    assert materialize_range(instance, resources, hour_key(START), hour_key(START)).success
    assert rollups(store_engine)[START].n == 2


def evaluate(instance: dg.DagsterInstance, resources: Resources, now: datetime) -> Any:
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=now, resources=resources) as context:
        return hourly_rollup_schedule.evaluate_tick(context)


def test_the_schedule_asks_for_what_is_new_however_old(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine
) -> None:
    now = START + 10 * HOUR + timedelta(minutes=5)
    assert evaluate(instance, resources, now).skip_message == "no past hour has new samples"
    never_set = datetime(1970, 1, 1, tzinfo=UTC)
    insert(store_engine, [never_set, START, START + HOUR, START + 5 * HOUR, START + 10 * HOUR])
    requests = evaluate(instance, resources, now).run_requests
    asked = [
        (request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"])
        for request in requests
    ]
    assert asked == [
        (hour_key(FIRST_HOUR), hour_key(FIRST_HOUR)),
        (hour_key(START), hour_key(START + HOUR)),
        (hour_key(START + 5 * HOUR), hour_key(START + 5 * HOUR)),
    ]
    assert len({request.run_key for request in requests}) == 3
    for first, last in asked:
        assert materialize_range(instance, resources, first, last).success
    assert sorted(rollups(store_engine)) == [never_set, START, START + HOUR, START + 5 * HOUR]
    assert evaluate(instance, resources, now).skip_message == "no past hour has new samples"


def test_samples_older_than_allowed_are_rolled_up_and_dropped(
    instance: dg.DagsterInstance, resources: Resources, store_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIMESPARK_CLOUD__RETENTION__STANDARD__RAW_DAYS", "30")
    recent = datetime.now(UTC) - timedelta(days=1)
    insert(store_engine, [START, START + timedelta(seconds=1), recent])
    for dropped in (["sample_standard_20260226"], []):
        result = dg.materialize([raw_samples], instance=instance, resources=resources)
        (told,) = result.asset_materializations_for_node("analytics__raw_samples")
        assert told.metadata["standard_dropped"].value == dropped
        assert told.metadata["packed"].value == []
    assert [row.n for row in rollups(store_engine).values()] == [2]
    with store_engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM metrics.sample")).scalar_one() == 1
