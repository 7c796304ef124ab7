"""How much JSON is taken, whatever it says."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.core.web import json_bounds
from primespark.core.web.json_bounds import MAX_JSON_NAMES, MAX_JSON_VALUES, check_json_size
from primespark.errors import TooLargeError

MORE = MAX_JSON_VALUES + 1


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"0," * MORE + b"0]",
        b"[" * MORE,
        b"{}" * MORE,
        b"{" + b'"a":1,' * (MAX_JSON_NAMES + 1) + b"}",
        b'{"a" :\t1}' * (MAX_JSON_NAMES + 1),
        b'["a\\\\",' * MORE,
    ],
)
def test_more_than_is_taken(body: bytes) -> None:
    with pytest.raises(TooLargeError) as caught:
        check_json_size(body)
    assert (caught.value.code, caught.value.http_status) == ("too_many_values", 413)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"0," * (MAX_JSON_VALUES - 2) + b"0]",
        json.dumps({"text": ",[{:" * MORE}).encode(),
        json.dumps({"text": '\\",' * MORE}).encode(),
        b'"' + b",:" * MORE,
        b"",
    ],
)
def test_what_is_taken(body: bytes) -> None:
    check_json_size(body)


@pytest.mark.parametrize("piece", [b'\\"', b'"', b"\\", b'"\\', b'",', b'\\",'])
def test_looking_takes_time_in_proportion(piece: bytes) -> None:
    body = b'"' + piece * 3_000_000 + b",[{" * MORE
    began = time.process_time()
    with contextlib.suppress(TooLargeError):
        check_json_size(body)
    assert time.process_time() - began < 10


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a",:[]{}\\', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a",:\\', max_size=4), inner, max_size=4),
    max_leaves=30,
)


@given(values)
def test_texts_are_left_out_and_nothing_else(value: Any) -> None:
    body = json.dumps(value).encode()
    left = json_bounds._TEXT.sub(b"", body)
    assert (left.count(b","), left.count(b"["), left.count(b"{"), left.count(b":")) == _marks(value)
    assert re.fullmatch(rb"[-0-9\[\]{},: a-z]*", left)


def _marks(value: Any) -> tuple[int, int, int, int]:
    """Commas, brackets, braces and colons of a value, counted in the value."""
    if not isinstance(value, list | dict):
        return 0, 0, 0, 0
    inside = [_marks(inner) for inner in (value.values() if isinstance(value, dict) else value)]
    own = (max(len(value) - 1, 0), int(isinstance(value, list)), int(isinstance(value, dict)),
           len(value) if isinstance(value, dict) else 0)  # fmt: skip
    return tuple(sum(column) for column in zip(own, *inside, strict=True))
