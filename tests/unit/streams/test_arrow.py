"""Arrow streams to rows: what JSON would say, and nothing unpacked that claims too much."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primespark.errors import InvalidInputError
from streams.decode import MAX_RECORD_BYTES, MAX_ROWS, decode
from tests.helpers import rounds
from tests.unit.streams.arrow_tables import ARROW, pa, stream

_cells = {
    "text": st.text(max_size=9),
    "whole": st.integers(-(2**63), 2**63 - 1),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "truth": st.booleans(),
    "none": st.none(),
}


def rows_in(value: bytes) -> Any:
    return list(decode("in", 0, 0, value, ARROW, None).rows)


@st.composite
def tables(draw: st.DrawFn) -> Any:
    """Rows of scalars, some fields missing."""
    kinds = draw(st.lists(st.sampled_from(sorted(_cells)), min_size=1, max_size=5))
    size = draw(st.integers(0, 20))
    columns = {}
    for number, kind in enumerate(kinds):
        cells = draw(st.lists(_cells[kind] | st.none(), min_size=size, max_size=size))
        types = {
            "text": pa.string(),
            "whole": pa.int64(),
            "number": pa.float64(),
            "truth": pa.bool_(),
            "none": pa.null(),
        }
        column = pa.array(cells, types[kind])
        columns[f"{kind}{number}"] = column.dictionary_encode() if kind == "text" and draw(st.booleans()) else column
    return pa.table(columns)


@given(table=tables(), compression=st.sampled_from([None, "lz4", "zstd"]), parts=st.integers(1, 3))
def test_a_row_is_what_it_would_be_in_json_without_its_nulls(table: Any, compression: str | None, parts: int) -> None:
    expected = [{name: cell for name, cell in row.items() if cell is not None} for row in table.to_pylist()]
    assert rows_in(stream(table, compression, parts)) == expected


def one(column: Any) -> bytes:
    return stream(pa.table({"a": column}))


def claiming(size: int) -> bytes:
    """A compressed stream whose buffer says that it unpacks to so many bytes."""
    content = stream(pa.table({"a": np.zeros(1000)}), "zstd")
    was = struct.pack("<q", 8000)
    assert content.count(was) == 1
    return content.replace(was, struct.pack("<q", size))


def not_utf8() -> Any:
    return pa.StringArray.from_buffers(1, pa.py_buffer(struct.pack("<ii", 0, 1)), pa.py_buffer(b"\xff"))


def out_of_order() -> Any:
    return pa.StringArray.from_buffers(2, pa.py_buffer(struct.pack("<iii", 0, 9, 1)), pa.py_buffer(b"x" * 9))


GOOD = one(pa.array([1, 2]))


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"{}", "malformed"),
        (GOOD[:40], "malformed"),
        (GOOD[:-20], "malformed"),
        (GOOD + b"x", "malformed"),
        (GOOD + GOOD, "malformed"),
        (one(pa.array([1.0, float("nan")])), "malformed"),
        (one(pa.array([None, float("-inf")])), "malformed"),
        (one(not_utf8()), "malformed"),
        (one(out_of_order()), "malformed"),
        (one(pa.DictionaryArray.from_arrays(pa.array([5]), pa.array(["x"]), safe=False)), "malformed"),
        (stream(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])), "malformed"),
        (stream(pa.table({})), "malformed"),
        (claiming(-5), "malformed"),
        (claiming(2**40), "too_large"),
        (one(pa.nulls(10**9)), "too_large"),
        (one(pa.nulls(MAX_ROWS + 1)), "too_large"),
        (stream(pa.table({f"c{number}": pa.nulls(MAX_ROWS) for number in range(30)})), "too_large"),
        (one(pa.array(["x" * MAX_RECORD_BYTES])), "too_large"),
        (one(pa.DictionaryArray.from_arrays(np.zeros(MAX_ROWS - 1, np.int8), pa.array(["x" * 1000]))), "too_large"),
        (one(pa.array([[1]])), "unsupported_media"),
        (one(pa.array([{"b": 1}])), "unsupported_media"),
        (one(pa.array([b"x"])), "unsupported_media"),
        (one(pa.array([1], pa.timestamp("ms"))), "unsupported_media"),
        (one(pa.array(["x"], pa.string_view())), "unsupported_media"),
        (one(pa.array([1, 1]).dictionary_encode()), "unsupported_media"),
    ],
)  # fmt: skip
def test_what_is_not_what_it_says_is_refused_whole(value: bytes, code: str) -> None:
    before = pa.total_allocated_bytes()
    with pytest.raises(InvalidInputError) as refused:
        rows_in(value)
    assert refused.value.code == code
    assert pa.total_allocated_bytes() - before < 64 * 1024 * 1024


def test_rows_of_several_parts_count_together() -> None:
    size = MAX_ROWS // 2
    assert len(rows_in(stream(pa.table({"a": pa.nulls(2 * size)}), parts=2))) == 2 * size
    with pytest.raises(InvalidInputError):
        rows_in(stream(pa.table({"a": pa.nulls(2 * size + 1)}), parts=2))


_SAMPLES = [
    stream(
        pa.table({"device_id": pa.array(["a", "b"]).dictionary_encode(), "v": [1.5, None], "n": [True, False]}), kind
    )
    for kind in (None, "lz4", "zstd")
]


@settings(max_examples=rounds(300, 20_000))
@given(
    sample=st.sampled_from(_SAMPLES),
    changes=st.lists(st.tuples(st.integers(0, 1_500), st.integers(0, 255)), max_size=4),
    length=st.integers(0, 1_500) | st.just(10_000),
)
def test_no_bytes_do_anything_but_decode_or_be_refused(
    sample: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    content = bytearray(sample)
    for place, byte in changes:
        content[place % len(content)] = byte
    with suppress(InvalidInputError):
        assert all(isinstance(row, dict) for row in rows_in(bytes(content[:length]) or b"x"))
