"""A device's synchronisation without its process: the same parts, on a folder, against a gate."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from edge_agent.accelerator import Accelerator
from edge_agent.commands import CommandRunner, handlers_of
from edge_agent.credentials import CredentialFiles
from edge_agent.database import Database
from edge_agent.device_clock import DeviceClock
from edge_agent.documents import Documents
from edge_agent.exchange import Exchange
from edge_agent.gate_client import GateClient
from edge_agent.inference_service import InferenceService
from edge_agent.model_deployer import ModelDeployer
from edge_agent.outgoing import Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from edge_agent.slots.in_service import Slots
from edge_agent.slots.serving import serving
from primespark.core.settings import (
    EdgeSettings,
    InferenceSettings,
    NetworkSettings,
    OfflineSettings,
    SyncSettings,
)
from primespark.core.slot_settings import CanarySettings, ShadowSettings, SlotSettings
from primespark.sync.records import DataClass
from tests.integration.edge_agent.gate import TOKEN

FAST = SyncSettings(batch_records=20, batch_wait_s=0.01, pull_wait_s=1.0, retry_base_s=0.01, retry_max_s=0.05)
# Phases that are over as soon as they began, for tests of what stands around them.
QUICK = SlotSettings(shadow=ShadowSettings(max_s=0), canary=CanarySettings(max_s=0))


@dataclass(slots=True)
class Device:
    """The parts of a running device."""

    folder: Path
    database: Database
    queue: OfflineQueue
    documents: Documents
    outgoing: Outgoing
    engine: Exchange
    slots: Slots
    gate: GateClient
    files: CredentialFiles

    async def enqueue(self, *numbers: int, stream: str = "telemetry") -> list[int]:
        """Facts with values `{"n": number}`."""
        return await self.queue.enqueue(
            [NewFact(DataClass.TELEMETRY, {"n": number}, stream=stream) for number in numbers]
        )

    async def drained(self) -> None:
        """Wait until nothing waits."""
        await until(lambda: self.outgoing.waiting == 0)


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Return as soon as `condition()` is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is watched belongs to another process or thread)
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running_device(
    folder: Path,
    url: str,
    *,
    settings: SyncSettings = FAST,
    limits: OfflineSettings | None = None,
    token: str = TOKEN,
    models: SlotSettings = QUICK,
    inference: InferenceSettings | None = None,
    clock: DeviceClock | None = None,
    may_send_low: Callable[[], bool] = lambda: True,
) -> AsyncIterator[Device]:
    """A device at work; ends as by a signal."""
    device_id = "edge-1"
    database = Database(folder / "queue.db")
    files = CredentialFiles(folder, EdgeSettings(device_id=device_id, enrolment_token=SecretStr(token)))
    queue = OfflineQueue(database, limits or OfflineSettings(), clock=clock)
    documents = Documents(database, device_id, clock=clock)
    outgoing = Outgoing(database, device_id, settings.batch_records, 500_000, clock=clock, may_send_low=may_send_low)
    gate = GateClient(url, NetworkSettings(request_timeout_s=2, connect_timeout_s=1), clock)
    slots = Slots()
    edge = EdgeSettings(models=models, inference=inference or InferenceSettings())
    accelerator = Accelerator(edge.inference)
    service = InferenceService(slots, edge.inference)
    serve_variants = serving(accelerator, edge.inference.max_image_pixels, lambda: service.depth, service.workers)
    deployer = ModelDeployer(
        folder / "models", slots, documents, files, gate, edge, lambda: True,
        accelerator.runtime, serve_variants,
    )  # fmt: skip
    commands_came = asyncio.Event()

    def on_documents() -> None:
        deployer.notify()
        commands_came.set()

    engine = Exchange(gate, files, outgoing, documents, settings, device_id=device_id, on_documents=on_documents)
    commands = CommandRunner(database, queue, handlers_of(engine.synchronise_now, None), {"sync_now"}, commands_came)
    loop = asyncio.get_running_loop()

    def notify(_: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(engine.notify)

    database.watch(notify)
    tasks = [
        asyncio.create_task(engine.run()),
        asyncio.create_task(deployer.run()),
        asyncio.create_task(commands.run()),
    ]
    try:
        yield Device(folder, database, queue, documents, outgoing, engine, slots, gate, files)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await gate.aclose()
        await asyncio.to_thread(service.close)
        await asyncio.to_thread(slots.close)
        await asyncio.to_thread(accelerator.close)
        database.close()
