"""Hearing: each microphone in windows, the newest of each wins, and one that hangs is opened anew."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from prometheus_client import Counter

from edge_agent.capture.earwitness import MARGIN_S, MAX_CLIP_S, Earwitness, Window
from edge_agent.capture.sounds import Samples, SoundRing
from edge_agent.capture.speech_rules import SpeechBook
from edge_agent.capture.telling import FaultsTold
from edge_agent.capture.watching import Watched, reopen_forever
from edge_agent.inference_service import InferenceService
from edge_agent.microphone.process import open_microphone
from primespark.core.capture_settings import ListeningSettings
from primespark.core.clock import utc_now
from primespark.errors import OverloadedError, PrimeSparkError
from primespark.inference.audio import SAMPLE_RATE_HZ

# Beside a clip: what comes while its window waits and is listened to.
_RING_S = MAX_CLIP_S + MARGIN_S + 10.0
# No card is ahead of the clock for longer than its buffers hold; a file in its place would be read in no time.
_MAX_AHEAD_S = 1.0

WINDOWS = Counter("primespark_capture_windows_total", "Windows of sound by what became of them.", ["outcome"])
for _outcome in ("inferred", "superseded", "failed", "queue_full"):
    WINDOWS.labels(_outcome)


class Recording:
    """What a microphone has given since it was opened, cut into windows.

    Args:
        source: Name of the microphone.
        settings: Of the windows.
        opened_s: Monotonic time.
    """

    def __init__(self, source: str, settings: ListeningSettings, opened_s: float) -> None:
        self._source = source
        self._window = round(settings.window_s * SAMPLE_RATE_HZ)
        self._hop = round(settings.hop_s * SAMPLE_RATE_HZ)
        self._next_end = self._window
        self._opened_s = opened_s
        self._origin_s: float | None = None
        self._ring = SoundRing(round(_RING_S * SAMPLE_RATE_HZ))

    def ahead_s(self, now_s: float) -> float:
        """How much more there is than time has passed; below 0 as a rule."""
        return self._ring.end / SAMPLE_RATE_HZ - (now_s - self._opened_s)

    def append(self, samples: Samples, now_s: float) -> list[Window]:
        """Add at most a few seconds; the windows that are full now, the oldest first.

        Args:
            samples: float32 [n] of -1..1 at 16 kHz.
            now_s: Monotonic time of the last of them.
        """
        if self._origin_s is None:
            self._origin_s = now_s - len(samples) / SAMPLE_RATE_HZ
        self._ring.append(samples)
        windows = []
        while self._next_end <= self._ring.end:
            begin = self._next_end - self._window
            late = timedelta(seconds=(self._ring.end - self._next_end) / SAMPLE_RATE_HZ)
            cut = self._ring.between(begin, self._next_end)
            windows.append(Window(self._source, cut, utc_now() - late, self._origin_s, begin, self._ring))
            self._next_end += self._hop
        return windows


@dataclass(slots=True, eq=False)
class Ear:
    """A microphone; `waiting` is its newest window that nothing has listened to."""

    watched: Watched
    book: SpeechBook
    waiting: Window | None = field(default=None, repr=False)


class Hearing:
    """All microphones of a device.

    Args:
        microphones: They.
        service: Infers.
        earwitness: Takes what was found.
        reconnect_base_s: Bound of the first pause before a microphone is opened anew.
    """

    def __init__(
        self,
        microphones: Sequence[Watched],
        service: InferenceService,
        earwitness: Earwitness,
        reconnect_base_s: float,
    ) -> None:
        self._service = service
        self._earwitness = earwitness
        self._reconnect_base_s = reconnect_base_s
        self._arrived = asyncio.Event()
        self._faults = FaultsTold()
        self._ears = [
            Ear(watched, SpeechBook(watched.source.settings.rules, earwitness.max_gap_s)) for watched in microphones
        ]

    async def run(self) -> None:
        """Listen until cancelled; returns at once where there is no microphone."""
        async with asyncio.TaskGroup() as group:
            for ear in self._ears:
                attempt = partial(self._listen_to, ear)
                group.create_task(
                    reopen_forever(ear.watched, attempt, "microphone_unavailable", self._reconnect_base_s),
                    name=f"source {ear.watched.name}",
                )
            if self._ears:
                group.create_task(self._infer_forever(), name="windows")

    async def _listen_to(self, ear: Ear) -> None:
        """Offer windows until the microphone fails."""
        loop, settings = asyncio.get_running_loop(), ear.watched.source.settings
        async with open_microphone(settings) as microphone:
            recording = Recording(ear.watched.name, settings.listening, loop.time())
            while True:
                samples = await microphone.samples()
                ear.watched.go_live()
                for window in recording.append(samples, loop.time()):
                    self._offer(ear, window)
                if (ahead_s := recording.ahead_s(loop.time())) > _MAX_AHEAD_S:
                    await asyncio.sleep(ahead_s - _MAX_AHEAD_S)

    def _offer(self, ear: Ear, window: Window) -> None:
        if ear.waiting is not None:
            WINDOWS.labels("superseded").inc()
        ear.watched.last_frame_at = window.time
        ear.waiting = window
        self._arrived.set()

    async def _infer_forever(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            for ear in self._ears:
                if ear.waiting is not None:
                    window, ear.waiting = ear.waiting, None
                    WINDOWS.labels(await self._process(ear, window)).inc()

    async def _process(self, ear: Ear, window: Window) -> str:
        try:
            found = await self._service.hear(window.samples)
            await self._earwitness.take(ear.book, window, found)
        except OverloadedError as error:
            self._faults.tell("window_not_queued", window.source, error)
            return "queue_full"
        except PrimeSparkError as error:
            self._faults.tell("window_failed", window.source, error)
            return "failed"
        self._faults.forget(window.source)
        return "inferred"
