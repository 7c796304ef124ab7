"""Synchronisation as the specification has it: records in the device's database, which its agent exchanges."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from edge_agent.bandwidth import Bandwidth
from edge_agent.bandwidth_optimizer import BandwidthOptimizer
from edge_agent.conflict_resolver import ConflictResolver
from edge_agent.database import Database
from edge_agent.device_clock import DeviceClock
from edge_agent.running_agent import ask_to_synchronise
from edge_agent.sync_records import DataType, SyncDirection, SyncOperation, SyncRecord, SyncStatus
from edge_agent.version_tracker import VersionTracker
from primespark.core.paths import home
from primespark.core.settings import Settings, load_settings

__all__ = [
    "BandwidthOptimizer", "ConflictResolver", "DataType", "SyncDirection", "SyncEngine", "SyncOperation", "SyncRecord",
    "SyncStatus", "VersionTracker", "get_sync_engine",
]  # fmt: skip


class SyncEngine:
    """Synchronises records of this process by way of the agent; what it is not there for waits on disk.

    Args:
        settings: Of the device.
        folder: Its state.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self.conflict_resolver = ConflictResolver(settings.sync.strategies)
        self.bandwidth_optimizer = BandwidthOptimizer(Bandwidth(settings.sync.bandwidth))

    async def initialize(self) -> None:
        """Open the device's database."""
        self._database = await asyncio.to_thread(Database, self._folder / "queue.db")
        clock = DeviceClock(self._settings.sync.clock_tolerance_s)
        self.version_tracker = VersionTracker(self._database, self._settings.edge.device_id, clock)

    async def sync_data(
        self, records: Sequence[SyncRecord], direction: SyncDirection, timeout_s: float = 30.0
    ) -> SyncOperation:
        """Take versions the device has (not `CLOUD_TO_EDGE`), and wait until each is answered for, or is here.

        Raises:
            PrimeSparkError: As `VersionTracker.update`; the records before the one at fault are taken.
        """
        if direction is not SyncDirection.CLOUD_TO_EDGE:
            for record in self.bandwidth_optimizer.prioritize(records):
                await self.version_tracker.update(record)
        is_answered = await ask_to_synchronise(self._settings.edge, self._folder)
        standing = await self.version_tracker.settled(records, timeout_s if is_answered else 0.0)
        return SyncOperation.of(direction, records, standing)

    async def shutdown(self) -> None:
        """Close the database; what is in it stays."""
        await asyncio.to_thread(self._database.close)


@cache
def get_sync_engine() -> SyncEngine:
    """The process's engine, of the device that the settings of its environment name."""
    settings = load_settings()
    return SyncEngine(settings, home() / "edge" / settings.edge.device_id)
