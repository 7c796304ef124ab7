"""The parts of a device put together, and their life from start to signal."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from edge_agent import service_manager
from edge_agent.accelerator import Accelerator
from edge_agent.api import Device
from edge_agent.application import build_app
from edge_agent.bandwidth import Bandwidth
from edge_agent.capture import Capture, Witness
from edge_agent.capture.broadcast import Broadcast
from edge_agent.capture.earwitness import Earwitness
from edge_agent.capture.picture_store import PictureKind, PictureStore
from edge_agent.capture_api import CaptureParts
from edge_agent.commands import CommandRunner, handlers_of
from edge_agent.connectivity import ConnectivityMonitor, LinkHealth
from edge_agent.credentials import CredentialFiles
from edge_agent.database import Database
from edge_agent.database_file import LOG_BYTES
from edge_agent.device_clock import DeviceClock
from edge_agent.documents import Documents
from edge_agent.exchange import Exchange
from edge_agent.hardware import Hardware
from edge_agent.inference_service import InferenceService
from edge_agent.labelled_folder import LabelledFolder
from edge_agent.language_service import LanguageService
from edge_agent.model_deployer import ModelDeployer
from edge_agent.outgoing import Outgoing
from edge_agent.queue import OfflineQueue
from edge_agent.slots.in_service import Slots
from edge_agent.slots.serving import serving
from edge_agent.sync_report import SyncReport
from edge_agent.telemetry import Telemetry
from edge_agent.uploads.queue import UploadQueue
from edge_agent.uploads.uploader import Uploader
from primespark.core.logging import get_logger
from primespark.core.settings import Settings
from primespark.core.tickets import Tickets
from primespark.core.web import serve
from primespark.core.web.watching import Watchers
from primespark.errors import PrimeSparkError
from primespark.inference.models import DETECTOR, ServedModel

# A gate takes 16 MiB; a batch of this size is sent in seconds over a slow link.
_BATCH_BYTES = 4 * 1024 * 1024

log = get_logger(__name__)


async def serve_device(settings: Settings, folder: Path, detector: Future[ServedModel | None]) -> None:
    """Run a device until a signal.

    Args:
        settings: Of the device.
        folder: Its state.
        detector: The bundled detector, loading; None comes of it where nothing is captured.
    """
    database = Database(folder / "queue.db", LOG_BYTES)
    try:
        agent = await _build(settings, folder, database, detector)
        await agent.run()
    finally:
        database.close()


@dataclass(frozen=True, slots=True)
class _Agent:
    settings: Settings
    database: Database
    app: FastAPI
    service: InferenceService
    language: LanguageService
    telemetry: Telemetry | None
    hardware: Hardware
    sight: CaptureParts
    labelled: LabelledFolder | None
    deployer: ModelDeployer
    exchange: Exchange | None
    gate: Any
    detector: Future[ServedModel | None]
    accelerator: Accelerator
    report: SyncReport
    monitor: ConnectivityMonitor | None
    changes: Tickets
    commands: CommandRunner | None
    uploader: Uploader | None

    async def run(self) -> None:
        """Serve, look, measure and synchronise until a signal; then stop them all."""
        edge = self.settings.edge
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(loop, name=name) for name, loop in self._loops().items()]
                await serve(self.app, edge.host, edge.port, on_stop=self._end_waits)
                service_manager.tell("STOPPING=1")
                for task in tasks:
                    task.cancel()
        finally:
            if self.gate is not None:
                await self.gate.aclose()
            await asyncio.to_thread(self.language.close)
            await asyncio.to_thread(self.service.close)
            await asyncio.to_thread(self.service.slots.close)
            await asyncio.to_thread(self.accelerator.close)
            await asyncio.to_thread(self.app.state.preprocessing.close)

    def _end_waits(self) -> None:
        """Let go who would wait for longer than a stop may take."""
        self.sight.broadcast.close()
        self.changes.close()
        self.language.stop()

    def _loops(self) -> dict[str, Coroutine[Any, Any, Any]]:
        loops: dict[str, Coroutine[Any, Any, Any]] = {
            "detector": self._begin_looking(),
            "hardware": self.hardware.run(),
            "models": self.deployer.run(),
            "pictures": self.sight.witness.expire_forever(),
            "watchdog": service_manager.keep_alive(self.database.answers),
        }
        if self.telemetry is not None:
            loops["telemetry"] = self.telemetry.run()
        if self.labelled is not None:
            loops["labels"] = self.labelled.run()
        if self.exchange is not None:
            loops["sync"] = self.exchange.run()
            loops["sync-report"] = self.report.run()
        if self.uploader is not None:
            loops["uploads"] = self.uploader.run()
        if self.monitor is not None:
            loops["link"] = self.monitor.run()
        if self.commands is not None:
            loops["commands"] = self.commands.run()
        return loops

    async def _begin_looking(self) -> None:
        """Put the detector in service, then look and listen for ever; without a detector listen only."""
        try:
            model = await asyncio.wrap_future(self.detector)
        except PrimeSparkError as error:
            log.error("detector_not_loaded", code=error.code, cause=error.message, remedy=error.remedy)
            model = None
        detector = None
        if model is not None:
            detector = self.accelerator.detector(model)
            # First: without a name it answers for its type, the standby by its own name.
            self.service.slots.put(detector)
            if detector.name != model.name:
                self.service.slots.put(model)
        if self.sight.capture is not None:
            await self.sight.capture.run(detector)


async def _build(settings: Settings, folder: Path, database: Database, detector: Future[ServedModel | None]) -> _Agent:
    edge = settings.edge
    files = CredentialFiles(folder, edge)
    clock = DeviceClock(settings.sync.clock_tolerance_s)
    queue = OfflineQueue(database, edge.offline, clock=clock)
    documents = Documents(database, edge.device_id, settings.sync.fleet_writable, clock=clock)
    # Cameras need it from the first frame on; without any it is loaded as the others are.
    is_loaded = settings.looks or edge.inference.accelerator.detector is not None
    loaded_at_start = frozenset({DETECTOR} if is_loaded else ())
    accelerator = Accelerator(edge.inference)
    service = InferenceService(Slots(), edge.inference, loaded_at_start, accelerator.is_wanted)
    language = LanguageService(edge.language)
    hardware = Hardware(accelerator.health, edge.inference.accelerator.system_root)
    telemetry = Telemetry(edge.telemetry, queue, hardware.telemetry) if settings.features.telemetry else None
    if telemetry is not None and edge.telemetry.replay_recording and files.current is None:
        await telemetry.replay()
    bandwidth = Bandwidth(settings.sync.bandwidth)
    gate = _gate(settings, clock, bandwidth)
    serve_variants = serving(accelerator, edge.inference.max_image_pixels, lambda: service.depth, service.workers)
    deployer = ModelDeployer(
        folder / "models", service.slots, documents, files, gate, edge, service.is_idle,
        accelerator.runtime, serve_variants,
    )  # fmt: skip
    outgoing = Outgoing(
        database, edge.device_id, settings.sync.batch_records, bandwidth.batch_bytes(_batch_bytes(files)),
        settings.sync.backlog_records_per_s, clock=clock, may_send_low=bandwidth.may_send_low,
    )  # fmt: skip
    uploads = UploadQueue(database, queue, folder / "uploads", edge.offline.max_blob_bytes)
    await uploads.tidy()
    exchange = monitor = None
    uploader: Uploader | None = None
    commands_came = asyncio.Event()
    if gate is not None:

        def on_documents() -> None:
            deployer.notify()
            commands_came.set()

        def on_online() -> None:
            if uploader is not None:
                uploader.wake()

        exchange = Exchange(
            gate, files, outgoing, documents, settings.sync,
            device_id=edge.device_id, on_documents=on_documents, on_online=on_online,
        )  # fmt: skip
        uploader = Uploader(uploads, gate, files, settings.sync, exchange.synchronise_now)
        database.watch_from_loop(uploader.notify)
        monitor = ConnectivityMonitor(gate.url, settings.network.probe, gate.link, exchange.link_returned)
        database.watch_from_loop(exchange.notify)
    sight = _capture_parts(settings, folder, service, queue)
    labelled = LabelledFolder(edge.capture.labelled_folder, queue) if edge.capture.labelled_folder else None
    device = Device(edge.device_id, service, language, queue, documents, exchange, hardware, clock, monitor)
    app = build_app(settings, folder, database, device, detector, sight)
    app.state.uploads = uploads
    changes = Tickets()
    database.watch_from_loop(changes.wake_all)
    app.state.watchers = Watchers(changes)
    commands = None
    if exchange is not None:
        handlers = handlers_of(exchange.synchronise_now, app.state.cache)
        commands = CommandRunner(database, queue, handlers, edge.commands, commands_came)
    return _Agent(
        settings, database, app, service, language, telemetry, hardware, sight, labelled, deployer, exchange, gate,
        detector, accelerator, SyncReport(queue, documents), monitor, changes, commands, uploader,
    )  # fmt: skip


def _capture_parts(settings: Settings, folder: Path, service: InferenceService, queue: OfflineQueue) -> CaptureParts:
    looking, reserve = settings.edge.capture, settings.edge.offline.minimum_free_disk_bytes
    pictures = {
        PictureKind.EVENT: PictureStore(folder / "snapshots", PictureKind.EVENT, looking.snapshots, reserve),
        PictureKind.EXAMPLE: PictureStore(folder / "examples", PictureKind.EXAMPLE, looking.hard_examples, reserve),
    }
    broadcast = Broadcast()
    minimum_score = settings.edge.inference.minimum_score
    witness = Witness(looking, minimum_score, queue, pictures, broadcast)
    earwitness = Earwitness(looking, queue, pictures[PictureKind.EVENT], broadcast)
    capture = Capture(looking, service, witness, earwitness) if settings.features.capture else None
    return CaptureParts(capture, witness, pictures, broadcast)


def _gate(settings: Settings, clock: DeviceClock, bandwidth: Bandwidth) -> Any:
    if settings.network.cloud_url is None:
        log.info("alone", why="network.cloud_url is not set")
        return None
    from edge_agent.gate_client import GateClient

    probe = settings.network.probe
    link = LinkHealth(probe.failures, probe.successes)
    return GateClient(settings.network.cloud_url, settings.network, clock, link, bandwidth)


def _batch_bytes(files: CredentialFiles) -> int:
    limits = files.current.limits if files.current else None
    return min(_BATCH_BYTES, limits.max_body_bytes) if limits else _BATCH_BYTES
