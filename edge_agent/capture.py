"""Looking: each source at its pace, the newest frame of each wins, every result goes into the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import NoReturn

from prometheus_client import Counter

from edge_agent.inference_service import Inference, InferenceService
from edge_agent.queue import NewFact, OfflineQueue
from edge_agent.sources import Frame, frames
from primespark.core.clock import utc_now
from primespark.core.logging import get_logger
from primespark.core.settings import CaptureSettings
from primespark.errors import OverloadedError, PrimeSparkError
from primespark.inference.models import ServedModel
from primespark.sync.records import DataClass

# A source that has nothing, or fails, is looked at again after this time.
_RETRY_S = 2.0
# Faults of so many frames are told apart; those of more are not logged.
_MAX_TOLD = 1000

FRAMES = Counter("primespark_capture_frames_total", "Frames by what became of them.", ["outcome"])
for _outcome in ("inferred", "superseded", "failed", "queue_full"):
    FRAMES.labels(_outcome)

log = get_logger(__name__)


class Capture:
    """All sources of a device.

    Args:
        settings: Sources and pace.
        service: Infers.
        queue: Takes the results.
    """

    def __init__(self, settings: CaptureSettings, service: InferenceService, queue: OfflineQueue) -> None:
        self._settings = settings
        self._service = service
        self._queue = queue
        self._newest: dict[str, Frame] = {}
        self._arrived = asyncio.Event()
        self._told: dict[str, str] = {}
        self.faults: dict[str, str] = {}

    async def run(self, detector: ServedModel) -> NoReturn:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:
            for source in self._settings.sources:
                group.create_task(self._watch(source), name=f"source {source}")
            group.create_task(self._infer_forever(detector), name="frames")
        raise AssertionError("the loops end by cancellation only")

    async def _watch(self, source: str) -> None:
        """Frames of one source at its pace, over and over where settings say so."""
        interval_s = 1.0 / self._settings.frames_per_second
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            iterator = frames(source, self._service.settings.max_image_pixels)
            seen = 0
            while (frame := await self._next(source, iterator)) is not None:
                await asyncio.sleep(due - loop.time())
                # A late frame does not make the following ones come faster than their pace.
                due = max(due, loop.time() - interval_s) + interval_s
                self._offer(source, frame)
                seen += 1
            if seen and not self._settings.loop and source not in self.faults:
                return
            if not seen:
                await asyncio.sleep(_RETRY_S)
                due = loop.time()

    async def _next(self, source: str, iterator: Iterator[Frame]) -> Frame | None:
        try:
            frame = await asyncio.to_thread(next, iterator, None)
        except (PrimeSparkError, OSError) as error:
            if self.faults.get(source) != str(error):
                log.error("source_failed", source=source, cause=str(error), remedy=getattr(error, "remedy", ""))
            self.faults[source] = str(error)
            return None
        if frame is not None:
            self.faults.pop(source, None)
        return frame

    def _offer(self, source: str, frame: Frame) -> None:
        if source in self._newest:
            FRAMES.labels("superseded").inc()
        self._newest[source] = frame
        self._arrived.set()

    async def _infer_forever(self, detector: ServedModel) -> NoReturn:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            waiting, self._newest = self._newest, {}
            for frame in waiting.values():
                FRAMES.labels(await self._process(frame, detector)).inc()

    async def _process(self, frame: Frame, detector: ServedModel) -> str:
        time = utc_now()
        try:
            found = await self._service.see(frame.image, detector)
            await self._queue.enqueue([NewFact(DataClass.INFERENCE_RESULTS, to_value(found, frame.source), time)])
        except OverloadedError as error:
            self._tell("frame_not_queued", frame.source, error)
            return "queue_full"
        except PrimeSparkError as error:
            self._tell("frame_failed", frame.source, error)
            return "failed"
        self._told.pop(frame.source, None)
        return "inferred"

    def _tell(self, event: str, source: str, error: PrimeSparkError) -> None:
        """Log a frame's fault once until it changes, not each time the frame comes round."""
        if self._told.get(source) != error.code and (source in self._told or len(self._told) < _MAX_TOLD):
            self._told[source] = error.code
            log.warning(event, source=source, code=error.code, cause=error.message)


def to_value(found: Inference, source: str) -> dict[str, object]:
    """The value of an `inference_results` fact."""
    return {
        "model": found.model, "model_version": found.model_version, "model_digest": found.model_digest,
        "model_type": found.model_type, "device": found.device, "source": source, "predictions": found.predictions,
        "latency_ms": found.latency_ms,
    }  # fmt: skip
