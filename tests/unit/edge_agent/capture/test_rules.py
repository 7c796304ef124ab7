"""Laws of events in virtual time, and each condition of a rule by example."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.capture.geometry import Box
from edge_agent.capture.rules import Event, RuleBook
from edge_agent.capture.tracking import Detection, Tracker
from primespark.core.capture_settings import EventRule
from tests.unit.edge_agent.capture.strategies import histories

LEFT = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
rules = st.builds(
    EventRule,
    name=st.just("rule"),
    labels=st.sampled_from([("cat",), ("person",), ("cat", "person")]),
    zone=st.sampled_from([None, LEFT]),
    minimum_score=st.sampled_from([0.0, 0.5]),
    minimum_duration_s=st.sampled_from([0.0, 0.5, 2.0]),
    cool_down_s=st.sampled_from([0.0, 1.0, 4.0]),
)


def replay(
    rule: EventRule, history: list[tuple[float, list[Detection]]]
) -> tuple[list[tuple[int, Event]], list[tuple[float, dict[int, Detection]]]]:
    """Events with the index of their frame, and for each frame its time and what each track showed."""
    tracker, book, now_s = Tracker(0.3, 1.0), RuleBook([rule]), 0.0
    events, seen = [], []
    for pause_s, detections in history:
        now_s += pause_s
        tracks = tracker.update(detections, now_s)
        seen.append((now_s, {track.track_id: track.detection for track in tracks}))
        events += [(len(seen) - 1, event) for event in book.update(tracks, tracker.alive, now_s)]
    return events, seen


def is_in_zone(rule: EventRule, detection: Detection) -> bool:
    return rule.zone is None or (detection.box.x_min + detection.box.x_max) / 2 <= 0.5


def qualifies(rule: EventRule, detection: Detection) -> bool:
    is_good = detection.label in rule.labels and detection.score >= rule.minimum_score
    return is_good and is_in_zone(rule, detection)


@given(rules, histories)
def test_events_keep_their_rule(rule: EventRule, history: list[tuple[float, list[Detection]]]) -> None:
    events, seen = replay(rule, history)
    times = [seen[index][0] for index, _ in events]
    assert all(later - earlier >= rule.cool_down_s for earlier, later in pairwise(times))
    for index, event in events:
        assert qualifies(rule, event.track.detection)
        assert event.duration_s >= rule.minimum_duration_s
        # A frame `duration_s` ago showed the object as good as this one does, and none since then showed it elsewhere.
        now_s, track_id = seen[index][0], event.track.track_id
        begins = [
            start
            for start, (at_s, shown) in enumerate(seen[: index + 1])
            if now_s - at_s == event.duration_s and track_id in shown and qualifies(rule, shown[track_id])
        ]
        stays = [[shown[track_id] for _, shown in seen[start : index + 1] if track_id in shown] for start in begins]
        assert any(all(is_in_zone(rule, detection) for detection in stay) for stay in stays)


@given(rules, histories)
def test_without_cool_down_each_stay_that_lasts_makes_exactly_one_event(
    rule: EventRule, history: list[tuple[float, list[Detection]]]
) -> None:
    rule = rule.model_copy(update={"cool_down_s": 0.0})
    events, seen = replay(rule, history)
    begun: dict[int, float] = {}
    fired: set[int] = set()
    expected = []
    for index, (now_s, shown) in enumerate(seen):
        for track_id, detection in shown.items():
            if not is_in_zone(rule, detection):
                begun.pop(track_id, None)
                fired.discard(track_id)
            elif qualifies(rule, detection):
                begun.setdefault(track_id, now_s)
                if now_s - begun[track_id] >= rule.minimum_duration_s and track_id not in fired:
                    fired.add(track_id)
                    expected.append((index, track_id))
    assert [(index, event.track.track_id) for index, event in events] == expected


def at(x: float, *, label: str = "person", score: float = 0.9, low: float = 0.9) -> Detection:
    return Detection(label, score, Box(x - 0.1, low - 0.4, x + 0.1, low))


def fires(rule: EventRule, *frames: list[Detection], step_s: float = 0.5) -> list[float]:
    events, seen = replay(rule, [(step_s, frame) for frame in frames])
    return [seen[index][0] for index, _ in events]


def a_rule(**changes: object) -> EventRule:
    return EventRule.model_validate({"name": "rule", "labels": ["person"], "cool_down_s": 0} | changes)


def test_a_label_a_score_and_a_zone_are_asked_for() -> None:
    assert fires(a_rule(), [at(0.3)]) == [0.5]
    assert fires(a_rule(), [at(0.3, label="cat")]) == []
    assert fires(a_rule(), [at(0.3, score=0.49)]) == []
    assert fires(a_rule(zone=LEFT), [at(0.45)]) == [0.5]
    assert fires(a_rule(zone=LEFT), [at(0.55)]) == []


def test_the_feet_count_not_the_head() -> None:
    ground = ((0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0))
    assert fires(a_rule(zone=ground), [at(0.5, low=0.6)]) == [0.5]
    assert fires(a_rule(zone=ground), [at(0.5, low=0.45)]) == []


def test_a_stay_must_last_and_leaving_begins_it_anew() -> None:
    rule = a_rule(zone=LEFT, minimum_duration_s=1.0)
    assert fires(rule, [at(0.4)], [at(0.4)], [at(0.4)], [at(0.4)]) == [1.5]
    assert fires(rule, [at(0.45)], [at(0.48)], [at(0.52)], [at(0.48)], [at(0.45)]) == []


def test_a_missed_frame_or_a_low_score_does_not_end_a_stay() -> None:
    rule = a_rule(minimum_duration_s=1.0)
    assert fires(rule, [at(0.4)], [], [at(0.4)]) == [1.5]
    assert fires(rule, [at(0.4)], [at(0.4, score=0.1)], [at(0.4, score=0.1)], [at(0.4)]) == [2.0]


def test_who_comes_while_the_rule_cools_and_stays_is_told_afterwards() -> None:
    rule = a_rule(cool_down_s=1.0)
    assert fires(rule, [at(0.2)], [at(0.2), at(0.8)], [at(0.2), at(0.8)], [at(0.2), at(0.8)]) == [0.5, 1.5]


@pytest.mark.parametrize("frames", [1, 500])
def test_nothing_is_kept_of_those_who_left(frames: int) -> None:
    tracker, book = Tracker(0.3, 1.0), RuleBook([a_rule()])
    for index in range(frames):
        tracks = tracker.update([at(0.3)], index * 10.0)
        book.update(tracks, tracker.alive, index * 10.0)
    assert len(book._stays) == 1
