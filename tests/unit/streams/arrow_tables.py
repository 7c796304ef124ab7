"""Arrow tables for the tests, and streams of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow", reason="the extra `streams` is not installed: `make extra-streams`")

ARROW = [("content-type", b"application/vnd.apache.arrow.stream"), ("log_seq", b"4")]


def stream(table: Any, compression: str | None = None, parts: int = 1) -> bytes:
    """The table as one stream."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=max(1, -(-len(table) // parts)))
    content: bytes = sink.getvalue().to_pybytes()
    return content


_times = st.integers(0, 40_000) | st.sampled_from([9_999, 10_000])
_whole = st.sampled_from([0, 7, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1)
_floats = st.sampled_from([0.0, -0.0, 0.5, float(2**53)]) | st.floats(allow_nan=False, allow_infinity=False)
_texts = st.sampled_from(["a", "b", "c", "", "a\0", "é", "x" * 1025])
# By the type of a column, and whether its values then go into a dictionary.
_CELLS: list[tuple[Any, bool, st.SearchStrategy[Any]]] = [
    (pa.int64(), False, _times),
    (pa.int64(), False, _whole),
    (pa.uint64(), False, st.integers(0, 2**64 - 1) | _times),
    (pa.int8(), False, st.integers(-128, 127)),
    (pa.float64(), False, _floats),
    (pa.float32(), False, st.floats(width=32, allow_nan=False, allow_infinity=False)),
    (pa.float16(), False, st.floats(width=16, allow_nan=False, allow_infinity=False).map(np.float16)),
    (pa.bool_(), False, st.booleans()),
    (pa.null(), False, st.none()),
    (pa.string(), False, _texts),
    (pa.large_string(), False, _texts),
    (pa.string(), True, _texts),
]
_USUAL = {"ts": _CELLS[0], "device_id": (pa.string(), False, st.sampled_from("abc")), "cpu_percent": _CELLS[4]}


@st.composite
def tables(draw: st.DrawFn, usual: int = 3) -> Any:
    """Some of three fields, most of the usual type, with nulls here and there."""
    size = draw(st.integers(0, 8))
    columns = {}
    for name in _USUAL:
        if draw(st.integers(0, 9)) == 0:
            continue
        kind, as_dictionary, cells = (
            _USUAL[name] if draw(st.integers(0, usual)) else draw(st.sampled_from(_CELLS))
        )  # fmt: skip
        given = cells | st.none() if draw(st.integers(0, 3)) == 0 else cells
        column = pa.array(draw(st.lists(given, min_size=size, max_size=size)), kind)
        columns[name] = column.dictionary_encode() if as_dictionary else column
    return pa.table(columns or {"other": pa.nulls(size)})
