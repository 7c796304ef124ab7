"""The dictionary of short batches: it gives back what was packed, is refused where it is not known, and pays."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.wire import measured_batch
from primespark.core.encoding import decode_body, encode_body
from primespark.errors import MalformedError, TooLargeError, UnsupportedMediaError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@given(st.binary(max_size=40_000) | st.text('abc"{}:,0123456789', max_size=40_000).map(str.encode), st.booleans())
def test_what_is_packed_is_unpacked(payload: bytes, with_dictionary: bool) -> None:
    body, headers = encode_body(payload, with_dictionary=with_dictionary)
    encoding, digest = headers.get("Content-Encoding"), headers["Content-Digest"]
    assert decode_body(body, encoding=encoding, digest=digest, max_bytes=len(payload)) == payload
    if payload:
        with pytest.raises(TooLargeError):
            decode_body(body, encoding=encoding, digest=digest, max_bytes=len(payload) - 1)


def test_the_frame_names_the_dictionary_and_another_is_refused() -> None:
    body, _ = encode_body(b'{"op":"append","stream":"telemetry"}' * 20, with_dictionary=True)
    assert zstd.get_frame_info(body).dictionary_id == 1
    stranger = zstd.train_dict([b'{"telemetry": %d, "stream": "x%d"}' % (n, n * 7) for n in range(2000)], 1024)
    strange = zstd.compress(b'{"telemetry": 5}' * 30, zstd_dict=stranger)
    with pytest.raises(UnsupportedMediaError) as caught:
        decode_body(strange, encoding="zstd", digest=None, max_bytes=10_000)
    assert caught.value.code == "unknown_dictionary"
    for damaged in (body[:5], body[:-3], body + b"x", b""):
        with pytest.raises(MalformedError):
            decode_body(damaged, encoding="zstd", digest=None, max_bytes=10_000)


@pytest.mark.parametrize(("records", "share"), [(10, 0.13), (1000, 0.10)])
async def test_a_batch_of_measurements_is_this_share_of_its_lines(records: int, share: float) -> None:
    body, lines = await measured_batch(records)
    assert len(body) <= share * len(lines)
