"""Messages to rows: good ones whole, bad ones refused whole, and nothing a message can do but that."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.core.encoding import compress
from primespark.errors import InvalidInputError
from primespark.windows.records import Batch
from streams.decode import MAX_DECODED_BYTES, MAX_RECORD_BYTES, MAX_ROWS, Headers, decode

JSON = [("content-type", b"application/json")]
LINES = [("content-type", b"application/x-ndjson+zstd")]


def decoded(value: bytes | None, headers: Headers | None = None) -> Batch:
    return decode("edge.telemetry", 2, 7, value, headers, 1_000)


def test_one_record_with_or_without_a_content_type() -> None:
    for headers in (None, [], JSON, [("other", b"x")]):
        batch = decoded(b'{"device_id": "a", "ts": 5}', headers)
        assert batch == Batch("edge.telemetry", 2, 7, [{"device_id": "a", "ts": 5}], log_seq=None, at_ms=1_000)


@given(rows=st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=4), max_size=20))
def test_lines_compressed_as_the_relay_does_come_back(rows: list[dict[str, object]]) -> None:
    lines = "\n".join(json.dumps(row) for row in rows)
    batch = decoded(compress(lines.encode()), [*LINES, ("log_seq", b"12")])
    assert batch.rows == rows
    assert batch.log_seq == 12


@pytest.mark.parametrize(
    ("value", "headers", "code"),
    [
        (None, JSON, "malformed"),
        (b"", JSON, "malformed"),
        (b"{", JSON, "malformed"),
        (b"[1]", JSON, "malformed"),
        (b"5", JSON, "malformed"),
        (b"\xff\xfe", JSON, "malformed"),
        (b'{"ts": NaN}', JSON, "malformed"),
        (b'{"ts": 1, "v": -Infinity}', JSON, "malformed"),
        (b'{"ts": ' + b"9" * 5000 + b"}", JSON, "malformed"),
        (b"[" * 100_000, JSON, "malformed"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, JSON, "malformed"),
        (b'{"a": "' + b"x" * MAX_RECORD_BYTES + b'"}', JSON, "too_large"),
        (b"{}", [("content-type", b"text/csv")], "unsupported_media"),
        (b"{}", [("content-type", b"\xff")], "malformed"),
        (b"{}", [("log_seq", b"-1")], "malformed"),
        (b"{}", [("log_seq", b"")], "malformed"),
        (b"{}", [("log_seq", "\u0661".encode())], "malformed"),
        (b"{}", [("log_seq", b"9" * 20)], "malformed"),
        (b"{}", LINES, "bad_encoding"),
        (compress(b"{}\n{}")[:-1], LINES, "bad_encoding"),
        (compress(b"{}") + compress(b"{}"), LINES, "bad_encoding"),
        (compress(b"{}\nno"), LINES, "malformed"),
        (compress(b" " * (MAX_DECODED_BYTES + 1)), LINES, "too_large"),
        (compress(b"{}\n" * (MAX_ROWS + 1)), LINES, "too_large"),
    ],
)
def test_what_is_not_what_it_says_is_refused_whole(value: bytes | None, headers: Headers, code: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        decoded(value, headers)
    assert refused.value.code == code


def test_blank_lines_are_no_records() -> None:
    assert decoded(compress(b"\n{}\n \n{}\n"), LINES).rows == [{}, {}]


@given(value=st.binary(max_size=200), kind=st.binary(max_size=30), log_seq=st.binary(max_size=30))
def test_no_bytes_do_anything_but_decode_or_be_refused(value: bytes, kind: bytes, log_seq: bytes) -> None:
    for headers in (JSON, LINES, [("content-type", kind), ("log_seq", log_seq)]):
        with suppress(InvalidInputError):
            assert all(isinstance(row, dict) for row in decoded(value, headers).rows)
