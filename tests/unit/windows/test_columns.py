"""Rows as columns: many at once give what one by one gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primespark.windows.columns import Chunk
from primespark.windows.engine import Output, WindowEngine
from primespark.windows.quantiles import log_bin
from primespark.windows.records import Batch, Messages, Singles, event_time_ms, group_of, number_of
from primespark.windows.rules import AggregationRule
from primespark.windows.segments import log_bins
from tests.helpers import rounds
from tests.unit.windows.histories import TOPIC, make_rule, reborn, rules
from tests.unit.windows.oracle import PARTITIONS

_odd: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, "7", [], {}, 10**400, 2**63, float("nan"), float("inf"), -0.0, "", "a\0", "\ud800", 1.0, 1]
)
_times = st.integers(-6000, 40_000) | st.sampled_from([0, 9_999, 10_000, 20_000])
_values = st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6)


@st.composite
def _rows(draw: st.DrawFn) -> dict[str, Any]:
    row: dict[str, Any] = {"device_id": draw(st.sampled_from("abc")), "ts": draw(_times), "cpu_percent": draw(_values)}
    if draw(st.integers(0, 7)) == 0:
        field = draw(st.sampled_from([*row]))
        if draw(st.booleans()):
            del row[field]
        else:
            row[field] = draw(_odd)
    return row


_few_rows = st.lists(_rows(), max_size=12) | st.lists(_rows(), min_size=1, max_size=1)
_messages = st.lists(st.tuples(st.none() | st.integers(0, 40_000), _few_rows), min_size=1, max_size=8)
_chunks = st.lists(
    st.tuples(st.sampled_from(PARTITIONS), _messages, st.sampled_from([0, 1, 400, 600, 6000])), max_size=5
)


def _run(engine: WindowEngine, chunks: Any, *, at_once: bool) -> list[Output]:
    clock_ms = 0
    offsets = dict.fromkeys(PARTITIONS, 0)
    for partition in PARTITIONS:
        engine.assign(TOPIC, partition, 0)
    outputs = []
    for partition, messages, pause_ms in chunks:
        clock_ms += pause_ms
        batches = []
        for at_ms, rows in messages:
            batches.append(Batch(TOPIC, partition, offsets[partition], rows, at_ms=at_ms))
            offsets[partition] += 1
        if at_once:
            said = [engine.process_chunk(_joined(batches), clock_ms)]
        else:
            said = [engine.process(one, clock_ms) for one in batches]
        outputs.append(Output([x for one in said for x in one.results], [x for one in said for x in one.late]))
        outputs.append(engine.tick(clock_ms))
    return outputs


def _joined(batches: list[Batch]) -> list[Messages]:
    """Messages of one row as singles."""
    found: list[Messages] = []
    for batch in batches:
        if len(batch.rows) != 1:
            found.append(batch)
            continue
        if not (found and isinstance(found[-1], Singles)):
            found.append(Singles(batch.topic, batch.partition))
        singles = found[-1]
        assert isinstance(singles, Singles)
        singles.rows.append(batch.rows[0])
        singles.offsets.append(batch.offset)
        singles.moments.append(batch.at_ms)
    return found


@settings(max_examples=rounds(150, 6000))
@given(two=st.tuples(rules(), rules()), filtered=st.booleans(), chunks=_chunks)
def test_columns_say_what_rows_say(two: tuple[AggregationRule, ...], filtered: bool, chunks: Any) -> None:
    conditions = [["cpu_percent", ">", 0.0]] if filtered else []
    named = [rule.model_copy(update={"rule_id": f"r{number}"}) for number, rule in enumerate(two)]
    named[0] = make_rule(**{**named[0].model_dump(mode="json"), "filters": conditions})
    columns, rows = WindowEngine(named, fewest_columns=1), WindowEngine(named, fewest_columns=10**9)
    for told, expected in zip(_run(columns, chunks, at_once=True), _run(rows, chunks, at_once=False), strict=True):
        _assert_alike(told, expected)
    assert columns.counters == rows.counters
    assert columns.take_changed() == rows.take_changed()
    _assert_alike(reborn(columns, named, 10**6).advance(10**6), reborn(rows, named, 10**6).advance(10**6))


def _assert_alike(told: Output, expected: Output) -> None:
    """The same in the same order; of numbers, but for the rounding that depends on the order of additions."""
    assert told.late == expected.late
    assert [(one.rule_id, one.key, one.kind, one.count, one.revision) for one in told.results] == [
        (one.rule_id, one.key, one.kind, one.count, one.revision) for one in expected.results
    ]
    for result, one in zip(told.results, expected.results, strict=True):
        assert result.value == (pytest.approx(one.value, rel=1e-9, abs=1e-6) if one.value is not None else None)


@given(
    rows=st.lists(_rows(), min_size=1, max_size=20),
    fields=st.sampled_from([["device_id"], ["cpu_percent"], ["device_id", "ts"], []]),
)
def test_a_column_says_what_is_said_of_each_row(rows: list[dict[str, Any]], fields: list[str]) -> None:
    first, second = Batch(TOPIC, 0, 0, rows[:7]), Batch(TOPIC, 0, 5, rows[7:])
    chunk = Chunk([first, second])
    times, has_time = chunk.times()
    numbers, is_number = chunk.numbers("cpu_percent")
    groups = chunk.groups(fields)
    for place, row in enumerate(rows):
        assert (int(times[place]) if has_time[place] else None) == event_time_ms(row)
        assert (float(numbers[place]) if is_number[place] else None) == number_of(row, "cpu_percent")
        code = int(groups.codes[place])
        assert (groups.names[code] if code >= 0 else None) == group_of(row, fields)
        assert chunk.place(place) == ((first, place) if place < 7 else (second, place - 7))


@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False) | st.integers(-600, 600).map(lambda power: 1.02**power),
        min_size=1,
    )
)
def test_bins_of_many_are_those_of_each(values: list[float]) -> None:
    assert log_bins(np.array(values)).tolist() == [log_bin(value) for value in values]
