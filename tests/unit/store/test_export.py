"""What is read back from each format is what was answered."""

from __future__ import annotations

import csv
import io
import math
from array import array
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primespark.store.analytics.aggregates import Aggregation
from primespark.store.analytics.export import Columns, Format, export
from primespark.store.analytics.series import Series

COLUMNS = Columns(["device_id", "labels.room"], [Aggregation.AVG, Aggregation.COUNT])
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=5)
points = st.lists(
    st.tuples(
        st.integers(0, 2**51), st.just(math.nan) | st.floats(-1e140, 1e140),
        st.just(math.nan) | st.integers(0, 2**53).map(float),
    ),
    max_size=4,
)  # fmt: skip


@st.composite
def answers(draw: st.DrawFn) -> list[Series]:
    return [
        Series(
            {"device_id": draw(texts), "labels.room": draw(st.none() | texts)},
            array("q", [time for time, _, _ in given]),
            [array("d", [one for _, one, _ in given]), array("d", [other for _, _, other in given])],
        )
        for given in draw(st.lists(points, max_size=3))
    ]


def rows(series: list[Series]) -> list[list[Any]]:
    return [
        [*one.group.values(), moment, average, None if count is None else int(count)]
        for one in series
        for moment, (average, count) in one.points()
    ]


@given(answers())
@pytest.mark.parametrize("wanted", [Format.PARQUET, Format.ARROW])
def test_a_table_has_every_point(wanted: Format, series: list[Series]) -> None:
    written = export(series, COLUMNS, wanted)
    table = pq.read_table(io.BytesIO(written)) if wanted is Format.PARQUET else pa.ipc.open_stream(written).read_all()
    assert table.column_names == ["device_id", "labels.room", "time", "avg", "count"]
    assert [list(row.values()) for row in table.to_pylist()] == rows(series)
    assert (table.schema.field("time").type, table.schema.field("count").type) == (
        pa.timestamp("us", "UTC"), pa.int64(),
    )  # fmt: skip


@given(answers())
@example(
    [Series({"device_id": "\n=1+1", "labels.room": None}, array("q", [0]), [array("d", [1.0]), array("d", [1.0])])]
)
def test_text_has_every_point_and_no_formula(series: list[Series]) -> None:
    read = list(csv.reader(io.StringIO(export(series, COLUMNS, Format.CSV).decode(), newline="")))
    assert read[0] == ["device_id", "labels.room", "time", "avg", "count"]
    expected = rows(series)
    assert len(read) == len(expected) + 1
    for (device, room, time, average, count), row in zip(read[1:], expected, strict=True):
        for cell, text in ((device, row[0]), (room, row[1] or "")):
            assert cell in (text, f"'{text}")
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert datetime.fromisoformat(time) == row[2]
        assert (float(average) if average else None, int(count) if count else None) == (row[3], row[4])


def test_a_text_is_printed_as_it_is() -> None:
    series = Series(
        {"device_id": "=1+1", "labels.room": None},
        array("q", [1_774_739_400_000_000]), [array("d", [0.1]), array("d", [3.0])],
    )  # fmt: skip
    told = export([series], COLUMNS, Format.CSV).decode()
    assert told == "device_id,labels.room,time,avg,count\r\n'=1+1,,2026-03-28T23:10:00.000000Z,0.1,3\r\n"
    assert datetime(2026, 3, 28, 23, 10, tzinfo=UTC).timestamp() == 1_774_739_400
