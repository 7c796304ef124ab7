"""Columns of Arrow: they say of each row what is said of it alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primespark.windows.columns import Chunk
from primespark.windows.engine import Output
from primespark.windows.filters import condition
from primespark.windows.records import (
    EARLIEST_MS,
    LATEST_MS,
    Batch,
    Messages,
    Singles,
    event_time_ms,
    group_of,
    number_of,
)
from streams.decode import decode
from tests.helpers import rounds
from tests.unit.streams.arrow_tables import ARROW, pa, stream, tables
from tests.unit.windows.histories import TOPIC, make_engine, make_rule, rules

_ASKED: dict[str, list[Any]] = {
    "==": [0, 0.5, 2**53, 2**53 + 1, "a", True, None],
    "!=": [0, 0.5, 2**53 + 1, 10**400, "a", True, None],
    ">": [0, 0.5, 2**53, float(2**63), "a"],
    "<=": [7, 2.5, -(2**53) - 1, "b"],
    "in": [[], [0, "a", False], ["b", None, 0.5]],
    "exists": [True, False],
}
_CONDITIONS = [
    condition(field, op, value)
    for field in ("cpu_percent", "device_id", "ts")
    for op, values in _ASKED.items()
    for value in values
]
_conditions = st.sampled_from(_CONDITIONS)
_singles = st.lists(
    st.fixed_dictionaries({"ts": st.integers(0, 40_000), "device_id": st.sampled_from("abc")}), min_size=1, max_size=3
)


@st.composite
def _messages(draw: st.DrawFn) -> list[Messages]:
    """Of Arrow, some of one schema, and others among them."""
    found: list[Messages] = []
    offset = 0
    for table in draw(st.lists(tables(), min_size=1, max_size=4)):
        for _ in range(draw(st.integers(1, 2))):
            kind = draw(st.sampled_from([None, "lz4"]))
            value = stream(table, kind, draw(st.integers(1, 3)))
            found.append(decode(TOPIC, 0, offset, value, ARROW[:1], draw(st.none() | st.integers(0, 40_000))))
            offset += 1
        if draw(st.integers(0, 3)) == 0:
            rows = draw(_singles)
            found.append(Singles(TOPIC, 0, [*rows], [*range(offset, offset + len(rows))], [None] * len(rows)))
            offset += len(rows)
    return found


@settings(max_examples=rounds(200, 6000))
@given(
    messages=_messages(),
    fields=st.sampled_from([["device_id"], ["cpu_percent"], ["device_id", "cpu_percent"], ["device_id", "ts"], []]),
    conditions=st.lists(_conditions, max_size=3),
)
def test_a_column_says_what_is_said_of_each_row(
    messages: list[Messages], fields: list[str], conditions: list[Any]
) -> None:
    if any(len(message.rows) for message in messages):
        _assert_alike(messages, fields, conditions)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(
            [5, -5, 2**53, 2**53 + 1, LATEST_MS, LATEST_MS + 1, EARLIEST_MS, EARLIEST_MS - 1, 2**63 - 1, -(2**63)]
        ),
        pa.array([5, 2**53 + 1, 2**63, 2**64 - 1], pa.uint64()),
        pa.array([0, -128, None], pa.int8()),
        pa.array([0.0, -0.0, 0.5, 2.0**53, 1e308, None]),
        pa.array([0.5, None], pa.float32()),
        pa.array(np.array([0.5, 2.5], np.float16)),
        pa.array([np.float16(0.5), None], pa.float16()),
        pa.array([True, False, None]),
        pa.nulls(2),
        pa.array(["a", "b", "", "a", "x\0", "x" * 1025, None]),
        pa.array(["a", "0", None], pa.large_string()),
        pa.array(["b", "a", "b", None]).dictionary_encode(),
        pa.array([], pa.string()),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("field", ["ts", "device_id", "cpu_percent"])
def test_each_type_says_what_it_says_by_rows(field: str, column: Any) -> None:
    first = pa.table({field: column, "other": pa.nulls(len(column))})
    values = [stream(first, "zstd", 2), stream(pa.table({"ts": [7]})), stream(first), stream(first)]
    messages = [decode(TOPIC, 0, offset, value, ARROW[:1], None) for offset, value in enumerate(values)]
    for fields in ([field], [field, "ts"], ["ts", field], ["none"]):
        for asked in _CONDITIONS:
            _assert_alike(messages, fields, [asked])


def _assert_alike(messages: Sequence[Messages], fields: list[str], conditions: list[Any]) -> None:
    chunk = Chunk(messages)
    rows = [row for message in messages for row in message.rows]
    times, has_time = chunk.times()
    numbers, is_number = chunk.numbers("cpu_percent")
    groups = chunk.groups(fields)
    said = [
        (
            int(times[place]) if has_time[place] else None,
            float(numbers[place]) if is_number[place] else None,
            groups.names[groups.codes[place]] if groups.codes[place] >= 0 else None,
        )
        for place in range(len(rows))
    ]
    assert said == [(event_time_ms(row), number_of(row, "cpu_percent"), group_of(row, fields)) for row in rows]
    assert len(set(groups.names)) == len(groups.names)
    assert chunk.numbers(None)[0].tolist() == [1.0] * len(rows)
    assert chunk.matching(conditions).tolist() == [all(one(row) for one in conditions) for row in rows]


@settings(max_examples=rounds(100, 6000))
@given(rule=rules(), messages=_messages(), is_filtered=st.booleans())
def test_arrow_says_what_its_rows_say(rule: Any, messages: list[Messages], is_filtered: bool) -> None:
    if not any(len(message.rows) for message in messages):
        return
    filters = [["cpu_percent", ">", 0.5]] if is_filtered else []
    rule = make_rule(**{**rule.model_dump(mode="json"), "filters": filters})
    columns, rows = make_engine(rule, fewest_columns=1), make_engine(rule, fewest_columns=10**9)
    told, expected = columns.process_chunk(messages, 0), rows.process_chunk(messages, 0)
    assert _lines(told) == _lines(expected)
    assert columns.counters == rows.counters
    # Of others rounding may leave anything, as the values are of any size.
    if rule.aggregation_function in {"count", "rate", "min", "max", "first", "last"}:
        assert [one.value for one in told.results] == [one.value for one in expected.results]


def _lines(output: Output) -> Any:
    return (
        [(one.key, one.kind, one.count, one.revision) for one in output.results],
        [(one.offset, one.index, json.dumps(one.row)) for one in output.late],
    )


def test_a_null_of_a_dictionary_is_a_field_that_is_not_there() -> None:
    cells = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None, 0]), pa.array(["a", "a", None]))
    batch = decode(TOPIC, 0, 0, stream(pa.table({"device_id": cells, "ts": range(5)}), "lz4"), ARROW, None)
    assert [row.get("device_id", "-") for row in batch.rows] == ["a", "a", "-", "-", "a"]
    groups = Chunk([batch]).groups(["device_id"])
    assert (groups.codes.tolist(), groups.names) == ([0, 0, -1, -1, 0], [("a",)])


def test_rows_are_made_once() -> None:
    batch: Batch = decode(TOPIC, 0, 0, stream(pa.table({"a": [1, None]})), ARROW, None)
    assert batch.rows[0] is batch.rows[0]
    assert batch.rows[1:] == [{}]
