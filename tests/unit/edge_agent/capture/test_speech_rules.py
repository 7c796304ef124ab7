"""Speech in overlapping windows: what two windows both hold counts once, and the rules are those of cameras."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.capture.speech_rules import HeardEvent, SpeechBook
from primespark.core.capture_settings import EventRule
from primespark.inference.predictions import SpeechSegment

GAP_S = 2.0


def rule(minimum_duration_s: float = 0.0, cool_down_s: float = 0.0, minimum_score: float = 0.5) -> EventRule:
    return EventRule(
        name="r", labels=("speech",), minimum_duration_s=minimum_duration_s, cool_down_s=cool_down_s,
        minimum_score=minimum_score,
    )  # fmt: skip


def part(start_s: float, end_s: float, score: float = 0.9) -> SpeechSegment:
    return {"start_s": start_s, "end_s": end_s, "score": score}


# Speech and pauses in tenths of a second, from which tests take sums that floats hold well enough.
talks = st.lists(st.tuples(st.integers(1, 60), st.integers(3, 60)), max_size=8)


def timeline(talk: list[tuple[int, int]]) -> list[tuple[float, float]]:
    spoken, now = [], 0
    for pause, length in talk:
        spoken.append(((now + pause) / 10, (now + pause + length) / 10))
        now += pause + length
    return spoken


def windows_of(
    spoken: list[tuple[float, float]], window_s: float, hop_s: float
) -> list[tuple[float, list[SpeechSegment]]]:
    """What a perfect model finds in each window."""
    end = max((end for _, end in spoken), default=0.0) + window_s
    found = []
    for number in range(int(end / hop_s) + 1):
        begin = number * hop_s
        cut = [(max(a, begin), min(b, begin + window_s)) for a, b in spoken if a < begin + window_s and b > begin]
        found.append((begin, [part(a - begin, b - begin) for a, b in cut]))
    return found


def run(book: SpeechBook, windows: list[tuple[float, list[SpeechSegment]]]) -> list[HeardEvent]:
    return [event for begin, segments in windows for event in book.update(segments, begin)]


def stretches(spoken: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Speech without pauses longer than the gap."""
    joined: list[tuple[float, float]] = []
    for start, end in spoken:
        if joined and start - joined[-1][1] <= GAP_S + 1e-6:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined


@given(talks, st.sampled_from([(2.0, 1.0), (2.0, 0.5), (3.0, 2.9), (1.0, 1.0)]))
def test_each_stretch_of_speech_is_one_event(talk: list[tuple[int, int]], sizes: tuple[float, float]) -> None:
    # Pauses of exactly the gap are left out: floats decide about them.
    spoken = timeline([(pause + (pause == GAP_S * 10), length) for pause, length in talk])
    events = run(SpeechBook([rule()], GAP_S), windows_of(spoken, *sizes))
    assert [event.start_s for event in events] == pytest.approx([start for start, _ in stretches(spoken)])


@given(talks, st.integers(1, 50))
def test_an_event_comes_when_its_duration_is_reached(talk: list[tuple[int, int]], tenths: int) -> None:
    spoken = timeline([(pause + (pause == GAP_S * 10), length) for pause, length in talk])
    least_s = tenths / 10 + 0.05
    events = run(SpeechBook([rule(minimum_duration_s=least_s)], GAP_S), windows_of(spoken, 2.0, 1.0))
    long_enough = [(start, end) for start, end in stretches(spoken) if end - start >= least_s]
    assert [event.start_s for event in events] == pytest.approx([start for start, _ in long_enough])
    for event, (_, end) in zip(events, long_enough, strict=True):
        assert event.end_s <= end + 1e-6
        assert event.end_s - event.start_s >= least_s - 1e-6


def test_a_rule_cools_down() -> None:
    book = SpeechBook([rule(cool_down_s=60)], GAP_S)
    assert len(book.update([part(0.2, 1.0)], 0)) == 1
    assert book.update([part(0.2, 1.0)], 30) == []
    assert len(book.update([part(0.2, 1.0)], 61)) == 1


def test_faint_speech_begins_nothing() -> None:
    book = SpeechBook([rule(minimum_score=0.8)], GAP_S)
    assert book.update([part(0, 1.5, score=0.7)], 0) == []
    (heard,) = book.update([part(0.5, 1.5, score=0.9)], 1)
    assert heard.event.track.detection.score == 0.9


def test_a_window_that_hears_less_takes_nothing_back() -> None:
    book = SpeechBook([rule()], GAP_S)
    assert len(book.update([part(0, 1.9)], 0)) == 1
    # The next window ends the same speech sooner; what follows is within the gap of what was heard before.
    assert book.update([part(0, 0.5)], 1) == []
    assert book.update([part(0.8, 1.5)], 3) == []


def test_what_was_heard_already_does_not_count_with_a_better_score() -> None:
    book = SpeechBook([rule(minimum_duration_s=0.6, minimum_score=0.8)], GAP_S)
    assert book.update([part(0, 1.5, score=0.7)], 0) == []
    assert book.update([part(0, 0.9, score=0.9)], 1) == []
    assert len(book.update([part(0, 0.2, score=0.9)], 2)) == 1
