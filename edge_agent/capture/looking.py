"""Looking: each camera at its pace, the newest frame of each wins, and one that hangs is opened anew."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NoReturn

from prometheus_client import Counter

from edge_agent.camera.process import open_camera
from edge_agent.capture.configured import ConfiguredSource, configured_sources
from edge_agent.capture.earwitness import Earwitness
from edge_agent.capture.hearing import Hearing
from edge_agent.capture.pictures import Pixels, cut
from edge_agent.capture.telling import FaultsTold
from edge_agent.capture.watching import RECONNECT_BASE_S, SourceState, Watched, reopen_forever
from edge_agent.capture.witness import Sight, SourceWitness, Witness
from edge_agent.inference_service import InferenceService
from edge_agent.sources import Frame, Seen, frames, see_pixels
from primespark.core.capture_settings import CaptureSettings
from primespark.core.clock import utc_now
from primespark.core.logging import get_logger
from primespark.errors import OverloadedError, PrimeSparkError
from primespark.inference.models import Model

# Files that are not there, or have nothing, are looked at again after this time.
_RETRY_S = 2.0

FRAMES = Counter("primespark_capture_frames_total", "Frames by what became of them.", ["outcome"])
for _outcome in ("inferred", "superseded", "failed", "queue_full"):
    FRAMES.labels(_outcome)

log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class Camera:
    """A source of images; `waiting` is its newest frame that nothing has looked at."""

    watched: Watched
    witness: SourceWitness
    waiting: tuple[Frame, Sight] | None = field(default=None, repr=False)


class Capture:
    """All sources of a device.

    Args:
        settings: Sources and pace.
        service: Infers.
        witness: Takes what was seen.
        earwitness: Takes what was heard.
        reconnect_base_s: Bound of the first pause before a source is opened anew.
    """

    def __init__(
        self,
        settings: CaptureSettings,
        service: InferenceService,
        witness: Witness,
        earwitness: Earwitness,
        reconnect_base_s: float = RECONNECT_BASE_S,
    ) -> None:
        self._loops = settings.loop
        self._service = service
        self._witness = witness
        self._reconnect_base_s = reconnect_base_s
        self._arrived = asyncio.Event()
        self._faults = FaultsTold()
        self.sources = {source.name: Watched(source) for source in configured_sources(settings)}
        for watched in self.sources.values():
            watched.enter(SourceState.STARTING)
        microphones = [one for one in self.sources.values() if one.source.kind == "microphone"]
        self._cameras = [
            Camera(one, witness.watch(one.source)) for one in self.sources.values() if one not in microphones
        ]
        self._hearing = Hearing(microphones, service, earwitness, reconnect_base_s)

    async def run(self, detector: Model | None) -> None:
        """Look and listen until cancelled.

        Args:
            detector: For the cameras; without one they are left alone.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hearing.run(), name="hearing")
            if detector is not None:
                for camera in self._cameras:
                    _warn_of_other_labels(camera.watched, detector.current.labels)
                    watch = self._watch_files if camera.watched.source.kind == "path" else self._watch_camera
                    group.create_task(watch(camera), name=f"source {camera.watched.name}")
                group.create_task(self._infer_forever(detector), name="frames")

    async def _watch_files(self, camera: Camera) -> None:
        """Frames of files at the source's pace, over and over where settings say so."""
        watched = camera.watched
        path, max_pixels = watched.source.settings.path or "", self._service.settings.max_image_pixels
        loop = asyncio.get_running_loop()
        pace = _Pace(watched.source.frames_per_second)
        while True:
            iterator = frames(path, max_pixels, watched.source.frame_name)
            seen = 0
            while (frame := await self._next(watched, iterator)) is not None:
                await pace.wait()
                self._offer(camera, frame)
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
            watched.fail(SourceState.FAILED, error)
            return None
        if frame is not None and watched.state is not SourceState.LIVE:
            watched.enter(SourceState.LIVE)
        return frame

    async def _watch_camera(self, camera: Camera) -> NoReturn:
        """Frames of a camera or stream at the source's pace; opened anew, with back-off, whenever it fails."""
        await reopen_forever(
            camera.watched, partial(self._look_through, camera), "camera_unavailable", self._reconnect_base_s
        )

    async def _look_through(self, camera: Camera) -> None:
        """Offer frames until the camera fails."""
        watched = camera.watched
        pace = _Pace(watched.source.frames_per_second)
        async with open_camera(watched.source.settings, self._service.settings.max_image_pixels) as process:
            while True:
                pixels = await process.frame()
                watched.go_live()
                self._offer(camera, Frame(watched.name, partial(see_pixels, pixels)))
                await pace.wait()

    def _offer(self, camera: Camera, frame: Frame) -> None:
        if camera.waiting is not None:
            FRAMES.labels("superseded").inc()
        camera.watched.last_frame_at = time = utc_now()
        camera.waiting = frame, Sight(frame.source, time, asyncio.get_running_loop().time())
        self._arrived.set()

    async def _infer_forever(self, detector: Model) -> NoReturn:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            for camera in self._cameras:
                if camera.waiting is not None:
                    (frame, sight), camera.waiting = camera.waiting, None
                    FRAMES.labels(await self._process(camera, frame, sight, detector)).inc()

    async def _process(self, camera: Camera, frame: Frame, sight: Sight, detector: Model) -> str:
        look = _Look(frame, camera.watched.source)
        try:
            found = await self._service.see(look, detector)
            await self._witness.take(camera.witness, sight, look.seen, found)
        except PrimeSparkError as error:
            camera.watched.frame_fault = error.message
            is_full = isinstance(error, OverloadedError)
            self._faults.tell("frame_not_queued" if is_full else "frame_failed", frame.source, error)
            return "queue_full" if is_full else "failed"
        camera.watched.frame_fault = ""
        self._faults.forget(frame.source)
        return "inferred"


def _warn_of_other_labels(watched: Watched, labels: Collection[str]) -> None:
    """Say which labels of the source's rules the detector never gives: a misspelt one would be waited for in vain."""
    for rule in watched.source.settings.rules:
        others = [label for label in rule.labels if label not in labels]
        if others:
            watched.warning = f"rule {rule.name}: the detector knows no {', '.join(map(repr, others))}"[:400]
            log.warning("rule_without_effect", source=watched.name, cause=watched.warning)


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
    """The region of a frame, decoded by the thread that infers; what it saw stays in `seen`, with the digest of all."""

    def __init__(self, frame: Frame, source: ConfiguredSource) -> None:
        self._frame = frame
        self._region = source.settings.region
        # Assigned by the call: there is no frame before.
        self.seen: Seen

    def __call__(self) -> Pixels:
        frame = self._frame.see()
        self.seen = replace(frame, pixels=cut(frame.pixels, self._region))
        return self.seen.pixels
