"""The worker's metrics by rule, as a scraper reads them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from primespark.core.clock import wall_clock_ms
from streams.health import StreamsCollector
from tests.unit.streams.test_worker import HERE, Log, message, new_worker


async def test_the_watermark_lag_is_the_time_since_the_newest_record_and_there_from_the_first_on() -> None:
    worker = new_worker(Log())
    registry = CollectorRegistry()
    registry.register(StreamsCollector(worker))
    rule = {"rule_id": "r"}
    assert registry.get_sample_value("primespark_streams_watermark_lag_seconds", rule) is None
    assert registry.get_sample_value("primespark_streams_windows_open", rule) == 0
    await worker.assigned([HERE])
    await worker.take(message(0, wall_clock_ms() - 3_600_000))
    lag_s = registry.get_sample_value("primespark_streams_watermark_lag_seconds", rule)
    assert lag_s is not None
    assert 3600 <= lag_s < 3660
    assert registry.get_sample_value("primespark_streams_windows_open", rule) == 1


async def test_what_zombies_wrote_is_told_as_far_as_it_was_read() -> None:
    log = Log()
    worker = new_worker(log)
    registry = CollectorRegistry()
    registry.register(StreamsCollector(worker))
    log.refused = 3
    await worker.assigned([HERE])
    await worker.loaded()
    assert registry.get_sample_value("primespark_streams_snapshots_refused") == 3
