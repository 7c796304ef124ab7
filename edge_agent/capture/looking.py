"""Looking: each source at its pace, the newest frame of each wins, and a camera that hangs is opened anew."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import NoReturn

from prometheus_client import Counter, Gauge

from edge_agent.backoff import Backoff
from edge_agent.camera.process import open_camera
from edge_agent.capture.configured import ConfiguredSource, configured_sources
from edge_agent.capture.pictures import Pixels, cut
from edge_agent.capture.witness import Sight, SourceWitness, Witness
from edge_agent.inference_service import InferenceService
from edge_agent.sources import Frame, frames
from primespark.core.capture_settings import CaptureSettings
from primespark.core.clock import utc_now
from primespark.core.logging import get_logger
from primespark.errors import OverloadedError, PrimeSparkError
from primespark.inference.models import Model

# Files that are not there, or have nothing, are looked at again after this time.
_RETRY_S = 2.0
_RECONNECT_BASE_S = 1.0
_RECONNECT_MAX_S = 60.0
# A camera that lasted so long is tried again soon; one that gives a frame and dies is not.
_STEADY_S = 30.0
# Faults of so many frames are told apart; those of more are not logged.
_MAX_TOLD = 1000

FRAMES = Counter("primespark_capture_frames_total", "Frames by what became of them.", ["outcome"])
for _outcome in ("inferred", "superseded", "failed", "queue_full"):
    FRAMES.labels(_outcome)
UP = Gauge("primespark_capture_source_up", "Whether a source gives frames.", ["source"])
RECONNECTS = Counter("primespark_capture_reconnects_total", "Cameras and streams opened anew.", ["source", "code"])

log = get_logger(__name__)


class SourceState(StrEnum):
    """How a source stands."""

    STARTING = "starting"
    LIVE = "live"
    RECONNECTING = "reconnecting"
    FAILED = "failed"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Watched:
    """A source at work; `waiting` is its newest frame that nothing has looked at."""

    source: ConfiguredSource
    witness: SourceWitness
    state: SourceState = SourceState.STARTING
    fault: str = ""
    reconnects: int = 0
    last_frame_at: datetime | None = None
    waiting: tuple[Frame, Sight] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Its name."""
        return self.source.name

    def enter(self, state: SourceState, fault: str = "") -> None:
        """Change the state, where everyone sees it."""
        self.state, self.fault = state, fault
        UP.labels(self.name).set(state is SourceState.LIVE)


