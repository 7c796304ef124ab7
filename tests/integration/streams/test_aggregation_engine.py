"""The specification's usage example, as printed but for the module path, between a real broker and a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from primespark.errors import ConflictError, UnavailableError
from streams.aggregation_engine import (
    AggregationFunction,
    AggregationRule,
    WindowConfig,
    WindowType,
    get_aggregation_engine,
)
from tests.helpers import wait_until
from tests.integration.streams.stage import PARTITIONS, START_MS, Sent, publish
from tests.kafka.brokers import Broker, free_port


@pytest.fixture
def environment(
    embedded_broker: Broker, store_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path))
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", store_engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("PRIMESPARK_CLOUD__KAFKA__BOOTSTRAP_SERVERS", embedded_broker.bootstrap_servers)
    monkeypatch.setenv("PRIMESPARK_CLOUD__KAFKA__EMBEDDED", "true")
    monkeypatch.setenv("PRIMESPARK_CLOUD__STREAMS__PORT", str(free_port()))
    get_aggregation_engine.cache_clear()
    yield
    get_aggregation_engine.cache_clear()


@pytest.mark.usefixtures("environment")
async def test_the_usage_example(embedded_broker: Broker, store_engine: Engine) -> None:
    engine = get_aggregation_engine()
    await engine.initialize()

    # Add aggregation rule
    rule = AggregationRule(
        rule_id="cpu_avg_per_minute",
        source_topic="edge.telemetry",
        target_topic="cloud.aggregated",
        window_config=WindowConfig(
            window_type=WindowType.TUMBLING,
            size_seconds=60
        ),
        aggregation_function=AggregationFunction.AVG,
        group_by=["device_id"],  # type: ignore[arg-type]
        value_field="cpu_percent"
    )  # fmt: skip

    await engine.add_rule(rule)
    await engine.start()  # Begin processing

    with pytest.raises(ConflictError):
        await engine.add_rule(rule)
    rows = [
        (partition, {"device_id": f"edge-{partition}", "ts": START_MS + at_ms, "cpu_percent": percent})
        for at_ms, percent in ((0, 10.0), (59_999, 40.0), (60_000, 99.0), (70_000, 99.0))
        for partition in range(PARTITIONS)
    ]
    await publish(embedded_broker, "edge.telemetry", [Sent.row(row, partition) for partition, row in rows])
    await asyncio.to_thread(wait_until, lambda: len(_results(store_engine)) == PARTITIONS, 20)
    assert _results(store_engine) == [(f"edge-{partition}", 25.0, 2, "final") for partition in range(PARTITIONS)]
    await engine.stop()


@pytest.mark.usefixtures("environment")
async def test_without_a_broker_the_first_step_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMESPARK_CLOUD__KAFKA__BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port()}")
    with pytest.raises(UnavailableError, match="no Kafka at"):
        await get_aggregation_engine().initialize()


def _results(engine: Engine) -> list[tuple[object, ...]]:
    query = text("SELECT group_key, value, count, kind FROM metrics.window_result ORDER BY group_key")
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query)]
