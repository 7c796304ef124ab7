"""Telemetry: the recorded hour goes first and once; the device's own measurements follow."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta

from edge_agent.database import Database
from edge_agent.measurements import begin_measuring, measure, recorded_hour
from edge_agent.queue import OfflineQueue
from edge_agent.telemetry import Telemetry
from primespark.core.settings import OfflineSettings, TelemetrySettings

END = datetime(2026, 11, 20, 10, 0, 30, tzinfo=UTC)


def test_the_recorded_hour_ends_now_and_repeats_what_was_recorded() -> None:
    hour = list(recorded_hour(END))
    assert [measurement.time for measurement in hour] == [
        END - timedelta(hours=1) + n * timedelta(seconds=10) for n in range(361)
    ]
    assert hour[0].values == hour[90].values == hour[360].values
    assert len({json.dumps(measurement.values) for measurement in hour}) == 90
    assert all(0 <= measurement.values["cpu_percent"] <= 100 for measurement in hour)


def test_a_measurement_has_the_fields_of_the_recording() -> None:
    begin_measuring()
    values = measure()
    assert values.keys() >= next(iter(recorded_hour(END))).values.keys()
    assert all(isinstance(value, float) for value in values.values())


async def test_the_recording_is_enqueued_once_before_what_is_measured(database: Database) -> None:
    queue = OfflineQueue(database, OfflineSettings())
    settings = TelemetrySettings(interval_s=0.01, replay_recording=True)
    telemetry = Telemetry(settings, queue, lambda: {"accelerator_power_watts": 2.5})
    await telemetry.replay()
    await telemetry.replay()
    assert (await queue.status()).pending == 361
    task = asyncio.create_task(telemetry.run())
    async with asyncio.timeout(10):
        while (await queue.status()).pending < 363:  # noqa: ASYNC110 (asked of the database)
            await asyncio.sleep(0.005)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    rows = await database.run(lambda c: c.execute("SELECT tail FROM operation ORDER BY id").fetchall())
    facts = [json.loads(b"{" + tail) for (tail,) in rows]
    assert [fact["value"].get("recorded", False) for fact in facts[:361]] == [True] * 361
    assert not any("recorded" in fact["value"] for fact in facts[361:])
    assert [fact["value"].get("accelerator_power_watts") for fact in facts] == [None] * 361 + [2.5] * len(facts[361:])
    assert {fact["boot_id"] for fact in facts[:361]} == {"recording"}
    times = [fact["time"] for fact in facts]
    assert times == sorted(times)
