"""Segments of speech in overlapping windows into events, by the rules that cameras have; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.capture.geometry import Box
from edge_agent.capture.rules import Event, RuleBook
from edge_agent.capture.tracking import Detection, Track
from primespark.core.capture_settings import SOUND_LABELS, EventRule
from primespark.inference.predictions import SpeechSegment

(SPEECH,) = SOUND_LABELS
# Sound has no place: what follows speech soon enough is the same speech.
_EVERYWHERE = Box(0, 0, 1, 1)


@dataclass(frozen=True, slots=True)
class HeardEvent:
    """A rule held for speech that began at `start_s` and was heard until `end_s`, on the clock of the windows."""

    event: Event
    start_s: float
    end_s: float


class SpeechBook:
    """The rules of one microphone.

    Speech is one object, a track, as long as no pause in it is longer than `max_gap_s`. A rule's stay begins with the
    first segment that has the rule's score. What two windows both contain counts once.

    Args:
        rules: Each fires by itself.
        max_gap_s: Longest pause.
    """

    def __init__(self, rules: Sequence[EventRule], max_gap_s: float) -> None:
        self._rules = RuleBook(rules)
        self._max_gap_s = max_gap_s
        self._track_id = 0
        self._began_s = self._heard_s = float("-inf")

    def update(self, segments: Sequence[SpeechSegment], window_s: float) -> list[HeardEvent]:
        """Take a window; the events it makes.

        Args:
            segments: Speech in it, in order.
            window_s: When it began; not before the last one did.
        """
        events: list[HeardEvent] = []
        for segment in segments:
            start_s, end_s = window_s + segment["start_s"], window_s + segment["end_s"]
            if end_s > self._heard_s:
                events += self._take(segment["score"], max(start_s, self._heard_s), end_s)
                self._heard_s = end_s
        return events

    def _take(self, score: float, start_s: float, end_s: float) -> list[HeardEvent]:
        if start_s - self._heard_s > self._max_gap_s:
            self._track_id += 1
            self._began_s = start_s
        events: list[HeardEvent] = []
        for moment_s in (start_s, end_s):
            track = Track(self._track_id, Detection(SPEECH, score, _EVERYWHERE), self._began_s, moment_s)
            fired = self._rules.update([track], {self._track_id}, moment_s)
            events += [HeardEvent(event, self._began_s, end_s) for event in fired]
        return events