class Capture:
    """All sources of a device.

    Args:
        settings: Sources and pace.
        service: Infers.
        witness: Takes what was found.
        reconnect_base_s: Bound of the first pause before a camera is opened anew.
    """

    def __init__(
        self,
        settings: CaptureSettings,
        service: InferenceService,
        witness: Witness,
        reconnect_base_s: float = _RECONNECT_BASE_S,
    ) -> None:
        self._loops = settings.loop
        self._service = service
        self._witness = witness
        self._reconnect_base_s = reconnect_base_s
        self._arrived = asyncio.Event()
        self._told: dict[str, str] = {}
        self.sources = {source.name: Watched(source, witness.watch(source)) for source in configured_sources(settings)}
        for watched in self.sources.values():
            watched.enter(SourceState.STARTING)

    async def run(self, detector: Model) -> NoReturn:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:
            for watched in self.sources.values():
                watch = self._watch_files if watched.source.kind == "path" else self._watch_camera
                group.create_task(watch(watched), name=f"source {watched.name}")
            group.create_task(self._infer_forever(detector), name="frames")
        raise AssertionError("the loops end by cancellation only")

    async def _watch_files(self, watched: Watched) -> None:
        """Frames of files at the source's pace, over and over where settings say so."""
        path, max_pixels = watched.source.settings.path or "", self._service.settings.max_image_pixels
        loop = asyncio.get_running_loop()
        pace = _Pace(watched.source.frames_per_second)
        while True:
            iterator = frames(path, max_pixels, watched.source.frame_name)
            seen = 0
            while (frame := await self._next(watched, iterator)) is not None:
                await pace.wait()
                self._offer(watched, frame)
                seen += 1
            if seen and not self._loops and not watched.fault:
                watched.enter(SourceState.ENDED)
                return
            if not seen:
                await asyncio.sleep(_RETRY_S)
                pace.due = loop.time()

    async def _next(self, watched: Watched, iterator: Iterator[Frame]) -> Frame | None:
        try:
            frame = await asyncio.to_thread(next, iterator, None)
        except (PrimeSparkError, OSError) as error:
            self._fail(watched, SourceState.FAILED, error)
            return None
        if frame is not None and watched.state is not SourceState.LIVE:
            watched.enter(SourceState.LIVE)
        return frame

    async def _watch_camera(self, watched: Watched) -> NoReturn:
        """Frames of a camera or stream at the source's pace; opened anew, with back-off, whenever it fails."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(self._reconnect_base_s, _RECONNECT_MAX_S)
        while True:
            opened = loop.time()
            try:
                await self._look_through(watched)
            except (PrimeSparkError, OSError) as error:
                code = error.code if isinstance(error, PrimeSparkError) else "camera_unavailable"
                self._fail(watched, SourceState.RECONNECTING, error)
                watched.reconnects += 1
                RECONNECTS.labels(watched.name, code).inc()
            if loop.time() - opened > _STEADY_S:
                backoff.succeeded()
            await backoff.pause()

    async def _look_through(self, watched: Watched) -> None:
        """Offer frames until the camera fails."""
        pace = _Pace(watched.source.frames_per_second)
        async with open_camera(watched.source.settings, self._service.settings.max_image_pixels) as camera:
            while True:
                pixels = await camera.frame()
                if watched.state is not SourceState.LIVE:
                    log.info("source_live", source=watched.name)
                    watched.enter(SourceState.LIVE)
                self._offer(watched, Frame(watched.name, partial(_given, pixels)))
                await pace.wait()

    def _fail(self, watched: Watched, state: SourceState, error: Exception) -> None:
        """Enter `state`; a fault is logged when it comes or changes, not at each attempt."""
        if watched.fault != str(error):
            remedy = getattr(error, "remedy", "")
            log.error("source_failed", source=watched.name, cause=str(error), remedy=remedy)
        watched.enter(state, str(error))

    def _offer(self, watched: Watched, frame: Frame) -> None:
        if watched.waiting is not None:
            FRAMES.labels("superseded").inc()
        watched.last_frame_at = utc_now()
        watched.waiting = frame, Sight(frame.source, watched.last_frame_at, asyncio.get_running_loop().time())
        self._arrived.set()

    async def _infer_forever(self, detector: Model) -> NoReturn:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            for watched in self.sources.values():
                if watched.waiting is not None:
                    (frame, sight), watched.waiting = watched.waiting, None
                    FRAMES.labels(await self._process(watched, frame, sight, detector)).inc()

    async def _process(self, watched: Watched, frame: Frame, sight: Sight, detector: Model) -> str:
        look = _Look(frame, watched.source)
        try:
            found = await self._service.see(look, detector)
            await self._witness.take(watched.witness, sight, look.pixels, found)
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


class _Pace:
    """Moments at even distances; a late one does not make the following come faster."""

    def __init__(self, frames_per_second: float) -> None:
        self._interval_s = 1.0 / frames_per_second
        self.due = asyncio.get_running_loop().time()

    async def wait(self) -> None:
        """Sleep until the next."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.due - loop.time())
        self.due = max(self.due, loop.time() - self._interval_s) + self._interval_s


class _Look:
    """The region of a frame, decoded by the thread that infers; what it saw stays in `pixels`."""

    def __init__(self, frame: Frame, source: ConfiguredSource) -> None:
        self._frame = frame
        self._region = source.settings.region
        # Assigned by the call: there is no frame before.
        self.pixels: Pixels

    def __call__(self) -> Pixels:
        self.pixels = cut(self._frame.image(), self._region)
        return self.pixels


def _given(pixels: Pixels) -> Pixels:
    return pixels
