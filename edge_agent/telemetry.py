"""Telemetry: the device measured at its interval, after the recorded hour where settings ask for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

from edge_agent.measurements import begin_measuring, measure, recorded_hour
from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.clock import utc_now
from primespark.core.logging import get_logger
from primespark.core.settings import TelemetrySettings
from primespark.errors import PrimeSparkError
from primespark.sync.records import DataClass

_RECORDED_BOOT = "recording"

log = get_logger(__name__)


class Telemetry:
    """The device's own measurements.

    Args:
        settings: Interval, and whether a recording goes first.
        queue: Takes them.
        further: Measured elsewhere, sent along: numbers by name.
    """

    def __init__(
        self, settings: TelemetrySettings, queue: OfflineQueue, further: Callable[[], dict[str, float]] = dict
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._further = further

    async def replay(self) -> None:
        """Enqueue the recorded hour once in the life of the database, all of it or nothing.

        For a first start, before anything newer is measured: windows of the cloud would be closed to it later.
        """
        facts = [
            NewFact(
                DataClass.TELEMETRY, {**measurement.values, "recorded": True}, measurement.time,
                boot_id=_RECORDED_BOOT, monotonic_ns=0,
            )
            for measurement in recorded_hour(utc_now())
        ]  # fmt: skip
        try:
            seqs = await self._queue.enqueue(facts, once=[f"recording:{index}" for index in range(len(facts))])
        except PrimeSparkError as error:
            log.warning("recording_not_enqueued", code=error.code, cause=error.message)
        else:
            log.info("recording_enqueued", measurements=sum(seq > 0 for seq in seqs))

    async def run(self) -> NoReturn:
        """Measure until cancelled."""
        begin_measuring()
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self._settings.interval_s, loop.time())
            await asyncio.sleep(due - loop.time())
            try:
                values = await asyncio.to_thread(measure)
                await self._queue.enqueue([NewFact(DataClass.TELEMETRY, {**values, **self._further()})])
            except (PrimeSparkError, OSError) as error:
                log.warning("telemetry_failed", cause=str(error))
