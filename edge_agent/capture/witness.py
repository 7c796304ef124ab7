"""What becomes of an inference: its fact, events, pictures, and word of it to whoever listens."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from prometheus_client import Counter

from edge_agent.capture.broadcast import Broadcast
from edge_agent.capture.configured import ConfiguredSource
from edge_agent.capture.event_facts import EVENT_STREAM, enqueue_with_events
from edge_agent.capture.geometry import Box
from edge_agent.capture.hard_examples import HardExamples
from edge_agent.capture.picture_store import PictureKind, PictureStore
from edge_agent.capture.pictures import MAX_TRAVELLING_BYTES, Pixels, crop, encode_jpeg
from edge_agent.capture.rules import Event, RuleBook
from edge_agent.capture.tracking import Detection, Tracker
from edge_agent.inference_service import Inference
from edge_agent.input_digest import InputDigest
from edge_agent.queue import NewFact, OfflineQueue
from edge_agent.sources import Seen
from primespark.core.capture_settings import CaptureSettings
from primespark.core.clock import to_rfc3339
from primespark.core.logging import get_logger
from primespark.errors import PrimeSparkError
from primespark.inference.predictions import Prediction
from primespark.sync.records import DataClass

_EXPIRE_EVERY_S = 600.0
_MAX_NOTED = 100

EXAMPLES = Counter("primespark_capture_hard_examples_total", "Frames chosen for labelling.", ["reason", "outcome"])

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sight:
    """A frame and when it came; `at_s` is monotonic."""

    frame_name: str
    time: datetime
    at_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Latest:
    """The last frame of a source and what was found in it."""

    pixels: Pixels
    predictions: list[Prediction]
    time: datetime


class SourceWitness:
    """What one source needs to remember from frame to frame."""

    def __init__(self, source: ConfiguredSource, settings: CaptureSettings, minimum_score: float) -> None:
        self.name = source.name
        self.examples = HardExamples(settings.hard_examples, minimum_score, source.name)
        self._tracker = Tracker(settings.tracking.minimum_iou, settings.tracking.max_gap_s)
        self._rules = RuleBook(source.settings.rules) if source.settings.rules else None

    def events(self, predictions: Sequence[Prediction], pixels: Pixels, now_s: float) -> list[Event]:
        """The events a frame makes."""
        if self._rules is None:
            return []
        height, width = pixels.shape[:2]
        detections = [
            Detection(found["label"], found["score"], Box.of(found["box"]).scaled(1 / width, 1 / height))
            for found in predictions
            if "box" in found
        ]
        return self._rules.update(self._tracker.update(detections, now_s), self._tracker.alive, now_s)


class Witness:
    """Takes what the sources show.

    Args:
        settings: Rules, policies, bounds.
        minimum_score: Below it the model's answers are dropped.
        queue: Takes results and events.
        pictures: Where those of each kind are kept.
        broadcast: Tells who listens.
    """

    def __init__(
        self,
        settings: CaptureSettings,
        minimum_score: float,
        queue: OfflineQueue,
        pictures: Mapping[PictureKind, PictureStore],
        broadcast: Broadcast,
    ) -> None:
        self._settings = settings
        self._minimum_score = minimum_score
        self._queue = queue
        self._pictures = pictures
        self._broadcast = broadcast
        self._told: set[str] = set()
        self.latest: dict[str, Latest] = {}

    def watch(self, source: ConfiguredSource) -> SourceWitness:
        """The memory of one source, for use with `take`."""
        return SourceWitness(source, self._settings, self._minimum_score)

    async def take(self, source: SourceWitness, sight: Sight, seen: Seen, found: Inference) -> None:
        """Keep and tell what a frame shows: its result and its events become facts together, or none of them.

        Raises:
            OverloadedError: Code `queue_full`; pictures are kept and listeners told nevertheless.
        """
        pixels = seen.pixels
        self.latest[source.name] = Latest(pixels, found.predictions, sight.time)
        events = source.events(found.predictions, pixels, sight.at_s)
        result = to_value(found, sight.frame_name, seen.digest)
        told = [await self._describe(event, source.name, sight, seen, found) for event in events]
        self._broadcast.tell("result", {"time": to_rfc3339(sight.time), **result})
        for value in told:
            self._broadcast.tell("event", {"time": to_rfc3339(sight.time), **value})
        await self._keep_example(source, sight, seen, found)
        facts = []
        for event, value in zip(events, told, strict=True):
            sent = value | await self._travelling_image(event, pixels)
            facts.append(NewFact(DataClass.INFERENCE_RESULTS, sent, sight.time, stream=EVENT_STREAM))
        await enqueue_with_events(self._queue, NewFact(DataClass.INFERENCE_RESULTS, result, sight.time), facts)

    async def expire_forever(self) -> NoReturn:
        """Remove pictures that are too old, now and every ten minutes, until cancelled."""
        while True:
            for store in self._pictures.values():
                try:
                    await asyncio.to_thread(store.expire)
                except OSError as error:
                    self._tell("pictures_not_expired", "disk_error", str(error))
            await asyncio.sleep(_EXPIRE_EVERY_S)

    async def _describe(self, event: Event, source: str, sight: Sight, seen: Seen, found: Inference) -> dict[str, Any]:
        """The value of an event's fact, its snapshot kept."""
        height, width = seen.pixels.shape[:2]
        detection = event.track.detection
        box = detection.box.scaled(width, height)
        value = {
            "event": event.rule.name, "source": source, "frame": sight.frame_name, "label": detection.label,
            "score": detection.score, "track": event.track.track_id, "duration_s": round(event.duration_s, 3),
            "box": {name: round(getattr(box, name), 2) for name in ("x_min", "y_min", "x_max", "y_max")},
            "image_width": width, "image_height": height,
            "model": found.model, "model_version": found.model_version, "model_digest": found.model_digest,
            **seen.digest.to_value(),
        }  # fmt: skip
        snapshot = None
        if event.rule.snapshot:
            snapshot = await self._keep(PictureKind.EVENT, seen.pixels, value)
        return value | {"snapshot": snapshot}

    async def _travelling_image(self, event: Event, pixels: Pixels) -> dict[str, Any]:
        """What of the image goes along with an event: nothing under the policy `off`."""
        policy = self._settings.images
        if policy == "off" or not event.rule.snapshot:
            return {}
        shown = crop(pixels, event.track.detection.box) if policy == "crops" else pixels
        data = await asyncio.to_thread(encode_jpeg, shown, MAX_TRAVELLING_BYTES)
        return {"image_kind": policy, "image_jpeg_base64": base64.b64encode(data).decode()}

    async def _keep_example(self, source: SourceWitness, sight: Sight, seen: Seen, found: Inference) -> None:
        daily_bytes = self._settings.hard_examples.daily_bytes
        if not daily_bytes:
            return
        pixels = seen.pixels
        reason = source.examples.choose(pixels, found.predictions, sight.at_s)
        if reason is not None:
            note = {
                "reason": reason, "source": source.name, "frame": sight.frame_name, "model": found.model,
                "image_width": pixels.shape[1], "image_height": pixels.shape[0],
                "model_version": found.model_version, "model_digest": found.model_digest,
                "predictions": found.predictions[:_MAX_NOTED], **seen.digest.to_value(),
            }  # fmt: skip
            kept = await self._keep(PictureKind.EXAMPLE, pixels, note, daily_bytes)
            EXAMPLES.labels(reason.value, "kept" if kept else "not_kept").inc()

    async def _keep(
        self, kind: PictureKind, pixels: Pixels, note: dict[str, Any], daily_bytes: int | None = None
    ) -> str | None:
        """The picture's id, or None: a fault of the disk costs a picture, never a result."""
        try:
            return await asyncio.to_thread(self._pictures[kind].keep, pixels, note, daily_bytes)
        except PrimeSparkError as error:
            self._tell("picture_not_kept", error.code, error.message)
            return None

    def _tell(self, event: str, code: str, cause: str) -> None:
        """Log a kind of fault once."""
        if (told := f"{event}/{code}") not in self._told:
            self._told.add(told)
            log.warning(event, code=code, cause=cause)


def to_value(found: Inference, source: str, digest: InputDigest) -> dict[str, object]:
    """The value of an `inference_results` fact."""
    return {
        "model": found.model, "model_version": found.model_version, "model_digest": found.model_digest,
        "model_type": found.model_type, "device": found.device, "source": source, "predictions": found.predictions,
        "latency_ms": found.latency_ms, **digest.to_value(),
    }  # fmt: skip
