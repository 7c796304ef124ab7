"""Laws of tracking, whatever the frames show, in virtual time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.capture.geometry import Box, iou
from edge_agent.capture.tracking import MAX_TRACKS, Detection, Tracker
from tests.unit.edge_agent.capture.strategies import histories

History = list[tuple[float, list[Detection]]]
MINIMUM_IOU = 0.3
MAX_GAP_S = 1.0


@given(histories)
def test_a_track_is_continued_only_by_its_label_where_it_overlaps_within_its_gap(history: History) -> None:
    tracker, now_s = Tracker(MINIMUM_IOU, MAX_GAP_S), 0.0
    last: dict[int, tuple[Detection, float]] = {}
    for pause_s, detections in history:
        now_s += pause_s
        tracks = tracker.update(detections, now_s)
        assert [track.detection for track in tracks] == detections
        assert len({track.track_id for track in tracks}) == len(tracks)
        for track in tracks:
            if track.track_id in last:
                before, seen_s = last[track.track_id]
                assert before.label == track.detection.label
                assert iou(before.box, track.detection.box) >= MINIMUM_IOU
                assert now_s - seen_s <= MAX_GAP_S
            else:
                assert track.first_seen_s == now_s
                assert track.track_id > max(last, default=0)
            last[track.track_id] = track.detection, now_s


@given(histories)
def test_a_new_track_means_that_nothing_free_overlapped(history: History) -> None:
    tracker, now_s = Tracker(MINIMUM_IOU, MAX_GAP_S), 0.0
    last: dict[int, tuple[Detection, float]] = {}
    for pause_s, detections in history:
        now_s += pause_s
        tracks = tracker.update(detections, now_s)
        ids = {track.track_id for track in tracks}
        free = [
            seen for key, (seen, at_s) in last.items() if key not in ids and now_s - at_s <= MAX_GAP_S
        ]  # fmt: skip
        for track in tracks:
            if track.first_seen_s == now_s and track.track_id not in last:
                found = track.detection
                assert not [old for old in free if old.label == found.label and iou(old.box, found.box) >= MINIMUM_IOU]
        last |= {track.track_id: (track.detection, now_s) for track in tracks}


@given(st.lists(st.tuples(st.floats(0, 0.02), st.booleans()), max_size=30))
def test_an_object_that_moves_slowly_stays_one_object(steps: list[tuple[float, bool]]) -> None:
    tracker, x, ids = Tracker(0.3, 1.0), 0.1, set()
    for index, (step, is_mirrored) in enumerate(steps):
        x += step
        walker = Detection("person", 0.9, Box(x, 0.2, x + 0.2, 0.6))
        other = Detection("person", 0.8, Box(x, 0.7, x + 0.2, 0.95))
        shown = [other, walker] if is_mirrored else [walker, other]
        tracks = {track.detection: track.track_id for track in tracker.update(shown, index * 0.5)}
        ids.add((tracks[walker], tracks[other]))
    assert len(ids) <= 1


def test_the_best_overlap_wins_not_the_first_detection() -> None:
    tracker = Tracker(0.1, 1.0)
    (old,) = tracker.update([Detection("cat", 0.9, Box(0.0, 0.0, 0.4, 0.4))], 0.0)
    far, near = Detection("cat", 0.9, Box(0.2, 0.0, 0.6, 0.4)), Detection("cat", 0.5, Box(0.05, 0.0, 0.45, 0.4))
    tracks = tracker.update([far, near], 0.1)
    assert tracks[1].track_id == old.track_id
    assert tracks[0].track_id != old.track_id


def test_a_crowd_is_bounded() -> None:
    tracker = Tracker(0.9, 1e9)
    for frame in range(3):
        crowd = [Detection("ant", 0.5, Box(n, frame, n + 0.5, frame + 0.5)) for n in range(MAX_TRACKS + 10)]
        assert len(tracker.update(crowd, float(frame))) == MAX_TRACKS
        assert len(tracker.alive) == MAX_TRACKS
