"""Boxes of successive frames taken for one object where they overlap; pure, time comes by argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.capture.geometry import Box, iou

MAX_TRACKS = 512


@dataclass(frozen=True, slots=True)
class Detection:
    """An object in one frame; the box is in fractions of the image."""

    label: str
    score: float
    box: Box


@dataclass(frozen=True, slots=True)
class Track:
    """An object over time; `detection` is the latest of it."""

    track_id: int
    detection: Detection
    first_seen_s: float
    last_seen_s: float


class Tracker:
    """Tracks of one source.

    A detection continues the track of its label with which it overlaps most, the best pairs of a frame first, one
    detection to a track. A track that no detection continues waits, and is forgotten after `max_gap_s`.

    Args:
        minimum_iou: Least overlap of a detection with its track's last box.
        max_gap_s: How long a track is kept without a detection.
    """

    def __init__(self, minimum_iou: float, max_gap_s: float) -> None:
        self._minimum_iou = minimum_iou
        self._max_gap_s = max_gap_s
        self._last_id = 0
        self._tracks: dict[int, Track] = {}

    @property
    def alive(self) -> frozenset[int]:
        """Ids of the tracks that may be continued."""
        return frozenset(self._tracks)

    def update(self, detections: Sequence[Detection], now_s: float) -> list[Track]:
        """Take a frame; the track of each detection, in their order.

        Args:
            detections: All of the frame, at most 512 are followed.
            now_s: Monotonic time of the frame, not before that of the last.
        """
        self._tracks = {key: kept for key, kept in self._tracks.items() if now_s - kept.last_seen_s <= self._max_gap_s}
        matched = self._match(detections)
        seen = []
        for index, detection in enumerate(detections[:MAX_TRACKS]):
            track = self._continue(matched.get(index), detection, now_s)
            seen.append(track)
            self._tracks[track.track_id] = track
        self._forget_beyond_bound()
        return seen

    def _match(self, detections: Sequence[Detection]) -> dict[int, int]:
        """Track by index of the detection."""
        pairs = sorted(
            (
                (-overlap, key, index)
                for index, detection in enumerate(detections[:MAX_TRACKS])
                for key, track in self._tracks.items()
                if track.detection.label == detection.label
                and (overlap := iou(track.detection.box, detection.box)) >= self._minimum_iou
            )
        )
        matched: dict[int, int] = {}
        taken: set[int] = set()
        for _, key, index in pairs:
            if index not in matched and key not in taken:
                matched[index] = key
                taken.add(key)
        return matched

    def _continue(self, track_id: int | None, detection: Detection, now_s: float) -> Track:
        if track_id is not None:
            return Track(track_id, detection, self._tracks[track_id].first_seen_s, now_s)
        self._last_id += 1
        return Track(self._last_id, detection, now_s, now_s)

    def _forget_beyond_bound(self) -> None:
        if len(self._tracks) > MAX_TRACKS:
            newest = sorted(self._tracks.values(), key=lambda track: (track.last_seen_s, track.track_id))[-MAX_TRACKS:]
            self._tracks = {track.track_id: track for track in newest}
