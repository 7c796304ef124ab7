"""The offline queue as the specification has it: operations kept on disk until the device's agent has sent them."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

from edge_agent.connectivity import ConnectivityMonitor, LinkHealth
from edge_agent.database import Database
from edge_agent.device_clock import DeviceClock
from edge_agent.operations import OperationType, operation_fact, with_operations
from edge_agent.priority import Priority
from edge_agent.queue import OfflineQueue as OperationQueue
from edge_agent.queue_status import read_totals
from primespark.core.paths import home
from primespark.core.settings import Settings, load_settings

__all__ = [
    "ConnectivityMonitor", "OfflineManager", "OperationQueue", "OperationType", "Priority", "get_offline_manager",
]  # fmt: skip


class OfflineManager:
    """Operations of this process in the device's queue; the agent sends them, now or when it next runs.

    Args:
        settings: Of the device.
        folder: Its state.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._link = LinkHealth(settings.network.probe.failures, settings.network.probe.successes)
        self._watching: asyncio.Task[Any] | None = None

    async def initialize(self) -> None:
        """Open the queue, and begin to ask whether the cloud is there."""
        offline, network = self._settings.edge.offline, self._settings.network
        self._database = await asyncio.to_thread(Database, self._folder / "queue.db")
        clock = DeviceClock(self._settings.sync.clock_tolerance_s)
        self._queue = OperationQueue(self._database, with_operations(offline), clock=clock)
        if network.cloud_url is not None:
            monitor = ConnectivityMonitor(network.cloud_url, network.probe, self._link, lambda: None)
            await monitor.probe()
            self._watching = asyncio.create_task(monitor.run(), name="link")

    async def queue_operation(
        self, operation_type: OperationType, payload: dict[str, Any], priority: Priority = Priority.NORMAL
    ) -> str:
        """Keep an operation; its id, once it is on disk. Bytes and images travel as base64.

        Raises:
            PrimeSparkError: As `OperationQueue.enqueue`.
        """
        fact = operation_fact(operation_type, payload, priority)
        (seq,) = await self._queue.enqueue([fact])
        return f"{fact.stream}/{seq}"

    def is_online(self) -> bool:
        """Whether the cloud answered last."""
        return self._link.is_up

    def get_status(self) -> dict[str, Any]:
        """`queue_size` and `queue_bytes`, the agent's own facts too, and `online`."""
        totals = self._database.submit(read_totals).result()
        return {"online": self.is_online(), "queue_size": totals[0], "queue_bytes": totals[1]}

    async def shutdown(self) -> None:
        """Close the queue; what is in it stays."""
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.to_thread(self._database.close)


@cache
def get_offline_manager() -> OfflineManager:
    """The process's manager, of the device that the settings of its environment name."""
    settings = load_settings()
    return OfflineManager(settings, home() / "edge" / settings.edge.device_id)
