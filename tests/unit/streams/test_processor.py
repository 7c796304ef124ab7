"""The specification's window classes, held to plain arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from primespark.windows.aggregates import AggregationFunction
from primespark.windows.rules import AggregationRule, WindowConfig
from streams.processor import SlidingWindowManager, StreamProcessor, TumblingWindowManager

moments = st.datetimes(datetime(1960, 1, 1), datetime(2090, 1, 1), timezones=st.timezones())  # noqa: DTZ001
lengths = st.integers(1, 86_400)


@given(moments, lengths)
def test_tumbling_windows_are_the_one_of_the_clock(moment: datetime, size_s: int) -> None:
    ((start, end),) = TumblingWindowManager(size_s).get_windows(moment)
    assert start <= moment < end == start + timedelta(seconds=size_s)
    assert (start - datetime(1970, 1, 1, tzinfo=UTC)) % timedelta(seconds=size_s) == timedelta()


@given(moments, st.integers(1, 600), st.integers(1, 40))
def test_sliding_windows_are_all_that_hold_the_moment(moment: datetime, slide_s: int, times: int) -> None:
    size_s = slide_s * times - slide_s // 2
    windows = SlidingWindowManager(size_s, min(slide_s, size_s)).get_windows(moment)
    slide = timedelta(seconds=min(slide_s, size_s))
    assert windows == sorted(windows)
    assert all(start <= moment < end == start + timedelta(seconds=size_s) for start, end in windows)
    assert all(later[0] - earlier[0] == slide for earlier, later in pairwise(windows))
    assert windows[-1][0] + slide > moment
    assert windows[0][1] - slide <= moment


def test_a_processor_says_what_a_window_holds_once_the_watermark_is_past_it() -> None:
    rule = AggregationRule(
        rule_id="mean", source_topic="in", target_topic="out", window_config=WindowConfig(size_seconds=60),
        aggregation_function=AggregationFunction.AVG, value_field="cpu_percent", enabled=False,
    )  # fmt: skip
    processor = StreamProcessor(rule)
    records = [{"device_id": "a", "ts": at, "cpu_percent": percent} for at, percent in ((1, 10), (2, 30), (69_999, 1))]
    assert [processor.process(record) for record in records] == [[], [], []]
    (result,) = processor.process({"device_id": "a", "ts": 70_000, "cpu_percent": 1})
    assert (result.group, result.window_start, result.window_end, result.value) == (("a",), 0, 60_000, 20.0)
