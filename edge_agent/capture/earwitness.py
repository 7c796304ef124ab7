"""What becomes of a window of sound: its fact, events, clips, and word of it to whoever listens."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from edge_agent.capture.broadcast import Broadcast
from edge_agent.capture.event_facts import EVENT_STREAM, enqueue_with_events
from edge_agent.capture.picture_store import PictureStore
from edge_agent.capture.pictures import MAX_TRAVELLING_BYTES
from edge_agent.capture.sounds import Samples, SoundRing, encode_flac
from edge_agent.capture.speech_rules import HeardEvent, SpeechBook
from edge_agent.capture.telling import FaultsTold
from edge_agent.capture.witness import to_value
from edge_agent.inference_service import Inference
from edge_agent.input_digest import digest_samples
from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.capture_settings import CaptureSettings
from primespark.core.clock import to_rfc3339
from primespark.errors import PrimeSparkError
from primespark.inference.audio import SAMPLE_RATE_HZ
from primespark.inference.predictions import SpeechSegment
from primespark.sync.records import DataClass

# Of a clip, before the speech and after what was heard of it.
MARGIN_S = 1.0
MAX_CLIP_S = 15.0


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A piece of a microphone's sound.

    Attributes:
        source: Name of the microphone.
        samples: float32 [n] of -1..1 at 16 kHz.
        time: Of its end.
        origin_s: Monotonic time at which the recording began, whose samples `begin` and `ring` count.
        begin: Number of its first sample.
        ring: What was recorded around it.
    """

    source: str
    samples: Samples
    time: datetime
    origin_s: float
    begin: int
    ring: SoundRing

    @property
    def duration_s(self) -> float:
        """Its length."""
        return len(self.samples) / SAMPLE_RATE_HZ

    @property
    def start_s(self) -> float:
        """Monotonic time of its begin."""
        return self.origin_s + self.begin / SAMPLE_RATE_HZ

    def time_at(self, moment_s: float) -> datetime:
        """The time of a monotonic moment."""
        return self.time + timedelta(seconds=moment_s - self.start_s - self.duration_s)


class Earwitness:
    """Takes what the microphones hear.

    Args:
        settings: Policies and bounds.
        queue: Takes results and events.
        clips: Where those of events are kept.
        broadcast: Tells who listens.
    """

    def __init__(
        self, settings: CaptureSettings, queue: OfflineQueue, clips: PictureStore, broadcast: Broadcast
    ) -> None:
        self._sounds = settings.sounds
        self.max_gap_s = settings.tracking.max_gap_s
        self._queue = queue
        self._clips = clips
        self._broadcast = broadcast
        self._faults = FaultsTold()

    async def take(self, book: SpeechBook, window: Window, found: Inference) -> None:
        """Keep and tell what a window holds: its result and its events become facts together, or none of them.

        Raises:
            OverloadedError: Code `queue_full`; clips are kept and listeners told nevertheless.
        """
        events = book.update(cast("list[SpeechSegment]", found.predictions), window.start_s)
        digest = digest_samples(window.samples)
        result = to_value(found, window.source, digest) | {"window_s": window.duration_s}
        self._broadcast.tell("result", {"time": to_rfc3339(window.time), **result})
        told = []
        for heard in events:
            clip = _clip(window, heard)
            value = await self._describe(heard, window, clip, found)
            self._broadcast.tell("event", {"time": to_rfc3339(window.time), **value})
            sent = value | await self._travelling_sound(heard, clip)
            told.append(NewFact(DataClass.INFERENCE_RESULTS, sent, window.time, stream=EVENT_STREAM))
        await enqueue_with_events(self._queue, NewFact(DataClass.INFERENCE_RESULTS, result, window.time), told)

    async def _describe(self, heard: HeardEvent, window: Window, clip: Samples, found: Inference) -> dict[str, Any]:
        """The value of an event's fact, its clip kept."""
        rule, track = heard.event.rule, heard.event.track
        value = {
            "event": rule.name, "source": window.source, "label": track.detection.label,
            "score": track.detection.score, "track": track.track_id,
            "duration_s": round(heard.end_s - heard.start_s, 3),
            "started_at": to_rfc3339(window.time_at(heard.start_s)),
            "ended_at": to_rfc3339(window.time_at(heard.end_s)),
            "model": found.model, "model_version": found.model_version, "model_digest": found.model_digest,
        }  # fmt: skip
        snapshot = await self._keep(window.source, clip, value) if rule.snapshot else None
        return value | {"snapshot": snapshot}

    async def _keep(self, source: str, clip: Samples, note: dict[str, Any]) -> str | None:
        """The clip's id, or None: a fault of the disk costs a clip, never a result."""
        try:
            kept = await asyncio.to_thread(self._clips.keep_sound, clip, note)
        except PrimeSparkError as error:
            self._faults.tell("clip_not_kept", source, error)
            return None
        self._faults.forget(source)
        return kept

    async def _travelling_sound(self, heard: HeardEvent, clip: Samples) -> dict[str, Any]:
        """What of the sound goes along with an event: nothing under the policy `off`."""
        if self._sounds == "off" or not heard.event.rule.snapshot:
            return {}
        data = await asyncio.to_thread(encode_flac, clip, MAX_TRAVELLING_BYTES)
        return {"sound_kind": "clip", "sound_flac_base64": base64.b64encode(data).decode()}


def _clip(window: Window, heard: HeardEvent) -> Samples:
    """The speech so far with its margins; of long speech the newest part."""
    end_s = heard.end_s + MARGIN_S
    begin_s = max(heard.start_s - MARGIN_S, end_s - MAX_CLIP_S)
    begin, end = (round((moment - window.origin_s) * SAMPLE_RATE_HZ) for moment in (begin_s, end_s))
    return window.ring.between(begin, end)
