"""The specification's usage example, as printed but for the module path and the import of the two enumerations."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from primespark.cloud.kva_analytics import (
    AggregationType,
    QueryConfig,
    TimeGranularity,
    TimescaleDBManager,
    get_analytics_engine,
)
from primespark.errors import ConfigurationError, InvalidInputError
from primespark.store.edition import Edition
from tests.valkey import Valkey, running_valkey


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture
def url(store_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    url = store_engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", url)
    get_analytics_engine.cache_clear()
    yield url
    get_analytics_engine.cache_clear()


async def test_the_usage_example(url: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMESPARK_CLOUD__CACHE__URL", valkey.url)
    start_time, end_time = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1)

    engine = get_analytics_engine()
    await engine.initialize()

    # Insert metrics
    await engine.insert_metric(
        metric_name="cpu_usage",
        value=75.5,
        labels={"host": "edge-01"},
        device_id="pi5-001"
    )  # fmt: skip

    # Query with aggregation
    result = await engine.query(QueryConfig(
        metric_name="cpu_usage",
        aggregation=AggregationType.AVG,
        time_range=(start_time, end_time),
        granularity=TimeGranularity.MINUTE
    ))  # fmt: skip

    assert [point["value"] for point in result] == [75.5]
    grouped = await engine.query(
        QueryConfig(
            "cpu_usage", AggregationType.PERCENTILE, (start_time, end_time), TimeGranularity.DAY, ["device_id"],
            percentile=95,
        )
    )  # fmt: skip
    assert [(point["device_id"], point["value"]) for point in grouped] == [("pi5-001", 75.5)]
    await engine.shutdown()


async def test_a_time_without_a_zone_is_local_and_warned_of(url: str) -> None:
    engine = get_analytics_engine()
    await engine.initialize()
    moment = datetime(2026, 3, 1, 12)  # noqa: DTZ001
    with pytest.warns(UserWarning, match="local time"):
        assert await engine.insert_metric("m", 1.0, timestamp=moment)
    assert not await engine.insert_metric("m", 1.0, timestamp=moment.astimezone(UTC))
    with pytest.raises(InvalidInputError):
        await engine.insert_metric("m", float("nan"))
    await engine.shutdown()


async def test_without_a_store_the_next_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIMESPARK_CLOUD__STORE__URL", raising=False)
    get_analytics_engine.cache_clear()
    with pytest.raises(ConfigurationError, match=r"cloud\.store\.url"):
        await get_analytics_engine().initialize()
    get_analytics_engine.cache_clear()


def test_a_plain_postgresql_is_told_from_timescaledb(url: str, timescaledb_edition: Edition) -> None:
    manager = TimescaleDBManager(url)
    manager.initialize()
    assert manager.edition() == timescaledb_edition
    manager.close()
